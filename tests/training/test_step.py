"""The training step: what it counts, what a bad step does, and that XLA compiles all of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp import loss_scale
from tfmp.training import TrainingConfig


def fit_steps(classifier, digits, steps, start_step=0):
    dataset = digits.train(32, seed=0, start_step=start_step)
    return classifier.fit(dataset, steps_per_epoch=steps, verbose=0, shuffle=False).history


def test_an_overflow_is_skipped_and_counted(make_classifier, digits):
    config = TrainingConfig(initial_scale=2.0**126)
    classifier = make_classifier("mixed_float16", config)
    before = [v.numpy() for v in classifier.model.trainable_variables]
    history = fit_steps(classifier, digits, 2)
    assert classifier.step.numpy() == 2
    assert classifier.skipped_steps.numpy() == 2
    assert classifier.bad_steps.numpy() == 2
    assert classifier.first_bad_step.numpy() == 0
    assert float(loss_scale.scale(classifier.optimizer)) == 2.0**124
    for old, variable in zip(before, classifier.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert np.isfinite(history["loss"]).all()


def test_a_good_step_ends_the_count_of_bad_ones(make_classifier, digits):
    classifier = make_classifier("mixed_float16", TrainingConfig(initial_scale=2.0**126))
    fit_steps(classifier, digits, 1)
    classifier.optimizer.dynamic_scale.assign(1.0)
    fit_steps(classifier, digits, 2, start_step=1)
    assert classifier.skipped_steps.numpy() == 1
    assert classifier.bad_steps.numpy() == 0
    assert int(loss_scale.applied_steps(classifier.optimizer)) == 2


def test_a_non_finite_loss_without_scaling_is_bad_but_not_skipped(make_classifier, digits):
    def poison(images, seed):
        return tf.where(tf.equal(seed[1], 1), np.nan, images)

    classifier = make_classifier("float32", augmentation=poison)
    fit_steps(classifier, digits, 3)
    assert classifier.skipped_steps.numpy() == 0
    assert classifier.first_bad_step.numpy() == 1
    assert classifier.bad_steps.numpy() == 2  # its weights are NaN now


def test_evaluation_leaves_the_padding_out(make_classifier, digits):
    classifier = make_classifier()
    logs = classifier.evaluate(digits.test(100), return_dict=True, verbose=0)
    batches = [
        (images[weights > 0], labels[weights > 0])
        for images, labels, weights in digits.test(100).as_numpy_iterator()
    ]
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert len(labels) == 360  # four batches of 100, so 40 are padding
    logits = classifier.model(images, training=False).numpy().astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -log_probs[np.arange(360), labels].mean()
    assert logs["loss"] == pytest.approx(nll, rel=1e-5)
    assert logs["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean(), rel=1e-6)


def test_augmentation_depends_on_seed_and_step(make_classifier, digits):
    images, labels, _ = next(digits.test(16).as_numpy_iterator())
    first, again = make_classifier(), make_classifier()
    a, _ = first.prepare(images, labels)
    b, _ = again.prepare(images, labels)
    np.testing.assert_array_equal(a, b)
    again.step.assign(1)
    c, _ = again.prepare(images, labels)
    assert (a.numpy() != c.numpy()).any()


def test_labels_are_soft(make_classifier, digits):
    images, labels, _ = next(digits.test(16).as_numpy_iterator())
    classifier = make_classifier(label_smoothing=0.1, mixup=0.2)
    mixed, soft = classifier.prepare(images, labels)
    assert mixed.dtype == soft.dtype == tf.float32
    np.testing.assert_allclose(soft.numpy().sum(-1), 1, rtol=1e-6)
    assert soft.numpy().min() == pytest.approx(0.01)
    _, hard = make_classifier().prepare(images, labels)
    np.testing.assert_array_equal(hard, np.eye(10, dtype=np.float32)[labels])


@pytest.mark.parametrize("augmentation", ["shift", "crop", "crop_flip", "flip"])
def test_xla_compiles_augmentation_and_mixup(make_classifier, digits, augmentation):
    config = TrainingConfig(jit_compile="true")
    classifier = make_classifier("mixed_float16", config, augmentation=augmentation, mixup=0.2)
    history = fit_steps(classifier, digits, 2)
    assert np.isfinite(history["loss"]).all()


def test_xla_is_in_force_around_the_augmentation(make_classifier, digits):
    """An operation that XLA does not have fails in the step: so XLA compiled the step."""

    def not_for_xla(images, seed):
        return images + tf.cast(tf.strings.length(tf.strings.as_string(seed[1])), tf.float32)

    plain = make_classifier(augmentation=not_for_xla)
    fit_steps(plain, digits, 1)
    compiled = make_classifier(
        "float32", TrainingConfig(jit_compile="true"), augmentation=not_for_xla
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?i)xla|compil"):
        fit_steps(compiled, digits, 1)


def test_the_model_saves_in_plain_keras(make_classifier, digits, tmp_path):
    classifier = make_classifier("mixed_float16")
    fit_steps(classifier, digits, 2)
    classifier.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert getattr(loaded, "optimizer", None) is None
    images = next(digits.test(8).as_numpy_iterator())[0]
    np.testing.assert_array_equal(loaded(images), classifier.model(images))
