"""What is learned from rows: metrics of any unit, unseen categories, features as they are."""

import keras
import numpy as np
import pytest
from sklearn import metrics

from tfmp import errors, policies
from tfmp.data import pipeline, tables
from tfmp.models import tabular
from tfmp.training import Learner, TrainingConfig, compile_learner, optimizers
from tfmp.training.tables import TableClassifier, TableRegressor, describe


def compiled(learner, jit_compile=False):
    config = TrainingConfig(epochs=1, warmup_epochs=0)
    optimizer = optimizers.build(config, learner.model, 10)
    compile_learner(learner, optimizer, jit_compile=jit_compile)
    return learner


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1e6, 10.0), (-3e12, 1e12)])
def test_metrics_are_in_the_targets_unit_whatever_that_is(mean, deviation):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 3)).astype(np.float32)
    labels = (mean + deviation * (x[:, 0] + generator.normal(size=50))).astype(np.float32)
    model = tabular.build(
        "mlp",
        means=[0.0] * 3,
        deviations=[1.0] * 3,
        with_missing=[False] * 3,
        target_mean=mean,
        target_deviation=deviation,
        seed=0,
    )
    learner = compiled(TableRegressor(model, mean=mean, deviation=deviation))
    batches = pipeline.in_memory_evaluation({"numeric": x}, labels)(16)  # the last is padded
    logs = learner.evaluate(batches, return_dict=True, verbose=0)
    out = model.predict({"numeric": x}, verbose=0)[:, 0].astype(np.float64)
    expected = {
        "rmse": metrics.mean_squared_error(labels, out) ** 0.5,
        "mae": metrics.mean_absolute_error(labels, out),
        "r2": metrics.r2_score(labels.astype(np.float64), out),
        "loss": metrics.mean_squared_error(labels, out) / deviation**2,
    }
    assert logs == pytest.approx(expected, rel=1e-4)


def test_features_reach_the_model_in_their_own_dtype():
    """Keras casts what is given to a layer of a half policy, which a learner is for Keras."""
    with policies.scope("mixed_float16"):
        inputs = keras.Input((1,))
        normalized = keras.layers.Rescaling(1e-9, dtype="float32")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(normalized))
    raw = np.array([[1e9]], np.float32)
    np.testing.assert_array_equal(Learner(model)(raw), model.get_layer(index=-1).kernel)


def test_unseen_categories_are_drawn_by_seed_and_step():
    model = tabular.build("mlp", categories=(5,), outputs=2)
    codes = {"categorical": np.tile(np.arange(1, 6, dtype=np.int32), 200)[:, None]}
    labels = np.zeros(1000, np.int32)

    def drawn(seed):
        learner = compiled(TableClassifier(model, unseen_rate=0.2, seed=seed))
        return learner.prepare(codes, labels)[0]["categorical"].numpy()

    first = drawn(0)
    assert first.dtype == np.int32 and 150 < np.sum(first == 0) < 250
    np.testing.assert_array_equal(first[first > 0], codes["categorical"][first > 0])
    np.testing.assert_array_equal(first, drawn(0))
    assert (first != drawn(1)).any()
    learner = compiled(TableClassifier(model))
    assert learner.prepare(codes, labels)[0] is codes


def test_a_run_goes_on_with_its_own_table_only(tmp_path):
    describe(tables.load("breast_cancer"), tmp_path / "run")
    describe(tables.load("breast_cancer"), tmp_path / "run")
    with pytest.raises(errors.UserError, match="not the table that the run"):
        describe(tables.load("breast_cancer", seed=1), tmp_path / "run")
