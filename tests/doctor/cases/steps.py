"""What a `train_step` of the model's own does with outputs, labels and gradients."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import tfmp
from cases import Bad

HALF = "mixed_float16"


class Stepped(keras.Model):
    """Trains a layer by a loss of its outputs and labels, with the optimizer's scale."""

    def __init__(self, loss, units=1, activation=None, dtype=HALF):
        super().__init__()
        self.last = layers.Dense(
            units, activation, kernel_initializer="ones", dtype=dtype, name="last"
        )
        self.compute = loss

    def call(self, x):
        return self.last(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute(y, self(x))
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        return {"loss": loss}


class Accumulating(Stepped):
    """Adds up gradients that it has scaled itself."""

    def __init__(self, accumulator, factor, **kwargs):
        super().__init__(lambda y, p: 1e-8 * ops.mean(ops.cast(p, "float32") - y), **kwargs)
        self.accumulator, self.factor = accumulator, factor

    def train_step(self, data):
        x, y = data
        weights = self.trainable_variables
        total = [tf.zeros(v.shape, self.accumulator) for v in weights]
        for part in range(2):
            with tf.GradientTape() as tape:
                loss = self.compute(y[part::2], self(x[part::2]))
                scaled = loss * self.factor
            gradients = [g / self.factor for g in tape.gradient(scaled, weights)]
            total = [t + tf.cast(g, t.dtype) for t, g in zip(total, gradients, strict=True)]
        self.optimizer.apply([tf.cast(t, "float32") / 2 for t in total], weights)
        return {"loss": loss}


def stepped(*args, optimizer=None, **kwargs):
    model = Stepped(*args, **kwargs)
    model(np.ones((1, 1), "float32"))
    return tfmp.compile(model, optimizer or keras.optimizers.SGD(0.1), run_eagerly=True)


def accumulated(dtype, factor=4096.0):
    model = Accumulating(dtype, factor)
    model(np.ones((1, 1), "float32"))
    model.compile(keras.optimizers.SGD(1e6), auto_scale_loss=False, run_eagerly=True)
    return model


def kernel_stands_still(model):
    """Gradients of 1e-8, at a learning rate of 1e6."""
    model.fit(np.ones((4, 1)), np.ones((4, 1)), batch_size=4, verbose=0)
    return float(model.last.kernel.numpy().squeeze()) == 1


def classes(cast):
    def loss(y, logits):
        y = ops.cast(ops.cast(y, logits.dtype) if cast else y, "int32")
        return ops.mean(
            keras.losses.sparse_categorical_crossentropy(
                y, ops.cast(logits, "float32"), from_logits=True
            )
        )

    return lambda: stepped(loss, units=3000)


def learns_another_class(model):
    model.fit(np.zeros((1, 1)), np.array([2501]), verbose=0)
    return int(np.argmax(model.last.bias.numpy())) != 2501


def squared(cast):
    def loss(y, predicted):
        y = ops.cast(y, predicted.dtype) if cast else y
        return ops.mean((ops.cast(predicted, "float32") - ops.cast(y, "float32")) ** 2)

    return lambda: stepped(loss)


YEARS = np.linspace(2020.2, 2021.4, 8, dtype="float32")[:, None]


def rounds_years(model):
    """A prediction of 2020 for a label of 2020.3 has no loss."""
    y = np.full((1, 1), 2020.3, "float32")
    return float(model.compute(tf.constant(y), tf.constant(np.float16(y)))) < 1e-4


def logarithm(y, p):
    p = ops.cast(p, "float32")
    return -ops.mean(y * ops.log(p + 1e-7) + (1 - y) * ops.log(1 - p + 1e-7))


def dice(y, p):
    p = ops.cast(p, "float32")
    return 1 - (2 * ops.sum(p * y) + 1) / (ops.sum(p) + ops.sum(y) + 1)


def gradient_vanishes(model):
    """The sigmoid of 12 is 1 in float16, and its label is 0."""
    before = model.last.bias.numpy()
    model.fit(np.full((1, 1), 12.0), np.zeros((1, 1)), verbose=0)
    return (model.last.bias.numpy() == before).all()


def contrastive(y, z):
    z = ops.cast(z, "float32")
    return ops.mean(ops.logsumexp(z @ ops.transpose(z), axis=-1))


BAD = {
    "gradients_in_half": Bad(
        lambda: accumulated("float16"),
        "half_gradients",
        None,
        kernel_stands_still,
        lambda: accumulated("float32"),
        "error",
    ),
    "gradients_in_half_by_a_variable": Bad(
        lambda: accumulated("float16", tf.Variable(4096.0)),
        "half_gradients",
        None,
        kernel_stands_still,
        lambda: accumulated("float32", tf.Variable(4096.0)),
        "error",
    ),
    "classes_cast_to_half": Bad(
        classes(True), "rounded_ids", None, learns_another_class, classes(False), "error"
    ),
    "years_cast_to_half": Bad(
        squared(True),
        "half_labels",
        None,
        rounds_years,
        squared(False),
        "error",
        batch=(np.ones((8, 1), "float32"), YEARS),
    ),
    "probabilities_to_a_logarithm": Bad(
        lambda: stepped(logarithm, activation="sigmoid"),
        "half_output",
        "last",
        gradient_vanishes,
        lambda: stepped(logarithm, activation="sigmoid", dtype="float32"),
        "error",
    ),
}

CLEAN = {
    "gradients_scaled_by_hand": lambda: accumulated("float32"),
    "gradients_scaled_by_a_variable": lambda: accumulated("float32", tf.Variable(4096.0)),
    "classes": classes(False),
    "regression_cast_to_float32": squared(False),
    "probabilities_to_sums": lambda: stepped(dice, activation="sigmoid"),
    "encoder": lambda: stepped(contrastive, units=4),
}
