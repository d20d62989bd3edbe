"""Sums, squares and powers inside a layer that leave float16's range."""

import keras
import numpy as np
from keras import layers, ops

import tfmp
from cases import Bad
from cases.constants import HALF, clean, float32_head, float32_inside, model_of


def rms(x):
    """As language models have it, with an epsilon that float16 holds."""
    return x / ops.sqrt(ops.mean(ops.square(x), -1, keepdims=True) + 1e-3)


def logsumexp(x):
    return ops.log(ops.sum(ops.exp(x), -1, keepdims=True))


def deviation(x):
    return x / ops.sqrt(ops.sum((x - ops.mean(x)) ** 2, -1, keepdims=True) + 1e-3)


def cosine(a, b):
    norms = ops.sqrt(ops.sum(a * a, -1)) * ops.sqrt(ops.sum(b * b, -1))
    return ops.expand_dims(ops.sum(a * b, -1) / (norms + 1e-3), -1)


def unscaled_attention(x):
    """Divided by the square root of the width after the product and not before it."""
    scores = ops.matmul(x, ops.swapaxes(x, -1, -2)) / 16.0
    return ops.matmul(ops.softmax(scores), x)


def scaled_attention(x):
    scores = ops.matmul(x / 16.0, ops.swapaxes(x, -1, -2))
    return ops.matmul(ops.softmax(scores), x)


def by_similarity(x):
    """A softmax over an exponential of cosines, which are up to 1 for vectors of unit length."""
    similar = ops.exp(ops.matmul(x, ops.swapaxes(x, -1, -2)) / 4.0)
    return ops.matmul(similar / ops.sum(similar, -1, keepdims=True), x)


def of_unit_length():
    inputs = keras.Input((8, 64))
    x = layers.UnitNormalization(dtype="float32")(inputs)
    return keras.Model(inputs, float32_head(layers.Lambda(by_similarity, dtype=HALF)(x)))


def sum_over_an_image(x):
    """A mean by hand."""
    return ops.sum(x, axis=1, keepdims=True) / 8192.0


def far_from_float32(value, shape=(64,), count=1, tolerance=0.1):
    """Whether the layer before the head gives something else in float32."""

    def damaged(model):
        x = np.full((1, *shape), value, "float32")
        x[..., ::2] *= -0.5
        x = [x] * count if count > 1 else x
        inside = keras.Model(model.inputs, model.get_layer("custom").output)
        float32 = keras.models.clone_model(
            inside,
            clone_function=lambda layer: type(layer).from_config(
                layer.get_config() | ({"dtype": "float32"} if layer.name == "custom" else {})
            ),
        )
        float32.set_weights(inside.get_weights())
        got = inside.predict(x, verbose=0).astype("float32")
        expected = float32.predict(x, verbose=0)
        return not np.abs(got - expected).max() <= tolerance * np.abs(expected).max()

    return damaged


def lossy(function, value, shape=(64,), count=1):
    """Loses at ordinary values, up to 16, or at larger ones, which nobody need ever give it."""
    ordinary = value <= 16
    return Bad(
        lambda: model_of(function, shape, count),
        "lossy_layer",
        "custom",
        far_from_float32(value, shape, count),
        None if ordinary else lambda: model_of(float32_inside(function), shape, count),
        "warning" if ordinary else "info",
    )


def of_keras(layer, shape=(64,), count=1, first=None):
    inputs = [keras.Input(shape) for _ in range(count)]
    inputs = inputs if count > 1 else inputs[0]
    x = first(inputs) if first else inputs
    return keras.Model(inputs, float32_head(layer(x)))


def regularized():
    dense = layers.Dense(4, activity_regularizer="l2", dtype=HALF, name="custom")
    return of_keras(dense, (8,))


class MeanAbsolute(layers.Layer):
    def call(self, x):
        self.add_loss(ops.mean(ops.abs(x)))
        return x


