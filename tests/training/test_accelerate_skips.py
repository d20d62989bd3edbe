"""A bad step in an accelerated `fit`: the epoch is as if its batch had not been there."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import loss_scale, policies

layers = keras.layers
SIZE = 8
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6 * SIZE, 4)).astype("float32")
LABELS = RNG.integers(2, size=(6 * SIZE, 1)).astype("float32")
BAD = IMAGES.copy()
BAD[[2 * SIZE + 3, 4 * SIZE]] = np.inf  # an example of the third, and one of the fifth batch
GOOD = np.delete(np.arange(6 * SIZE), [*range(2 * SIZE, 3 * SIZE), *range(4 * SIZE, 5 * SIZE)])
SMALL_SCALE = {"initial_scale": 64.0, "hysteresis": 9}  # which two bad steps don't lower


def make(optimizer, **kwargs):
    """A model with BatchNorm, dropout and stateful metrics: all that a step changes."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(1, "sigmoid", dtype="float32"),
        ]
    )
    auc = keras.metrics.AUC(num_thresholds=20, name="auc")
    model.compile(optimizer, "binary_crossentropy", metrics=[auc, "accuracy"], **kwargs)
    return model


def trained(model, images, labels, epochs=1):
    return model.fit(
        *(images, labels), batch_size=SIZE, epochs=epochs, shuffle=False, verbose=0
    ).history


def state(model):
    variables = [*model.variables, *loss_scale.inner(model.optimizer).variables]
    return {f"{i} {v.path}": v.numpy() for i, v in enumerate(variables)}


AVERAGES = {"use_ema": True, "weight_decay": 0.1}
ACCUMULATION = {"gradient_accumulation_steps": 2}
STATIC = {"static_scale": 1.0}


@pytest.mark.parametrize(
    ("policy", "inner", "scaling", "compiling", "accelerating"),
    [
        ("float32", ACCUMULATION, STATIC, {}, {"microbatches": 2}),
        ("float32", ACCUMULATION, STATIC, {"steps_per_execution": 2}, {"jit_compile": False}),
        ("mixed_float16", AVERAGES, SMALL_SCALE, {}, {"microbatches": 2, "jit_compile": False}),
        ("mixed_float16", ACCUMULATION, SMALL_SCALE, {}, {}),
        ("mixed_bfloat16", AVERAGES, STATIC, {"run_eagerly": True}, {}),
    ],
    ids=str,
)
def test_the_epoch_is_that_without_the_bad_batches(policy, inner, scaling, compiling, accelerating):
    found = []
    for images, labels in ((BAD, LABELS), (IMAGES[GOOD], LABELS[GOOD])):
        optimizer = tfmp.LossScaleOptimizer(keras.optimizers.Adam(0.1, **inner), **scaling)
        with policies.scope(policy):
            model = tfmp.accelerate(make(optimizer, **compiling), **accelerating)
        found.append((trained(model, images, labels, epochs=2), model))
    (history, model), (expected, clean) = found
    assert history == expected
    wanted = state(clean)
    for (path, value), other in zip(state(model).items(), wanted.values(), strict=True):
        np.testing.assert_array_equal(value, other, err_msg=path)
    assert model.optimizer.skipped_steps.numpy() == 2 * 2
    assert model.optimizer.last_overflow_step.numpy() == 6 + 5
    assert clean.optimizer.skipped_steps.numpy() == 0


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_bad_step_halves_a_dynamic_scale_and_leaves_the_logs(microbatches):
    with policies.scope("mixed_float16"):
        model = make("adam")
    model.optimizer.initial_scale = 64.0
    seen = []
    progress = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: seen.append(logs))
    tfmp.accelerate(model, microbatches=microbatches).fit(
        *(BAD, LABELS), batch_size=SIZE, shuffle=False, verbose=0, callbacks=[progress]
    )
    for step, logs in enumerate(seen):
        assert set(logs) == {"loss", "auc", "accuracy"}
        assert (logs == seen[step - 1]) == (step in (2, 4))
    assert type(model.optimizer) is tfmp.LossScaleOptimizer
    assert model.optimizer.dynamic_scale.numpy() == 16
    assert model.optimizer.iterations.numpy() == 4


def test_what_keras_own_step_does_to_the_statistics():
    """Should Keras mend it, this says so."""
    with policies.scope("mixed_float16"):
        model = make("adam", jit_compile=False)
    history = trained(model, BAD, LABELS)
    assert not np.isfinite(history["loss"][0])
    assert not np.isfinite(model.layers[1].moving_mean.numpy()).all()
    assert np.isfinite(model.layers[0].kernel.numpy()).all()


class Pair(keras.Model):
    """Two models with an optimizer each, of which one may overflow; it logs tensors."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(1), layers.Dense(1)
        self.normalization = layers.BatchNormalization(scale=False, center=False)

    def compile(self, first_optimizer, second_optimizer):
        super().compile()
        self.first_optimizer, self.second_optimizer = first_optimizer, second_optimizer

    def call(self, images):
        return self.second(self.first(self.normalization(images)))

    def train_step(self, data):
        images, factor, *_ = data
        logs = {}
        images = self.normalization(images, training=True)
        parts = {
            "first": (self.first, self.first_optimizer, 1.0),
            "loss": (self.second, self.second_optimizer, tf.reduce_max(factor)),
        }
        for name, (layer, optimizer, by) in parts.items():
            with tf.GradientTape() as tape:
                logs[name] = tf.reduce_mean((layer(images) - 1) ** 2) * by
                loss = optimizer.scale_loss(logs[name])
            variables = layer.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
        return logs


def test_of_two_optimizers_only_the_one_that_overflows_skips():
    model = Pair()
    sgd = keras.optimizers.SGD
    model.compile(tfmp.LossScaleOptimizer(sgd(0.1)), tfmp.LossScaleOptimizer(sgd(0.1)))
    tfmp.accelerate(model)
    factors = np.ones((3 * SIZE, 1), "float32")
    factors[SIZE] = np.inf
    images = IMAGES[: 3 * SIZE]
    fit = {"batch_size": SIZE, "shuffle": False, "verbose": 0}
    model.fit(images[:SIZE], factors[:SIZE], **fit)
    before = {v.path: v.numpy() for v in model.variables}
    logs = model.train_on_batch(images[:SIZE], factors[SIZE : 2 * SIZE], return_dict=True)
    assert logs["loss"] == np.inf  # no metric: it is logged as it is
    assert 0 < logs["first"] < np.inf
    changed = {v.path for v in model.variables if (v.numpy() != before[v.path]).any()}
    assert changed == {v.path for v in model.first.variables}
    assert model.first_optimizer.skipped_steps.numpy() == 0
    assert model.second_optimizer.skipped_steps.numpy() == 1
    assert model.second_optimizer.dynamic_scale.numpy() == 2.0**14
