"""What is said of attacks: what survives, masked gradients, and attacks that can't be trusted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfmp import data, errors, evaluation, policies
from tfmp.evaluation import adversarial

PIXEL = np.full((200, 1, 1, 1), 127, np.uint8)
ZEROS = np.zeros(200, np.int64)


def slope(weight, policy="float32"):
    """Logits (0, weight x) of a pixel x: what is climbed."""
    with policies.scope(policy):
        images = keras.Input((1, 1, 1))
        model = keras.Model(images, layers.Dense(2, use_bias=False)(layers.Flatten()(images)))
    model.set_weights([np.array([[0.0, weight]])])
    return model


def wrong_where(condition):
    """A model of class 1 where a condition of the pixel's change from 127 holds."""

    def logits(images):
        wrong = tf.cast(condition(tf.reshape(images, [-1]) - 127), tf.float32)
        return tf.stack([1 - wrong, wrong], 1)

    return logits


def attacked(compiled, gradients, epsilons=(2.0, 8.0), norm="linf", **settings):
    settings = evaluation.AttackSettings({norm: epsilons}, **settings)
    jit_compile = dict.fromkeys(gradients, False)
    return evaluation.attack(compiled, gradients, PIXEL, ZEROS, settings, jit_compile=jit_compile)


def failed(found):
    return [check["check"] for check in found["checks"] if not check["holds"]]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_threshold_by_hand(norm):
    found = attacked(wrong_where(lambda change: change > 5), {"float32": slope(0.01)}, norm=norm)
    assert found["examples"] == 200 and found["accuracy"] == 1
    assert found["gradients"] == {"float32": {"zero": 0, "non_finite": 0}}
    for method in ("fgsm float32", "pgd float32", "worst"):
        assert found[norm][method] == {"2": 1.0, "8": 0.0}
    assert found[norm]["noise"]["2"] == 1 and 0.3 < found[norm]["noise"]["8"] < 0.7
    assert found["differences"] == [] and failed(found) == [] and len(found["checks"]) == 6


def test_close_radii_have_names_of_their_own():
    found = attacked(
        lambda images: -images[:, 0, 0, :], {"float32": slope(0.01)}, (0.5, 2, 2.0000001)
    )
    assert list(found["linf"]["worst"]) == ["0.5", "2", "2.0000001"]


def test_restarts_and_draws_add_up():
    compiled, up = wrong_where(lambda change: change > 5), {"float32": slope(0.01)}
    noise = [attacked(compiled, up, restarts=n)["linf"]["noise"]["8"] for n in (1, 4)]
    assert noise[0] == pytest.approx(1 / 2, abs=0.1) and noise[1] == pytest.approx(1 / 16, abs=0.06)


def test_batches_change_nothing_but_what_is_drawn():
    compiled, up = wrong_where(lambda change: change > 5), {"float32": slope(0.01)}
    found = [attacked(compiled, up, batch_size=size) for size in (7, 200, 500)]
    for method in ("fgsm float32", "pgd float32"):
        assert found[0]["linf"][method] == found[1]["linf"][method] == found[2]["linf"][method]
    assert attacked(compiled, up, seed=1)["linf"]["noise"] != found[2]["linf"]["noise"]
    assert attacked(compiled, up)["linf"] == attacked(compiled, up)["linf"]


def test_masked_gradients_are_found():
    # Logits of 0 and -25 leave a gradient of e^-25, which float16 can't hold.
    weight = -25 / 127
    gradients = {
        "mixed_float16": slope(weight, "mixed_float16"),
        "float32": slope(weight),
    }
    found = attacked(wrong_where(lambda change: change < -7.5), gradients)
    assert found["gradients"]["mixed_float16"] == {"zero": 200, "non_finite": 0}
    assert found["gradients"]["float32"]["zero"] == 0
    (difference,) = found["differences"]
    assert difference["norm"] == "linf" and difference["epsilon"] == 8
    assert difference["gradients"] == "mixed_float16" and difference["p"] < 1e-6
    assert difference["accuracy"]["mixed_float16"] > 0.9 and difference["accuracy"]["float32"] == 0
    assert found["linf"]["worst"]["8"] == 0 and failed(found) == []


def test_checks_that_fail():
    lost = {"float32": slope(0.0)}
    found = attacked(wrong_where(lambda change: change > 7.5), lost)
    assert failed(found) == ["noise of 8 is weaker than PGD"]
    assert found["gradients"]["float32"]["zero"] == 200
    shell = wrong_where(lambda change: (change > 1) & (change < 3))
    found = attacked(shell, {"float32": slope(0.01)})
    assert failed(found) == ["epsilon 8 is no easier than 2"]
    # One step of PGD, of 2.5 x 8 / 100, does not get far from where it starts.
    climbs = {"float32": slope(0.01)}
    found = attacked(wrong_where(lambda change: change > 7.9), climbs, (8.0,), steps=100)
    assert failed(found) == []


def test_logits_that_are_not_finite_are_wrong():
    found = attacked(lambda images: tf.fill([len(images), 2], np.nan), {"float32": slope(np.nan)})
    assert found["accuracy"] == 0 and found["linf"]["worst"] == {"2": 0.0, "8": 0.0}
    assert found["gradients"] == {"float32": {"zero": 0, "non_finite": 200}}


def test_a_sample_keeps_the_order():
    digits = data.load("digits")
    images, labels = next(iter(digits.test(360)))[:2]
    drawn, drawn_labels = evaluation.sample(digits.test(100), 360, 50, seed=0)
    assert drawn.shape == (50, 8, 8, 1) and drawn.dtype == np.uint8
    places = [int((images.numpy() == x).all((1, 2, 3)).argmax()) for x in drawn]
    assert places == sorted(places) and len(set(places)) == 50
    np.testing.assert_array_equal(drawn_labels, labels.numpy()[places])
    again, _ = evaluation.sample(digits.test(360), 360, 50, seed=0)
    other, _ = evaluation.sample(digits.test(360), 360, 50, seed=1)
    assert (again == drawn).all() and (other != drawn).any()
    assert len(evaluation.sample(digits.test(100), 360, 1000, seed=0)[1]) == 360


def test_errors_that_a_user_can_mend(monkeypatch):
    def full(_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    with pytest.raises(errors.OutOfMemoryError, match="attacking 64 images at once"):
        attacked(full, {"float32": slope(0.01)}, batch_size=64)
    settings = evaluation.AttackSettings({"linf": (1.0,)})
    with pytest.raises(errors.UserError, match="Expected images to attack"):
        adversarial.attack(full, {}, PIXEL[:0], ZEROS[:0], settings, jit_compile={})