def trained_by_an_added_loss():
    """A mean in half, and no loss in float32 that it would have to be added to."""
    model = of_keras(MeanAbsolute(dtype=HALF), first=layers.Dense(8, dtype=HALF))
    model.compile(tfmp.LossScaleOptimizer(keras.optimizers.SGD()), auto_scale_loss=False)
    return model


def dot(dtype):
    """https://github.com/keras-team/keras/pull/23565: cosine similarity."""
    a, b = keras.Input((64,)), keras.Input((64,))
    x = layers.Dot(1, normalize=True, dtype=dtype, name="custom")([a, b])
    return keras.Model([a, b], float32_head(x))


def fit_fails(model):
    model.compile("sgd", "mse")
    try:
        model.fit(np.ones((4, 8), "float32"), np.zeros((4, 1)), verbose=0)
    except TypeError:
        return True
    return False


BAD = {
    "rms_norm": lossy(rms, 400.0),
    "logsumexp": lossy(logsumexp, 16.0),
    "deviation": lossy(deviation, 60.0),
    "cosine": lossy(cosine, 60.0, count=2),
    "unscaled_attention": lossy(unscaled_attention, 16.0, (8, 512)),
    "exponential_of_products": lossy(by_similarity, 1.0, (8, 64)),
    "sum_over_an_image": lossy(sum_over_an_image, 16.0, (8192, 3)),
    "unit_norm_of_keras": Bad(
        lambda: of_keras(layers.UnitNormalization(dtype=HALF, name="custom")),
        "lossy_layer",
        "custom",
        far_from_float32(60.0),
    ),
    "dot_of_keras": Bad(
        lambda: dot(HALF),
        "lossy_layer",
        "custom",
        lambda model: not (model.predict([np.full((1, 64), 60.0)] * 2, verbose=0) > 0.5).all(),
    ),
    "activity_regularizer": Bad(regularized, "half_added_loss", "custom", fit_fails),
}


def decided_by_a_digit():
    """Attention whose softmax, of scores of 4096, is decided by the rounding of what it takes."""
    inputs = [keras.Input((24, 16), batch_size=4) for _ in range(3)]
    outputs = layers.Attention(dtype="mixed_bfloat16")(inputs, use_causal_mask=True)
    return keras.Model(inputs, float32_head(outputs))


CLEAN = {
    "attention_decided_by_a_digit": decided_by_a_digit,
    "rms_norm_in_float32_inside": clean(float32_inside(rms)),
    "norm_of_values_that_are_not_large": clean(rms),
    "unit_norm_of_normalized_values": lambda: of_keras(
        layers.UnitNormalization(dtype=HALF), first=layers.LayerNormalization(dtype=HALF)
    ),
    "rms_norm_of_bounded_values": lambda: model_of(lambda x: rms(ops.tanh(x))),
    "logsumexp_of_keras": clean(lambda x: ops.logsumexp(x, axis=-1, keepdims=True)),
    "scaled_attention": lambda: model_of(scaled_attention, (8, 64)),
    "attention_of_keras": lambda: of_keras(layers.Attention(dtype=HALF), (4, 64), 2),
    "pooled": lambda: of_keras(layers.GlobalAveragePooling2D(dtype=HALF), (64, 64, 3)),
    "average_pooled": lambda: of_keras(layers.AveragePooling2D(8, dtype=HALF), (64, 64, 3)),
    "layer_norm": lambda: of_keras(layers.LayerNormalization(dtype=HALF)),
    "rms_norm_of_keras": lambda: of_keras(layers.RMSNormalization(dtype=HALF)),
    "group_norm": lambda: of_keras(layers.GroupNormalization(8, dtype=HALF), (8, 8, 64)),
    "softmax": lambda: of_keras(layers.Softmax(dtype=HALF)),
    "gelu": lambda: of_keras(layers.Dense(8, activation="gelu", dtype=HALF)),
    "exponential_of_cosines": of_unit_length,
    "added_loss_alone": trained_by_an_added_loss,
    "lstm": lambda: of_keras(layers.LSTM(8, dtype=HALF), (5, 4)),
}
