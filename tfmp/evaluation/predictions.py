"""The logits of a model for every example of a data set."""

import dataclasses
import functools
import time

import numpy as np
import tensorflow as tf

from tfmp import files
from tfmp.data import DataError, crops, to_device
from tfmp.errors import OutOfMemoryError, UserError

PROGRESS_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says about each example, in the data set's order.

    Attributes:
        logits: [examples, classes] float32.
        labels: [examples] int64.
    """

    logits: np.ndarray
    labels: np.ndarray

    def save(self, file, **more):
        """Writes `logits`, `labels` and further arrays to a .npz file, whole or not at all."""
        files.write_arrays(file, {"logits": self.logits, "labels": self.labels, **more})


def forward(model, *, jit_compile=False):
    """The function images -> logits of a model; compiled once for each dtype of images.

    Args:
        model: Built Keras model: images [batch, height, width, channels] to logits [batch,
            classes]. It computes under its own policy.
        jit_compile: Whether XLA compiles it.

    Returns:
        A function of images whose logits are float32.
    """

    def logits_of(images):
        return tf.cast(model(images, training=False), tf.float32)

    return traced(logits_of, jit_compile=jit_compile)


def traced(function, *, jit_compile):
    """A function of tensors, compiled once for their shapes and dtypes.

    (TensorFlow warns of a `tf.function` that is traced again, and of many that are the same.)

    Args:
        function: Function of tensors.
        jit_compile: Whether XLA compiles it.
    """

    @functools.cache
    def compiled(*specs):
        made = tf.function(function, jit_compile=jit_compile, autograph=False)
        return made.get_concrete_function(*specs)

    return lambda *given: compiled(*(tf.TensorSpec(x.shape, x.dtype) for x in given))(*given)


def predict(model, dataset, *, jit_compile=False, examples=None, compiled=None) -> Predictions:
    """Predicts all of a data set, and keeps the logits in float32.

    Args:
        model: Built Keras model: images [batch, height, width, channels] to logits [batch,
            classes]. It computes under its own policy. Not looked at beside `compiled`.
        dataset: A finite `tf.data.Dataset` of (images uint8, labels int32 [batch], weights float32
            [batch]) in batches of one size, as the `test` of a `tfmp.data.Data` gives it. What has
            weight 0 is left out.
        jit_compile: Whether XLA compiles the prediction.
        examples: Number of examples, to show progress where it takes long.
        compiled: What `forward` made of the model before; None makes it.

    Raises:
        OutOfMemoryError: The device's memory does not hold a batch.
        DataError: An image could not be read or decoded.
        UserError: The outputs are probabilities.
    """
    logits_of = compiled or forward(model, jit_compile=jit_compile)
    logits, labels, done, shown = [], [], 0, time.perf_counter()
    try:
        for images, batch_labels, weights in to_device(dataset):
            kept = weights.numpy() > 0
            logits.append(logits_of(images).numpy()[kept])
            labels.append(batch_labels.numpy()[kept].astype(np.int64))
            done += int(kept.sum())
            if time.perf_counter() - shown > PROGRESS_SECONDS:
                shown = time.perf_counter()
                print(f"  {done:,}" + (f" of {examples:,}" if examples else ""), flush=True)
    except tf.errors.ResourceExhaustedError as error:
        size = int(images.shape[0])
        raise OutOfMemoryError(
            f"Out of memory while predicting {size} images at once. Lower --batch_size."
        ) from error
    except tf.errors.OpError as error:
        damage = crops.damage(error)
        if damage is None:
            raise
        raise DataError(f"An image is damaged or gone: {damage}. Remove or replace it.") from error
    found = Predictions(np.concatenate(logits), np.concatenate(labels))
    # Where `with_logits` can't see it, as in a softmax that is no layer.
    if (found.logits >= 0).all() and np.allclose(found.logits.sum(-1), 1, atol=0.01):
        raise UserError(
            "Expected a model that gives logits. Received: one whose outputs are probabilities. "
            "Save it without its last operation."
        )
    return found
