"""Models whose gradients or updates half loses, on the batch that is given."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from cases.probed import Bad, around, normal, trained

# What is lost on the way back.


def norm_of_zeros():
    """The slope of a norm at zero: its epsilon of 1e-9 is nothing in float16."""

    def norm(x):
        return ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + 1e-9)

    return trained(around(norm), normal(8, 8) * (np.arange(8) % 2)[:, None])


def summed_loss():
    """Weight gradients that overflow in their sum over a large batch."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(4, name="first"),
            layers.Rescaling(1e-3, dtype="float32"),
            layers.Dense(4, dtype="float32", name="head"),
        ]
    )
    return trained(model, normal(256, 8, shift=2000), lambda y, p: 1e6 * ops.sum(p, axis=-1))


def saturated():
    """A sigmoid of 9 to 11 is 1 in float16, and its slope 0."""
    return trained(around(lambda x: ops.sigmoid(x * 0.1 + 10) * 8), normal(8, 8))


def no_loss_scale(scaled=False):
    """tensorflow/tensorflow#47884: a mean over many outputs, without a loss scale."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(8, 3, padding="same", name="second")(x)
    x = layers.Conv2D(1, 1, dtype="float32", name="head")(x)
    model = keras.Model(inputs, x)

    def loss(labels, outputs):
        return 1e-5 * ops.mean(ops.square(outputs - labels))

    model.compile(keras.optimizers.Adam(), loss, auto_scale_loss=scaled)
    return model, normal(4, 16, 16, 3, scale=0.1), np.zeros((4, 16, 16, 1), np.float32)


def half_weights(policy=None):
    """Weights in float16 that a small step doesn't move."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="only", dtype=policy)])
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    return model, normal(8, 4), normal(8, 4)


class Stepping(keras.Model):
    """A `train_step` that ports what Keras 2 did: the optimizer unscales gradients itself now."""

    def __init__(self, by_hand):
        super().__init__()
        self.by_hand = by_hand
        self.first = layers.Dense(4, name="first")
        self.head = layers.Dense(4, dtype="float32", name="head")

    def call(self, inputs):
        return self.head(self.first(inputs))

    def train_step(self, data):
        inputs, labels, *_ = data
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(self(inputs, training=True) - labels))
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        if self.by_hand:
            scale = getattr(self.optimizer, "dynamic_scale", 1.0)
            gradients = [x / scale for x in gradients]
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def unscaled_twice(by_hand=True):
    """keras-team/keras#20894: gradients divided by the scale that `apply` divides by, too."""
    model = Stepping(by_hand)
    model(normal(1, 8))
    model.compile(keras.optimizers.SGD(1e-4), run_eagerly=True)
    model.optimizer.build(model.trainable_variables)  # as `fit` would
    return model, normal(8, 8), np.ones((8, 4), np.float32)


def fixed_scale(factor=1e9):
    """A fixed loss scale under which gradients overflow, which nothing notices."""
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(4, name="first"), layers.Dense(4, dtype="float32")]
    )
    optimizer = keras.optimizers.SGD(0.01, loss_scale_factor=factor)
    model.compile(optimizer, "mse", auto_scale_loss=False)
    return model, normal(8, 8), np.ones((8, 4), np.float32)


BAD = {
    "unscaled_twice": Bad(
        unscaled_twice, "gradients_off_scale", None, "weights stay", lambda: unscaled_twice(False)
    ),
    "fixed_scale": Bad(
        fixed_scale,
        "fixed_scale_overflows",
        None,
        "weights not finite",
        lambda: fixed_scale(1024.0),
    ),
    "norm_of_zeros": Bad(norm_of_zeros, "backward_overflow", "planted", "gradients not finite"),
    "summed_loss": Bad(summed_loss, "backward_overflow", "first", "gradients not finite"),
    "saturated": Bad(saturated, "backward_loss", "planted", "gradients lost"),
    "no_loss_scale": Bad(
        no_loss_scale,
        "gradient_underflow",
        None,
        "gradients lost",
        lambda: no_loss_scale(scaled=True),
    ),
    "half_weights": Bad(
        half_weights,
        "update_underflow",
        "only",
        "weights stay",
        lambda: half_weights("mixed_float16"),
        policy="float16",
    ),
}
