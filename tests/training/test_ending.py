"""What a run must have come to at its end, and which of its epochs is the best."""

import math
import types

import keras
import numpy as np
import pytest

from tfmp import errors, workers
from tfmp.training import ending, results

GOOD = "epoch,loss,val_loss,val_accuracy\n0,nan,2.0,0.9\n1,1.5,1.0,0.5\n"


@pytest.fixture
def session(tmp_path):
    (tmp_path / "metrics.csv").write_text(GOOD)
    return types.SimpleNamespace(worker=workers.ALONE, workdir=tmp_path)


def skip(classifier, *good):
    """Steps of zero gradients, or of NaN."""
    for finite in good:
        variables = classifier.model.trainable_variables
        value = 0.0 if finite else np.nan
        gradients = [keras.ops.full(v.shape, value) for v in variables]
        classifier.optimizer.apply(gradients, variables)


def test_the_last_epoch_has_a_good_step(make_classifier, session):
    classifier = make_classifier()
    skip(classifier, False, False, True, False)
    ending.check_training(classifier, 2, session)
    skip(classifier, False)
    ending.check_training(classifier, 1, session)  # few steps: the scale is finding its place
    skip(classifier, False)
    with pytest.raises(errors.NonFiniteError) as ended:
        ending.check_training(classifier, 2, session)
    said = str(ended.value)
    assert "the gradients of every step of the last epoch, at step 6" in said
    places = [said.index(x) for x in ("inputs and targets", "--learning_rate", "--policy=float32")]
    assert places == sorted(places)


def test_the_run_has_a_good_step(make_classifier, session):
    classifier = make_classifier("mixed_float16")
    skip(classifier, False, False)
    with pytest.raises(errors.NonFiniteError, match=r"of every step of the run.*--initial_scale"):
        ending.check_training(classifier, 2, session)


@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_the_last_validation_loss_is_finite(make_classifier, session, loss):
    classifier = make_classifier()
    ending.check_training(classifier, 2, session)
    (session.workdir / "metrics.csv").write_text(GOOD.replace("1.0", loss))
    with pytest.raises(errors.NonFiniteError, match=f"val_loss is {loss} at the end"):
        ending.check_training(classifier, 2, session)
    (session.workdir / "metrics.csv").unlink()
    ending.check_training(classifier, 2, session)


def test_the_test_loss_is_finite_or_what_the_learner_goes_by(make_classifier):
    classifier = make_classifier()
    ending.check(classifier, "test", {"test_loss": 1.0, "test_accuracy": math.nan})
    ending.check(classifier, "test", {})
    for values in ({"test_loss": math.inf}, {"test_accuracy": math.nan}):
        with pytest.raises(errors.NonFiniteError, match="Look for NaN"):
            ending.check(classifier, "test", values)


def test_an_epoch_without_a_good_step_is_not_the_best(make_classifier):
    classifier = make_classifier()
    rows = [
        {"epoch": 0, "loss": math.nan, "val_accuracy": 0.9},
        {"epoch": 1, "loss": 1.5, "val_accuracy": 0.5},
        {"epoch": 2, "loss": 2.5, "val_accuracy": math.nan},
    ]
    assert results._best(rows, classifier) == {"epoch": 2, "val_accuracy": 0.5}
    rows = [{"epoch": row["epoch"], "loss": row["loss"]} for row in rows]
    assert results._best(rows, classifier) == {"epoch": 2, "loss": 1.5}
    assert results._best(rows[:1], classifier) == {}
