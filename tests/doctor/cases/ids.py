"""Ids and positions above 2048."""

import keras
import numpy as np
from keras import layers, ops

from cases import Bad

HALF = "mixed_float16"


class Tokens(layers.Layer):
    """An embedding in a composite layer, which Keras casts ids for."""

    def __init__(self, rows, **kwargs):
        super().__init__(**kwargs)
        self.rows = rows
        counting = lambda shape, dtype: ops.arange(shape[0], dtype=dtype)[:, None] / 1e4  # noqa: E731
        self.table = layers.Embedding(rows, 1, counting, dtype="float32", name="table")

    def build(self, shape):
        self.table.build(shape)

    def call(self, ids):
        return self.table(ops.cast(ids, "int32"))

    def get_config(self):
        return super().get_config() | {"rows": self.rows}


class Model(keras.Model):
    """A subclassed model, which would cast float ids, too."""

    def __init__(self):
        super().__init__(dtype=HALF)
        self.tokens = Tokens(30001, dtype="float32", name="tokens")

    def call(self, ids):
        return self.tokens(ids)


def layer_of(function):
    """A class of layers that compute a function of themselves and their input."""

    class Computed(layers.Layer):
        def call(self, x):
            return function(self, x)

    return Computed


def composite(rows, dtype="float32"):
    ids = keras.Input((2,), dtype=dtype)
    return keras.Model(ids, head(Tokens(rows, dtype=HALF, name="tokens")(ids)))


def head(x):
    return layers.Flatten(dtype="float32")(x)


def subclassed():
    model = Model()
    model(np.zeros((1, 2), "int32"))
    return model


def computed(function, shape=(4096, 1), dtype="float32"):
    x = keras.Input(shape, dtype=dtype)
    return keras.Model(x, head(layer_of(function)(dtype=HALF, name="computed")(x)))


def computed_by(layer):
    x = keras.Input((1,))
    return keras.Model(x, head(layer(x)))


def confuses(model):
    """29998 and 29999."""
    out = model.predict(np.array([[29998.0, 29999.0]], "float32"), verbose=0).ravel()
    return out[0] == out[1]


def repeats(x):
    """Whether fewer values come out than there are places."""
    return lambda model: len(np.unique(model.predict(x, verbose=0))) < x.shape[1]


def positions(layer, x):
    """Half of the places behind 2048 share another's."""
    return x + ops.cast(ops.arange(4096), layer.compute_dtype)[:, None]


def counted(layer, x):
    return ops.cumsum(ops.ones_like(x), axis=1)


def hashed(layer, x):
    """The hash of a category, scaled down too late."""
    return ops.cast(x % 5000, layer.compute_dtype) / 5000


def one_hot(layer, x):
    """https://github.com/deepspeedai/DeepSpeed/issues/5701, ids cast with all else."""
    return ops.argmax(ops.one_hot(ops.cast(x, "int32"), 5000, dtype="float32"), -1)


def sinusoid(layer, x):
    angles = ops.cast(ops.arange(4096), "float32")[:, None] * 0.37
    return x + ops.cast(ops.sin(angles), layer.compute_dtype)


ZEROS = np.zeros((1, 4096, 1), "float32")
IDS = np.arange(4900, 5000, dtype="int32")[None]

BAD = {
    "float_ids_of_a_composite_layer": Bad(
        lambda: composite(30001), "rounded_ids", "tokens", confuses
    ),
    "scaled_too_late": Bad(
        lambda: computed(
            lambda layer, x: ops.cast(x, layer.compute_dtype) / 50000, (100,), "int32"
        ),
        "rounded_ids",
        "computed",
        repeats(IDS),
    ),
    "categories": Bad(
        lambda: computed_by(layers.CategoryEncoding(5000, "one_hot", dtype=HALF, name="computed")),
        "rounded_ids",
        "computed",
        lambda model: model.predict(np.array([[4097.0]], "float32"), verbose=0)[0, 4097] == 0,
    ),
    "positions": Bad(lambda: computed(positions), "rounded_ids", "computed", repeats(ZEROS)),
    "counted_positions": Bad(lambda: computed(counted), "rounded_ids", "computed", repeats(ZEROS)),
    "hashes": Bad(
        lambda: computed(hashed, (100,), "int32"), "rounded_ids", "computed", repeats(IDS)
    ),
    "one_hot": Bad(
        lambda: computed(one_hot, (100,)), "rounded_ids", "computed", repeats(IDS.astype("float32"))
    ),
}


def embedded(dtype):
    """Keras' own embedding takes floats as they are."""
    ids = keras.Input((2,), dtype=dtype)
    return keras.Model(ids, head(layers.Embedding(30001, 1, dtype=HALF)(ids)))


CLEAN = {
    "integer_ids_of_a_subclass": subclassed,
    "integer_ids": lambda: composite(30001, "int32"),
    "float_ids_of_few_words": lambda: composite(2000),
    "float_ids_of_an_embedding": lambda: embedded("float32"),
    "few_positions": lambda: computed(
        lambda layer, x: x + ops.cast(ops.arange(2048), layer.compute_dtype)[:, None], (2048, 1)
    ),
    "sines_of_float32_positions": lambda: computed(sinusoid),
    "mean_by_a_count": lambda: computed(
        lambda layer, x: (
            ops.sum(x, 1) / ops.cast(ops.sum(ops.cast(x != 0, "int32"), 1), layer.compute_dtype)
        ),
        (3000, 1),
    ),
    "pixels": lambda: computed(
        lambda layer, x: ops.cast(x, layer.compute_dtype), (8, 8, 3), "uint8"
    ),
    "mask_of_integers": lambda: computed(
        lambda layer, x: ops.cast(x, layer.compute_dtype), (8,), "int32"
    ),
}
