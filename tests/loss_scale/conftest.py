"""Ways to run a step, and steps by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp

WAYS = {
    "eager": lambda function: function,
    "graph": lambda function: tf.function(function, autograph=False),
    "xla": lambda function: tf.function(function, autograph=False, jit_compile=True),
}


@pytest.fixture(params=WAYS)
def way(request):
    """Each way to run a function: eagerly, in a graph, compiled by XLA."""
    return WAYS[request.param]


@pytest.fixture
def steps():
    """A function that takes steps on one weight [2], each good or bad.

    It yields the optimizer after each character of a series: "." is a step with the gradient 0,
    "x" one with an infinite and "n" one with a NaN gradient.
    """

    def take(optimizer, weight, series, way=WAYS["graph"]):
        apply = way(lambda gradient: optimizer.apply([gradient], [weight]))
        optimizer.build([weight])
        values = {".": 0.0, "x": np.inf, "n": np.nan}
        for step in series:
            apply(tf.constant([0.0, values[step]]))
            yield optimizer

    return take


class Pair(keras.Model):
    """Two layers, each with an optimizer of its own, as in a GAN."""

    def __init__(self):
        super().__init__()
        self.first, self.second = keras.layers.Dense(1), keras.layers.Dense(1)

    def compile(self, first_optimizer, second_optimizer):
        super().compile(jit_compile=False)
        self.first_optimizer, self.second_optimizer = first_optimizer, second_optimizer

    def train_step(self, data):
        images, bad = data
        parts = [(self.first, self.first_optimizer), (self.second, self.second_optimizer)]
        for number, (layer, optimizer) in enumerate(parts):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(layer(images) ** 2) * tf.reduce_max(bad[:, number])
                loss = optimizer.scale_loss(loss)
            variables = layer.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
        return {"bad": tf.reduce_max(bad)}  # Keras' `fit` fails without any logs


@pytest.fixture
def pair():
    """A built model with two loss scales, "one" and "two", to be fitted to (images, bad).

    `bad` [batch, 2] multiplies the two losses: infinity makes a step bad.
    """
    model = Pair()
    model.first.build((None, 2))
    model.second.build((None, 2))
    model.built = True
    optimizers = [
        tfmp.LossScaleOptimizer(keras.optimizers.SGD(0.1), name=name) for name in ("one", "two")
    ]
    model.compile(*optimizers)
    return model


@pytest.fixture
def linear():
    """A compiled float32 model of images [batch, 2], whose loss scale starts at 8."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = tfmp.LossScaleOptimizer(
        keras.optimizers.SGD(0.01), initial_scale=8.0, dynamic_growth_steps=3
    )
    model.compile(optimizer, "mse", jit_compile=False)
    return model


@pytest.fixture
def batches():
    """A function of a series of steps, as above, that returns a data set of such batches."""

    def make(series):
        images = np.ones((len(series), 1, 2), "float32")
        images[[step == "x" for step in series]] = np.inf
        labels = np.zeros((len(series), 1, 1), "float32")
        return tf.data.Dataset.from_tensor_slices((images, labels))

    return make
