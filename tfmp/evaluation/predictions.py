"""The logits of a model for every example of a data set."""

import dataclasses
import time

import numpy as np
import tensorflow as tf

from tfmp import policies
from tfmp.data import to_device
from tfmp.errors import UserError


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
        partial = file.with_name(file.name + ".partial")
        with open(partial, "wb") as stream:
            np.savez_compressed(stream, logits=self.logits, labels=self.labels, **more)
        partial.replace(file)


def predict(model, dataset, *, jit_compile=False, examples=None) -> Predictions:
    """Predicts all of a data set, and keeps the logits in float32.

    Args:
        model: Built Keras model: images [batch, height, width, channels] to logits [batch,
            classes]. It computes under its own policy.
        dataset: A finite `tf.data.Dataset` of (images uint8, labels int32 [batch], weights float32
            [batch]) in batches of one size, as the `test` of a `tfmp.data.Data` gives it. What has
            weight 0 is left out.
        jit_compile: Whether XLA compiles the prediction.
        examples: Number of examples, to show progress where it takes long.

    Raises:
        UserError: The outputs are not [batch, classes].
    """

    @tf.function(jit_compile=jit_compile, autograph=False)
    def logits_of(images):
        return tf.cast(model(images, training=False), tf.float32)

    logits, labels, done, shown = [], [], 0, time.perf_counter()
    for images, batch_labels, weights in to_device(dataset):
        kept = weights.numpy() > 0
        outputs = logits_of(images)
        if outputs.shape.rank != 2:
            raise UserError(
                f"Expected outputs [batch, classes]. Received: {list(outputs.shape)} from "
                f"{model.name!r}."
            )
        logits.append(outputs.numpy()[kept])
        labels.append(batch_labels.numpy()[kept].astype(np.int64))
        done += int(kept.sum())
        if time.perf_counter() - shown > 10:
            shown = time.perf_counter()
            print(f"  {done:,} of {examples or 'unknown':,} examples", flush=True)
    return Predictions(np.concatenate(logits), np.concatenate(labels))


def under(model, policy):
    """The same model with the same weights, computing under another policy.

    Args:
        model: Built Keras model; it stays as it is, unless it is a subclass with a `call` of its
            own, which `tfmp.policies.set_policy` changes in place.
        policy: One of `tfmp.policies.POLICIES`.
    """
    return policies.set_policy(model, policy)
