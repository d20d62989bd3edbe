"""Images of other data sets, as a model takes them, and how well its scores tell them apart."""

import dataclasses

import tensorflow as tf

from tfmp import data as tfmp_data
from tfmp.errors import UserError
from tfmp.evaluation.predictions import predict
from tfmp.metrics import detection


def outside_data(names, data, *, data_dir=None, manual_dir=None):
    """Loads data sets that are out of distribution, in the size and channels of another.

    Args:
        names: Names that `tfmp.data.load` takes.
        data: The `tfmp.data.Data` that is in distribution, as the model takes it.
        data_dir: As for `tfmp.data.load`.
        manual_dir: Likewise.

    Returns:
        A dict of `tfmp.data.Data` by name.

    Raises:
        UserError: A set is named twice, or the one in distribution, or can't be read, or has no
            test images.
    """
    if not names:
        raise UserError(
            "Expected data sets out of distribution, such as --ood=mnist,folder:PATH. Received: "
            "none."
        )
    found, shape = {}, data.input_shape
    for name in names:
        if name in found or name == data.name:
            raise UserError(
                f"Expected each data set out of distribution once, and other ones than {data.name}"
                f", which is in distribution. Received: {', '.join(names)}."
            )
        # Embedded sets have a size of their own; others are cut to the model's as they are read.
        size = None if name in tfmp_data.DATASETS else shape[0]
        other = tfmp_data.load(name, data_dir=data_dir, manual_dir=manual_dir, image_size=size)
        if other.test is None:
            raise UserError(f"Expected a data set with test images. Received: {name}, without.")
        check_channels(name, other.input_shape[-1], shape[-1])
        found[name] = _fitted(other, shape)
    return found


def _fitted(other, shape):
    """The data with test images of a shape."""
    if tuple(other.input_shape) == tuple(shape):
        return other

    def test(batch_size):
        return other.test(batch_size).map(
            lambda images, labels, weights: (fit(images, shape), labels, weights),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    return dataclasses.replace(other, input_shape=tuple(shape), test=test)


def check_channels(name, have, want):
    """Refuses images that `fit` can't bring to other channels.

    Raises:
        UserError: They are neither gray nor color, or others are wanted.
    """
    if have != want and (have not in (1, 3, 4) or want not in (1, 3)):
        raise UserError(
            f"Expected images of {want} channels, as the model takes them. Received: {name}, of "
            f"{have}."
        )


def fit(images, shape):
    """Images in another size and of other channels.

    Args:
        images: [batch, height, width, channels] uint8; 1 channel is gray, 3 color, 4 with alpha.
        shape: Height, width and channels to make; 1 or 3 channels.

    Returns:
        [batch, *shape] uint8, resized bilinearly, with antialiasing where they shrink.
    """
    have, want = images.shape[-1], shape[-1]
    if have == 4 and want != 4:
        images, have = images[..., :3], 3
    if (have, want) == (1, 3):
        images = tf.image.grayscale_to_rgb(images)
    elif (have, want) == (3, 1):
        images = tf.image.rgb_to_grayscale(images)
    if tuple(images.shape[1:3]) != tuple(shape[:2]):
        resized = tf.image.resize(tf.cast(images, tf.float32), shape[:2], antialias=True)
        images = tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8)
    return images


def predict_others(compiled, others, batch_size):
    """Predicts the test images of data sets out of distribution.

    Args:
        compiled: What `forward` made of the model.
        others: `tfmp.data.Data` by name.
        batch_size: Images predicted at once.

    Returns:
        `Predictions` by name; their labels have no meaning for the model.
    """
    seen = {}
    for name, other in others.items():
        examples = other.sizes["test"]
        print(f"  predicting {examples:,} of {name} ...", flush=True)
        seen[name] = predict(None, other.test(batch_size), examples=examples, compiled=compiled)
    return seen


def detect(seen, own):
    """How well the scores of a model tell its own test images from those of other data sets.

    Args:
        seen: `Predictions` by name, of images out of distribution.
        own: The `Predictions` of the test images in distribution.

    Returns:
        A dict: `examples` in distribution, and `against`: name -> `examples`, `non_finite`, and
        for each score what `tfmp.metrics.detection.detection` gives.
    """
    inside = detection.scores(own.logits)
    against = {}
    for name, predictions in seen.items():
        outside = detection.scores(predictions.logits)
        failed = int((outside["max_logit"] != outside["max_logit"]).sum())
        against[name] = {"examples": len(predictions.labels), "non_finite": failed} | {
            score: detection.detection(inside[score], outside[score]) for score in inside
        }
    return {"examples": len(own.labels), "against": against}
