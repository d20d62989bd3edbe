"""The training step: what it counts, what a bad step does, and that XLA compiles all of it."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp import errors, loss_scale
from tfmp.data import pipeline
from tfmp.training import Learner, TrainingConfig, compile_learner, optimizers


def fit_steps(classifier, digits, steps, start_step=0):
    dataset = digits.train(32, seed=0, start_step=start_step)
    return classifier.fit(dataset, steps_per_epoch=steps, verbose=0, shuffle=False).history


def state(classifier):
    """All that a step may change, apart from the optimizer's own counters."""
    metrics = [v for metric in classifier.metrics for v in metric.variables]
    inner = loss_scale.inner(classifier.optimizer).variables
    variables = [*classifier.model.variables, *inner, *metrics]
    return {f"{i} {v.path}": v.numpy() for i, v in enumerate(variables)}


def assert_same(before, after):
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)


def poison(*steps):
    """An augmentation that makes the images of some steps, counted from 0, infinite."""

    def augmentation(images, seed):
        return tf.where(tf.reduce_any(tf.equal(seed[1], steps)), np.inf, images)

    return augmentation


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        ("mixed_float16", {"jit_compile": "true"}),
        ("mixed_float16", {"gradient_accumulation_steps": 2, "optimizer": "adamw", "ema": 0.9}),
        ("mixed_float16", {"steps_per_execution": 2}),
        ("mixed_bfloat16", {}),
        ("float32", {}),
    ],
)
def test_a_bad_step_is_counted_and_changes_nothing_else(make_classifier, digits, policy, changes):
    config = TrainingConfig(**changes)
    calls = 2 // (config.steps_per_execution or 1)  # of two steps in all
    classifier = make_classifier(policy, config, augmentation=poison(2, 3))
    images, labels, _ = next(digits.test(16).as_numpy_iterator())
    run = classifier.make_train_function()  # `fit` would reset the metrics and end the average
    for _ in range(calls):
        run(iter([(images, labels)] * 2))
    before = state(classifier)
    assert "seed_generator" in " ".join(before) and "moving_mean" in " ".join(before)
    for _ in range(calls):
        run(iter([(images, labels)] * 2))
    assert_same(before, state(classifier))
    optimizer = classifier.optimizer
    assert optimizer.skipped_steps.numpy() == optimizer.consecutive_skips.numpy() == 2
    assert optimizer.last_overflow_step.numpy() == int(classifier.step) == 4
    scale = 2.0**13 if policy == "mixed_float16" else 1.0
    assert float(loss_scale.scale(optimizer)) == scale


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_good_step_ends_the_count_of_bad_ones(make_classifier, digits, policy):
    classifier = make_classifier(policy, augmentation=poison(1, 2))
    history = fit_steps(classifier, digits, 4)
    optimizer = classifier.optimizer
    assert optimizer.skipped_steps.numpy() == 2
    assert optimizer.last_overflow_step.numpy() == 3
    assert optimizer.consecutive_skips.numpy() == 0
    assert optimizer.iterations.numpy() == 2
    assert int(classifier.step) == 4
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(v).all() for v in state(classifier).values())


def test_the_parts_of_a_batch_make_one_update(make_classifier, digits):
    config = TrainingConfig(gradient_accumulation_steps=2, epochs=2, warmup_epochs=0)
    classifier = make_classifier(config=config)
    kernel = classifier.model.trainable_variables[0]
    before = kernel.numpy()
    fit_steps(classifier, digits, 1)
    assert classifier.optimizer.iterations.numpy() == int(classifier.step) == 1
    assert (kernel.numpy() != before).any()


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
    loss_scale.inner(again.optimizer).variables[0].assign(1)
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


def test_xla_compiles_augmentation_and_mixup(make_classifier, digits):
    config = TrainingConfig(jit_compile="true")
    classifier = make_classifier("mixed_float16", config, augmentation="crop_flip", mixup=0.2)
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
    with pytest.raises(errors.UserError, match="XLA can't compile AsString"):
        fit_steps(compiled, digits, 1)


def test_the_model_saves_in_plain_keras(make_classifier, digits, tmp_path):
    classifier = make_classifier("mixed_float16")
    fit_steps(classifier, digits, 2)
    classifier.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert getattr(loaded, "optimizer", None) is None
    images = next(digits.test(8).as_numpy_iterator())[0]
    np.testing.assert_array_equal(loaded(images), classifier.model(images))


class Summed(keras.losses.Loss):
    """A loss of each number, where one of each example is what weights would go with."""

    def __init__(self):
        super().__init__(reduction="mean_with_sample_weight")

    def call(self, y_true, y_pred):
        return keras.ops.square(y_true - y_pred)


class Vectors(Learner):
    """Several numbers of an example, by a loss and metrics of Keras' own."""

    def target_spec(self):
        return keras.KerasTensor(self.model.output_shape)

    def make_loss(self):
        return keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")

    def make_metrics(self):
        names = keras.metrics.MeanAbsoluteError, keras.metrics.RootMeanSquaredError
        return [make(name=make.__name__) for make in names]


@pytest.mark.parametrize("batch_size", [3, 4])  # as many as there are numbers, and more
def test_padding_does_not_count_where_targets_are_vectors(batch_size):
    x, y = np.random.default_rng(0).normal(size=(2, 10, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    learner = Vectors(model)
    config = TrainingConfig(epochs=1, warmup_epochs=0)
    compile_learner(learner, optimizers.build(config, model, 10), jit_compile=False)
    batches = pipeline.in_memory_evaluation(x, y)(batch_size)
    logs = learner.evaluate(batches, return_dict=True, verbose=0)
    wrong = model(x).numpy() - y
    mean = np.mean(wrong**2)
    expected = {"loss": mean, "RootMeanSquaredError": mean**0.5}
    expected |= {"MeanAbsoluteError": np.mean(np.abs(wrong))}
    assert logs == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"make_loss": lambda self: keras.losses.MeanSquaredError()}, "sum_over_batch_size"),
        ({"monitor": "psnr"}, "loss, MeanAbsoluteError, RootMeanSquaredError, half. Received: p"),
        ({"monitor": "half"}, None),
        (
            {"make_loss": lambda self: Summed()},
            r"\[batch\] of \[batch, 3\], .*\[batch, 3\] of Summed",
        ),
    ],
)
def test_a_loss_that_does_not_fit_padding_and_an_unknown_monitor_are_refused(attributes, said):
    attributes |= {"derived": lambda self, means: {"half": means["loss"] / 2}}
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    learner = type("Mine", (Vectors,), attributes)(model)
    optimizer = optimizers.build(TrainingConfig(), model, 10)
    refused = pytest.raises(errors.UserError, match=said) if said else contextlib.nullcontext()
    with refused:
        compile_learner(learner, optimizer, jit_compile=False)
