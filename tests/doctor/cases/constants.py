"""Constants beyond float16's range: masks and epsilons."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from keras.src.ops.numpy import Multiply  # it has no public name

from cases import Bad

HALF = "mixed_float16"


def layer_of(function):
    """A class of layers that compute a function of their input, with any further arguments."""

    class Custom(layers.Layer):
        def call(self, *inputs):
            return function(*inputs)

    return Custom


def float32_head(x):
    return layers.Dense(1, kernel_initializer="ones", dtype="float32", name="head")(x)


def model_of(function, shape=(4,), count=1, dtype=HALF, name="custom"):
    inputs = [keras.Input(shape) for _ in range(count)]
    layer = layer_of(function)(dtype=dtype, name=name)
    outputs = layer(*inputs)
    inputs = inputs if count > 1 else inputs[0]
    return keras.Model(inputs, float32_head(outputs))


def not_finite(*rows):
    """Whether the model's output isn't, for a row for each input."""
    inputs = [np.array([row], "float32") for row in rows]
    inputs = inputs if len(rows) > 1 else inputs[0]
    return lambda model: not np.isfinite(model.predict(inputs, verbose=0)).all()


def added_mask(scores, mask):
    """https://github.com/huggingface/transformers/issues/382, google/flax#982."""
    return ops.softmax(scores + (1.0 - mask) * -1e9)


def where_mask(scores, mask):
    """A row in which nothing is left."""
    return ops.softmax(ops.where(mask > 0, scores, -1e9))


def float32_mask(scores, mask):
    mask = (1.0 - ops.cast(mask > 0, "float32")) * -1e9
    return ops.softmax(scores + ops.cast(mask, scores.dtype))


def smallest_float32(scores, mask):
    return ops.softmax(ops.where(mask > 0, scores, float(np.finfo("float32").min)))


class Attention(layers.Layer):
    """Scores in a sublayer, as blocks of transformers have them."""

    def __init__(self, value, **kwargs):
        super().__init__(**kwargs)
        self.value = value
        self.masked = layer_of(lambda x, mask: ops.softmax(x + (1.0 - mask) * value))(
            dtype=self.dtype_policy, name="masked"
        )

    def call(self, x, mask):
        return self.masked(x, mask)


def attention(value):
    inputs = [keras.Input((4,)), keras.Input((4,))]
    x = Attention(value, dtype=HALF, name="attention")(*inputs)
    return keras.Model(inputs, float32_head(x))


def in_the_graph(value):
    inputs = keras.Input((4,))
    x = layers.Activation("linear", dtype=HALF)(inputs)
    x = Multiply(name="multiply")(x, value)  # as `x * value`, which counts its names up
    return keras.Model(inputs, float32_head(x))


def norm(epsilon):
    """https://github.com/pytorch/pytorch/issues/61954, as people write it in Keras."""
    return lambda x: x / (ops.sqrt(ops.sum(x * x, -1, keepdims=True)) + epsilon)


def distance(epsilon):
    """As siamese networks have it; at 0 the square root has no finite gradient."""
    return lambda a, b: ops.sqrt(
        ops.maximum(ops.sum(ops.square(a - b), -1, keepdims=True), epsilon)
    )


def gradient_is_not_finite(model):
    a = tf.ones((1, 4))
    with tf.GradientTape() as tape:
        tape.watch(a)
        out = model([a, tf.ones((1, 4))])
    return not np.isfinite(tape.gradient(out, a)).all()


ROW, ONES, ZEROS = (1.0, 2.0, 3.0, 4.0), (1.0,) * 4, (0.0,) * 4


def overflow(function, *rows):
    return Bad(
        lambda: model_of(function, count=len(rows)),
        "constant_overflow",
        "custom",
        not_finite(*rows),
    )


def underflow(function, *rows):
    return Bad(
        lambda: model_of(function, count=len(rows)),
        "constant_underflow",
        "custom",
        not_finite(*rows),
    )


BAD = {
    "added_mask": overflow(added_mask, ROW, ONES),
    "where_mask": overflow(where_mask, ROW, ZEROS),
    "mask_computed_in_float32": overflow(float32_mask, ROW, ZEROS),
    "mask_of_the_smallest_float32": overflow(smallest_float32, ROW, ZEROS),
    "mask_in_a_sublayer": Bad(
        lambda: attention(-1e9), "constant_overflow", "attention/masked", not_finite(ROW, ONES)
    ),
    "factor_in_the_graph": Bad(
        lambda: in_the_graph(1e6),
        "constant_overflow",
        "multiply",
        not_finite((0.0, 1e-3, 0.0, 0.0)),
        lambda: in_the_graph(1e4),
    ),
    "norm_with_1e-8": underflow(norm(1e-8), ZEROS),
    "logarithm_with_1e-10": underflow(lambda x: ops.log(x + 1e-10), ZEROS),
    "reciprocal_with_1e-6": underflow(lambda x: 1.0 / (x + 1e-6), ZEROS),
    "gradient_of_a_distance": Bad(
        lambda: model_of(distance(1e-9), count=2),
        "constant_underflow",
        "custom",
        gradient_is_not_finite,
    ),
    "rsqrt_of_a_maximum": underflow(
        lambda x: x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), -1, keepdims=True), 1e-12)),
        ZEROS,
    ),
}


def clean(function, count=1, dtype=HALF):
    return lambda: model_of(function, count=count, dtype=dtype)


def float32_inside(function):
    def computed(*inputs):
        return ops.cast(function(*(ops.cast(x, "float32") for x in inputs)), inputs[0].dtype)

    return computed


def attended():
    """Keras' own attention, with a mask."""
    x, mask = keras.Input((4, 8)), keras.Input((4, 4), dtype="bool")
    y = layers.MultiHeadAttention(2, 4, dtype=HALF)(x, x, attention_mask=mask)
    return keras.Model([x, mask], layers.Dense(1, dtype="float32")(y))


CLEAN = {
    "mask_of_-30000": clean(lambda x, m: ops.softmax(ops.where(m > 0, x, -3e4)), 2),
    "mask_in_float32": clean(added_mask, 2, "float32"),
    "mask_in_float32_inside": clean(float32_inside(added_mask), 2),
    "mask_in_bfloat16": clean(where_mask, 2, "mixed_bfloat16"),
    "clipped_at_a_million": clean(lambda x: ops.clip(x, -1e6, 1e6)),
    "attention_of_keras": attended,
    "norm_with_1e-3": clean(norm(1e-3)),
    "norm_with_1e-8_in_float32_inside": clean(float32_inside(norm(1e-8))),
    "distance_with_1e-3": clean(distance(1e-3), 2),
    "compared_with_1e-9": clean(lambda x: ops.where(x > 1e-9, x, 0.0)),
    "normalized_by_keras": lambda: keras.Sequential(
        [
            keras.Input((8,)),
            layers.LayerNormalization(epsilon=1e-8, dtype=HALF),
            layers.BatchNormalization(epsilon=1e-9, dtype=HALF),
            layers.Dense(1, dtype="float32"),
        ]
    ),
    "weights_with_1e-6": clean(
        lambda x: ops.sigmoid(x) / (ops.sum(ops.sigmoid(x), -1, keepdims=True) + 1e-6)
    ),
}
