"""Variables in half, and optimizers on them."""

import keras
import numpy as np
from keras import layers, ops

import tfmp
from cases import Bad


def model(dtype, optimizer, value=1.0, trainable=True):
    inputs = keras.Input((1,))
    x = layers.Dense(
        1,
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(value),
        dtype=dtype,
        name="dense",
        trainable=trainable,
    )(inputs)
    x = layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype="float32", name="head")(x)
    made = keras.Model(inputs, x)
    return tfmp.compile(made, optimizer, loss="mse", run_eagerly=True)


def whole(floatx):
    """A program that begins with keras.config.set_floatx("float16"), or a policy of that name."""
    with_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(floatx)
    try:
        made = keras.Sequential(
            [
                keras.Input((1,)),
                layers.Dense(1, use_bias=False, kernel_initializer="ones", name="dense"),
                layers.Activation("linear", dtype="float32", name="head"),
            ]
        )
    finally:
        keras.config.set_dtype_policy(with_policy)
    return tfmp.compile(made, keras.optimizers.SGD(1e-4), loss="mse", run_eagerly=True)


def stands_still(model):
    """Gradients of about 1 at a learning rate of 1e-4."""
    x = np.ones((4, 1), "float32")
    before = model.get_layer("dense").get_weights()[0].copy()
    for _ in range(3):
        model.fit(x, x * 0.5, batch_size=4, verbose=0)
    return (model.get_layer("dense").get_weights()[0] == before).all()


def breaks(model):
    """Gradients of 2e-4, whose square float16 rounds to zero."""
    x = np.ones((4, 1), "float32")
    y = model.predict(x, verbose=0) - 1e-4
    model.fit(x, y, batch_size=4, verbose=0)
    moved = model.get_layer("dense").get_weights()[0] - 1.0
    return not (np.abs(moved) < 0.1).all()


def with_loss(**kwargs):
    inputs = keras.Input((1,))
    x = layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype="mixed_float16")(inputs)
    made = keras.Model(inputs, layers.Activation("linear", dtype="float32")(x))
    loss = keras.losses.MeanSquaredError(**kwargs)
    return tfmp.compile(made, "sgd", loss=loss, run_eagerly=True)


def loss_is_infinite(model):
    """The square of 300 is beyond float16."""
    return not np.isfinite(model.evaluate(np.full((1, 1), 300.0), np.zeros((1, 1)), verbose=0))


SLOW = keras.optimizers.SGD


class Center(layers.Layer):
    """Subtracts a running mean."""

    def __init__(self, way, **kwargs):
        super().__init__(**kwargs)
        self.way = way

    def build(self, shape):
        autocast = self.way != "float32"
        self.mean = self.add_weight(
            shape=shape[-1:], initializer="ones", trainable=False, autocast=autocast, name="mean"
        )

    def call(self, inputs):
        mean = ops.mean(ops.cast(inputs, "float32"), axis=0)
        if self.way == "batch":
            self.mean.assign(mean)
        else:
            self.mean.assign(0.9999 * self.mean + 0.0001 * ops.cast(mean, self.mean.value.dtype))
        return inputs - ops.cast(self.mean, inputs.dtype)

    def get_config(self):
        return super().get_config() | {"way": self.way}


def centered(way, policy="mixed_float16"):
    inputs = keras.Input((3,))
    x = Center(way, dtype=policy, name="center")(inputs)
    return keras.Model(inputs, layers.Dense(1, dtype="float32")(x))


def mean_stands_still(model):
    """A step of 1e-4 from 1, where float16's rounding is 5e-4."""
    model(np.full((4, 3), 2.0, "float32"))
    return (model.get_layer("center").mean.numpy() == 1).all()


BAD = {
    "running_mean": Bad(
        lambda: centered("half"), "rounded_state", "center", mean_stands_still, severity="error"
    ),
    "float16_layer": Bad(
        lambda: model("float16", SLOW(1e-4)),
        "half_variables",
        "dense",
        stands_still,
        lambda: model("mixed_float16", SLOW(1e-4)),
        "error",
    ),
    "bfloat16_layer": Bad(
        lambda: model("bfloat16", SLOW(1e-4)),
        "half_variables",
        "dense",
        stands_still,
        lambda: model("mixed_bfloat16", SLOW(1e-4)),
        "error",
    ),
    "float16_model": Bad(
        lambda: whole("float16"),
        "half_variables",
        None,
        stands_still,
        lambda: whole("mixed_float16"),
        "error",
    ),
    "loss_in_float16": Bad(
        lambda: with_loss(dtype="float16"),
        "half_loss",
        None,
        loss_is_infinite,
        with_loss,
        "error",
    ),
    "adam_on_float16": Bad(
        lambda: model("float16", keras.optimizers.Adam(1e-3, epsilon=1e-8)),
        "half_optimizer_epsilon",
        None,
        breaks,
        lambda: model("mixed_float16", keras.optimizers.Adam(1e-3, epsilon=1e-8)),
        "error",
    ),
}

CLEAN = {
    "running_mean_in_float32": lambda: centered("float32"),
    "running_mean_of_a_float32_layer": lambda: centered("half", "float32"),
    "mean_of_the_batch": lambda: centered("batch"),
    "loss_of_keras": with_loss,
    "adam_on_float32": lambda: model("mixed_float16", keras.optimizers.Adam(1e-3, epsilon=1e-8)),
    "frozen_float16": lambda: model("float16", "adam", trainable=False),
}
