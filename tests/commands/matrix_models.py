"""What users write: functions for `matrix`, right ones and ones with a planted fault."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import tfmp


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 8, 8, 2)).astype("float32"), rng.integers(0, 3, 32)


def loss(from_logits=True):
    return keras.losses.SparseCategoricalCrossentropy(from_logits)


def build(*middle, head=None):
    head = head or layers.Dense(3, dtype="float32")
    conv = layers.Conv2D(8, 3, activation="relu")
    pool = layers.GlobalAveragePooling2D()
    return keras.Sequential([keras.Input((8, 8, 2)), conv, *middle, pool, head])


def good():
    model = tfmp.compile(build(), "adam", loss=loss())
    return model, tf.data.Dataset.from_tensor_slices(data()).batch(8)


def softmax_head():
    model = build(head=layers.Dense(3, "softmax"))
    return tfmp.compile(model, "adam", loss=loss(False)), data()


def unscaled():
    model = build()
    model.compile("adam", loss(), auto_scale_loss=False)
    return model, data()


def static_scale():
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.Adam(), static_scale=8.0)
    return tfmp.compile(build(), optimizer, loss=loss()), data()


def upsampled(interpolation):
    middle = layers.UpSampling2D(2, interpolation=interpolation, name="larger")
    return tfmp.compile(build(middle), "adam", loss=loss()), data()


def bicubic():
    return upsampled("bicubic")


def lanczos():
    return upsampled("lanczos3")


def bilinear():
    return upsampled("bilinear")


def mask():
    inputs = keras.Input((8, 8, 2))
    x = layers.Dense(4)(layers.Reshape((64, 2))(inputs))
    logits = ops.einsum("bqd,bkd->bqk", x, x)
    causal = ops.cast(np.tril(np.ones((64, 64))), logits.dtype)
    logits = logits + (1 - causal) * ops.cast(-1e9, logits.dtype)
    x = layers.GlobalAveragePooling1D()(ops.einsum("bqk,bkd->bqd", ops.softmax(logits), x))
    model = keras.Model(inputs, layers.Dense(3, dtype="float32")(x))
    return tfmp.compile(model, "adam", loss=loss()), data()


def forgetful():
    class Forgetful(layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(), initializer="random_normal")

        def call(self, x):
            return x * self.factor

        def save_own_variables(self, store):
            pass

        def load_own_variables(self, store):
            pass

    cls = keras.saving.register_keras_serializable("theirs")(Forgetful)
    return tfmp.compile(build(cls()), "adam", loss=loss()), data()


@keras.saving.register_keras_serializable("theirs")
class Late(layers.Layer):
    def build(self, shape):
        self.inner = layers.Dense(8, "relu")
        self.inner.build(shape)

    def call(self, x, training=False):
        assert not training or self.inner.compute_dtype == self.compute_dtype
        return self.inner(x)


def unbuilt():
    head = layers.Dense(3, dtype="float32")
    model = keras.Sequential([layers.Flatten(), Late(), head])
    return tfmp.compile(model, "adam", loss=loss()), data()


def steep():
    model = tfmp.compile(build(head=layers.Dense(1, dtype="float32")), "adam", loss="mse")
    x, y = data()
    return model, (x, 3000.0 * y)


@keras.saving.register_keras_serializable("theirs")
class Noise(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), dtype=x.dtype, seed=self.seeds)


def dropout():
    drop = layers.Dropout(0.5)
    head = layers.Dense(1, dtype="float32")
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.Flatten(), drop, head])
    x, y = data()
    return tfmp.compile(model, "adam", loss="mse"), (x, y)


def noise():
    return tfmp.compile(build(Noise()), "adam", loss=loss()), data()


def stateful():
    inputs = keras.Input((8, 8, 2), batch_size=8)
    x = layers.LSTM(8, stateful=True)(layers.Reshape((8, 16))(inputs))
    model = keras.Model(inputs, layers.Dense(3, dtype="float32")(x))
    return tfmp.compile(model, "adam", loss=loss()), data()


@keras.saving.register_keras_serializable("theirs")
class StepOnly(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = build()

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            of_step = loss()(y, self.inner(x, training=True))
            scaled = self.optimizer.scale_loss(of_step)
        weights = self.inner.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        return {"loss": keras.ops.broadcast_to(of_step, [8])}  # of each example, in no metric


def step_only():
    return tfmp.compile(StepOnly(), "adam"), data()


@keras.saving.register_keras_serializable("theirs")
class WithNothing(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pool = layers.GlobalAveragePooling2D()
        self.dense = layers.Dense(3, dtype="float32")

    def call(self, x):
        return self.dense(self.pool(x)), None

    def compute_loss(self, x, y, y_pred, *others, **kwargs):
        return ops.mean(loss()(y, y_pred[0]))


def with_nothing():
    return tfmp.compile(WithNothing(), "adam"), data()


def unsaved():
    class Unsaved(layers.Layer):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def call(self, x):
            return self.function(x)

    return tfmp.compile(build(Unsaved(lambda x: 2 * x)), "adam", loss=loss()), data()


def of_float32():
    with tfmp.policies.scope("float32"):
        return tfmp.compile(build(), "adam", loss=loss()), data()


def of_float16():
    with tfmp.policies.scope("mixed_float16"):
        return tfmp.compile(build(), "adam", loss=loss()), data()


@keras.saving.register_keras_serializable("theirs")
class Shift(layers.Layer):
    def __init__(self, by=float("nan"), **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, x):
        return x + self.by

    def get_config(self):  # which forgets one
        return {"name": self.name, "dtype": self.dtype}


def shifted():
    return tfmp.compile(build(Shift(1.0)), "adam", loss=loss()), data()


def a_model_alone():
    return build()


def not_compiled():
    return build(), data()


def lists():
    inputs = [keras.Input((8, 8, 2), name=name) for name in "ab"]
    x = layers.Flatten()(layers.Concatenate()([layers.Dense(4)(x) for x in inputs]))
    outputs = [layers.Dense(3, dtype="float32")(x), layers.Dense(1, dtype="float32")(x)]
    model = tfmp.compile(keras.Model(inputs, outputs), "adam", loss=[loss(), "mse"])
    x, y = data()
    return model, ([x, -x], [y, y.astype("float32")], None)


def no_examples():
    return good()[0], tuple(x[:0] for x in data())


def one_by_one():
    model, dataset = good()
    return model, dataset.unbatch()


def nothing_left():
    model, dataset = good()
    return model, dataset.take(0)


def as_dicts():
    model, dataset = good()
    return model, dataset.map(lambda x, y: {"x": x, "y": y})


def with_arguments(units):
    return good()


def no_data():
    return tfmp.compile(build(), "adam", loss=loss()), 3
