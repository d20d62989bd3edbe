"""Segmentation: the loss by hand, metrics of the summed confusion matrix, float16's range."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp import policies
from tfmp.data import augment
from tfmp.training import TrainingConfig, compile_learner, optimizers
from tfmp.training.segmentation import MeanDice, MeanIoU, PixelAccuracy, PixelLoss, Segmenter

RNG = np.random.default_rng(0)
CLASSES = 4


def some(batch=6, size=8):
    """Masks of the classes 0 to 2 and logits of four, of which the last is rarely the largest."""
    masks = RNG.integers(0, CLASSES - 1, (batch, size, size))
    return masks, (RNG.normal(size=(batch, size, size, CLASSES)) - [0, 0, 0, 1]).astype("float32")


def by_hand(masks, logits):
    """(mean IoU, mean Dice), class by class."""
    found = logits.argmax(-1)
    classes = [k for k in range(CLASSES) if (masks == k).any() or (found == k).any()]
    both = [((masks == k) & (found == k)).sum() for k in classes]
    either = [((masks == k) | (found == k)).sum() for k in classes]
    sizes = [(masks == k).sum() + (found == k).sum() for k in classes]
    return np.mean(np.divide(both, either)), np.mean(2 * np.divide(both, sizes))


def test_means_are_of_the_confusion_matrix_of_all_batches():
    masks, logits = some()
    masks[0] = 0  # batches differ, so that a mean of their means is another number
    metrics = MeanIoU(CLASSES), MeanDice(CLASSES)
    for metric, expected in zip(metrics, by_hand(masks, logits), strict=True):
        ofbatches = []
        for k in range(0, 6, 2):
            metric.update_state(masks[k : k + 2], logits[k : k + 2])
            alone = type(metric)(CLASSES)
            ofbatches.append(float(alone(masks[k : k + 2], logits[k : k + 2])))
        assert float(metric.result()) == pytest.approx(expected, rel=1e-6)
        assert abs(np.mean(ofbatches) - expected) > 1e-3
        padded = np.concatenate([masks, np.zeros_like(masks)]), np.concatenate([logits, logits])
        weights = np.repeat([1.0, 0.0], 6)[:, None, None] * np.ones((12, 8, 8))
        metric.reset_state()
        assert float(metric(*padded, weights)) == pytest.approx(expected, rel=1e-6)
    theirs = keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False)
    assert float(theirs(masks, logits)) == pytest.approx(by_hand(masks, logits)[0], rel=1e-6)
    assert float(MeanIoU(CLASSES).result()) == 0.0


def test_classes_that_never_occur_do_not_count():
    masks = np.zeros((1, 2, 2), int)
    logits = np.eye(CLASSES, dtype="float32")[np.array([[[0, 0], [0, 1]]])]
    assert float(MeanIoU(CLASSES)(masks, logits)) == pytest.approx((3 / 4 + 0) / 2)
    assert float(MeanDice(CLASSES)(masks, logits)) == pytest.approx((6 / 7 + 0) / 2)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_loss_by_its_formula_and_in_float32_under_any_policy(jit_compile):
    masks, logits = some(2, 320)  # 102,400 pixels, more than the largest float16
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    truth = np.eye(CLASSES)[masks]
    entropy = -np.log((shares * truth).sum(-1))
    common, sizes = (shares * truth).sum((1, 2)), (shares + truth).sum((1, 2))
    dice = 1 - ((2 * common + 1) / (sizes + 1)).mean(-1)
    with policies.scope("mixed_float16"):
        loss = PixelLoss(0.5)
    run = tf.function(loss, jit_compile=jit_compile)
    value = run(tf.constant(masks), tf.constant(logits))
    assert value.dtype == tf.float32
    assert float(value) == pytest.approx(entropy.mean() + 0.5 * dice.mean(), rel=1e-5)
    # Of a part of the examples, as padding leaves or a replica has.
    weights = np.array([1.0, 0.0])[:, None, None] * np.ones((2, 320, 320))
    assert float(loss(masks, logits, weights)) == pytest.approx(
        entropy[0].mean() + 0.5 * dice[0], rel=1e-5
    )
    assert float(PixelLoss()(masks, logits)) == pytest.approx(entropy.mean(), rel=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_pixels_of_no_class_count_nowhere(jit_compile):
    masks, logits = some(3, 8)
    void = np.random.default_rng(1).random(masks.shape) < 0.3
    void[2] = True  # an image of which nothing is known
    unknown = np.where(void, -1, masks)
    loss = tf.function(PixelLoss(0.5), jit_compile=jit_compile)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -np.log((shares * np.eye(CLASSES)[masks]).sum(-1))
    known = [entropy[i][~void[i]].mean() for i in range(2)]
    kept = ~void[..., None]
    truth, found = np.eye(CLASSES)[masks] * kept, shares * kept
    dice = (2 * (truth * found).sum((1, 2)) + 1) / ((truth + found).sum((1, 2)) + 1)
    expected = (sum(known) + 0.5 * (1 - dice.mean(-1)).sum()) / 3
    value = loss(tf.constant(unknown), tf.constant(logits))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    with tf.GradientTape() as tape:
        outputs = tf.constant(logits)
        tape.watch(outputs)
        value = loss(tf.constant(unknown), outputs)
    gradient = tape.gradient(value, outputs).numpy()
    assert np.isfinite(gradient).all() and not gradient[void].any() and gradient[~void].any()
    right = logits.argmax(-1) == masks
    accuracy = PixelAccuracy()
    accuracy.update_state(tf.constant(unknown), tf.constant(logits))
    assert float(accuracy.result()) == pytest.approx(right[~void].mean(), rel=1e-6)
    weights = np.array([1.0, 0.0, 1.0])[:, None, None] * np.ones(masks.shape)
    accuracy.reset_state()
    accuracy.update_state(tf.constant(unknown), tf.constant(logits), weights)
    assert float(accuracy.result()) == pytest.approx(right[0][~void[0]].mean(), rel=1e-6)
    iou, theirs = MeanIoU(CLASSES), keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False)
    iou.update_state(tf.constant(unknown), tf.constant(logits))
    theirs.update_state(masks, logits, sample_weight=~void)
    assert float(iou.result()) == pytest.approx(float(theirs.result()), rel=1e-6)


def tiny(policy="float32", jit_compile=False, **changes):
    """A compiled segmenter of a few weights."""
    keras.utils.set_random_seed(0)
    config = TrainingConfig(epochs=2, warmup_epochs=0, **changes)
    with policies.scope(policy):
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(8, 3, padding="same"),
                keras.layers.BatchNormalization(),
                keras.layers.ReLU(),
                keras.layers.Conv2D(CLASSES, 1, dtype="float32"),
            ]
        )
    learner = Segmenter(model, augment.shift, dice=0.5)
    parts = config.gradient_accumulation_steps
    optimizer = optimizers.build(config, model, 10)
    compile_learner(learner, optimizer, jit_compile=jit_compile, microbatches=parts)
    return learner


def batches(count=24):
    masks = RNG.integers(0, CLASSES, (count, 8, 8)).astype("int32")
    return (60 * masks + RNG.normal(0, 5, masks.shape) + 30)[..., None].astype("uint8"), masks


@pytest.mark.parametrize(
    ("policy", "jit_compile", "parts"),
    [("float32", False, 1), ("mixed_float16", True, 1), ("mixed_bfloat16", True, 2)],
)
def test_it_learns_and_evaluates_without_the_padding(policy, jit_compile, parts):
    learner = tiny(policy, jit_compile, gradient_accumulation_steps=parts)
    images, masks = batches()
    data = tf.data.Dataset.from_tensor_slices((images, masks)).batch(8)
    history = learner.fit(
        data.repeat(), steps_per_epoch=12, epochs=2, shuffle=False, verbose=0
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert set(history) == {"loss", "accuracy", "mean_iou", "mean_dice"}
    # Twice as many examples as count: the others are padding.
    padded = tf.concat([images, images[::-1]], 0), tf.concat([masks, masks[::-1] * 0], 0)
    weights = tf.repeat([1.0, 0.0], len(masks))
    logs = learner.evaluate(
        tf.data.Dataset.from_tensor_slices((*padded, weights)).batch(16),
        return_dict=True,
        verbose=0,
    )
    iou, dice = by_hand(masks, learner.model.predict(images, verbose=0))
    assert logs["mean_iou"] == pytest.approx(iou, abs=0.01)
    assert logs["mean_dice"] == pytest.approx(dice, abs=0.01)
