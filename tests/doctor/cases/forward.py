"""Models whose layers give something else in half, on the batch that is given."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from cases.probed import Bad, Compute, Growing, Square, SumOfSquares, around, normal, trained

# What overflows.


def raw_inputs():
    """Times of day in seconds go into a Dense layer."""
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, name="first"), layers.Dense(1, dtype="float32")]
    )
    return model, normal(8, 4, scale=1e4, shift=8e4)


def sum_pooling():
    """A sum over the pixels of an image, where a mean was meant."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = Compute(lambda x: ops.sum(x, axis=(1, 2)), name="pool")(x)
    x = layers.Lambda(lambda x: x * 1e-4, name="small", dtype="float32")(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), normal(4, 32, 32, 3, scale=400)


def instance_variance():
    """tensorflow/tensorflow#47156: an instance normalization of the user's own."""

    def instance_norm(x):
        mean = tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), axis=-1, keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-3)

    return around(instance_norm), normal(8, 8, scale=1000)


def unscaled_attention():
    """Attention scores without a division by the square root of the width, in a nested model."""
    inputs = keras.Input((6, 64))
    query = layers.Dense(64, name="query")(inputs)
    key = layers.Dense(64, name="key")(inputs)
    scores = layers.Dot(axes=2, name="scores")([query, key])
    block = keras.Model(inputs, layers.Softmax(name="softmax")(scores), name="block")
    outer = keras.Input((6, 64))
    model = keras.Model(outer, layers.Dense(2, dtype="float32")(block(outer)))
    return model, normal(4, 6, 64, scale=100)


def logsumexp_by_hand():
    """A logarithm of a sum of exponentials without the maximum taken off."""

    def soft_maximum(x):
        return ops.log(ops.sum(ops.exp(x), axis=-1, keepdims=True))

    return around(soft_maximum), normal(8, 8, scale=10)


def small_epsilon():
    """keras-team/keras#22586: an epsilon of 1e-8 is zero in float16."""

    def standardize(x):
        return x / (ops.sum(x, axis=-1, keepdims=True) + 1e-8)

    model = around(standardize)
    return model, normal(8, 8) * (np.arange(8) % 2)[:, None]  # every other row is zeros


def in_subclass(order=lambda x: ops.square(x) * 1e-4):
    """A subclassed model that squares raw values itself, around its layers."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.inner = layers.Dense(4, name="inner")
            self.head = layers.Dense(2, dtype="float32", name="head")

        def call(self, inputs):
            return self.head(self.inner(order(inputs)))

    model = Net()
    model(normal(2, 4))
    return model, normal(8, 4, scale=1000)


def deep_inside():
    """A norm in a layer of a layer of a subclassed model."""

    def cosine(x):
        return x / tf.sqrt(tf.reduce_sum(x * x, axis=-1, keepdims=True) + 1e-3)

    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.project = layers.Dense(8, name="project")
            self.cosine = Compute(cosine, name="cosine")

        def call(self, inputs):
            return self.cosine(self.project(inputs))

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.block = Block(name="block")
            self.head = layers.Dense(2, dtype="float32", name="head")

        def call(self, inputs):
            return self.head(self.block(inputs))

    model = Net()
    model(normal(2, 4))
    return model, normal(8, 4, scale=2000)


def unit_normalization():
    """Zeros for values of 200 to 400."""
    inputs = keras.Input((8,))
    x = layers.UnitNormalization(name="unit")(inputs)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), normal(8, 8, scale=300)


def cell():
    """A recurrent layer with a cell of the user's own."""
    inputs = keras.Input((12, 4))
    x = layers.RNN(Growing(name="growing"), name="rnn")(inputs)
    x = layers.Lambda(lambda x: ops.tanh(x * 1e-6), dtype="float32")(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), 1 + np.abs(normal(4, 12, 4))


def in_bidirectional():
    """An LSTM whose inputs are too large, in a wrapper."""
    inputs = keras.Input((5, 4))
    x = layers.Bidirectional(layers.LSTM(3, name="lstm"), name="both")(inputs)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), normal(4, 5, 4, scale=1e5)


# What is lost.


def product_of_probabilities():
    """A product of 16 probabilities."""

    def together(x):
        return ops.prod(ops.sigmoid(x) * 0.3, axis=-1, keepdims=True)

    return around(together), normal(8, 8)


def positions():
    """EleutherAI/gpt-neox#1003: phases of positions up to 5000 in half."""
    inputs = keras.Input((4,))
    x = Compute(lambda x: ops.sin(x), name="phases")(inputs)
    x = layers.Dense(4, dtype="float32")(x)
    return keras.Model(inputs, x), np.float32(np.arange(5001, 5033).reshape(8, 4))


def merged_variance():
    """The mean of the squares less the square of the mean."""

    def scale_free(x):
        x = x + 30
        mean = ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(x * x, axis=-1, keepdims=True) - mean * mean
        return (x - mean) / ops.sqrt(ops.maximum(variance, 0) + 1e-3)

    return around(scale_free), normal(8, 8, scale=0.5)


def long_sum():
    """A running sum of 4096 numbers, in the order of the steps."""
    inputs = keras.Input((4096,))
    x = Compute(lambda x: ops.cumsum(x, axis=-1)[:, ::256] * 1e-3, name="sums")(inputs)
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(x))
    return model, np.abs(normal(4, 4096))


def cast_by_name():
    """Identifiers that a layer casts to float16 whatever its policy."""
    inputs = keras.Input((4,), dtype="int32")
    x = Compute(lambda x: ops.cast(x, "float16") / 1e4, name="scaled")(inputs)
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(x))
    return model, np.arange(66000, 66032, dtype=np.int32).reshape(8, 4)


def cast_to_float32():
    """The same by its policy, which is float32."""
    inputs = keras.Input((4,), dtype="int32")
    x = Compute(lambda x: ops.cast(x, "float32") / 1e4, name="scaled", dtype="float32")(inputs)
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(x))
    return model, np.arange(66000, 66032, dtype=np.int32).reshape(8, 4)


def timestamps():
    """Days since 1970 less a reference day, cast to half before the difference."""
    inputs = keras.Input((3,))
    x = Compute(lambda x: (x - 20000.0) / 10.0, name="since")(inputs)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), np.float32(
        20000 + np.random.default_rng(0).integers(0, 9, (8, 3))
    )


def mixed_constants():
    """A float32 constant times half inputs."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.inner = layers.Dense(4, name="inner")
            self.planted = Compute(lambda x: x * tf.constant([2.0]), name="planted")
            self.head = layers.Dense(2, dtype="float32", name="head")

        def call(self, inputs):
            return self.head(self.planted(self.inner(inputs)))

    return Net(), normal(8, 4)


def in_time_distributed():
    """A product that overflows, of a layer applied to each step."""
    inputs = keras.Input((5, 4))
    x = layers.TimeDistributed(Square(name="each"), name="steps")(inputs)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), normal(4, 5, 4, scale=1000)


def operation():
    """An operation between layers of a functional model: its layers are right."""
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="before")(inputs)
    x = ops.exp(x * 4) * 1e-6
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), normal(8, 8, scale=4)


def two_at_once():
    """Two layers at fault, the second behind the first."""
    inputs = keras.Input((8,))
    x = layers.UnitNormalization(name="unit")(inputs)
    x = Compute(lambda x: ops.prod(x * 0.3, axis=-1, keepdims=True), name="product")(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), normal(8, 8, scale=1000)


def added_loss():
    """A layer that adds the sum of its squares to the loss."""
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="added", activity_regularizer=SumOfSquares())(inputs)
    model = keras.Model(inputs, layers.Dense(4, dtype="float32")(x))
    return trained(model, normal(64, 8, scale=40))


def loss_in_half(scale=1.0):
    """A compute_loss of the user's own that squares and sums half outputs."""

    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return ops.sum(ops.square(y_pred * scale))

    inputs = keras.Input((8,))
    model = Own(inputs, layers.Dense(4, name="last")(inputs))
    model.compile(keras.optimizers.SGD(0.01))
    return model, normal(32, 8, scale=40), np.ones((32, 4), np.float32)


def two_networks(feature=lambda x: ops.square(x) * 1e-4):
    """A GAN's train_step: the discriminator's features are squared beyond 65504."""

    class Gan(keras.Model):
        def __init__(self):
            super().__init__(name="gan")
            self.generator = keras.Sequential(
                [keras.Input((4,)), layers.Dense(8, name="made")], name="generator"
            )
            inputs = keras.Input((8,))
            x = Compute(feature, name="power")(inputs)
            x = layers.Dense(1, dtype="float32", name="verdict")(x)
            self.discriminator = keras.Model(inputs, x, name="discriminator")

        def compile(self):
            super().compile(loss=None)
            self.first, self.second = (
                keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)) for _ in range(2)
            )

        def call(self, inputs):
            return self.discriminator(inputs)

        def train_step(self, real):
            noise = tf.random.stateless_normal((tf.shape(real)[0], 4), (1, 2))
            for network, optimizer, sign in (
                (self.discriminator, self.first, 1.0),
                (self.generator, self.second, -1.0),
            ):
                with tf.GradientTape() as tape:
                    fake = self.discriminator(self.generator(noise))
                    loss = sign * ops.mean(fake - self.discriminator(real))
                    scaled = optimizer.scale_loss(loss)
                weights = network.trainable_variables
                optimizer.apply_gradients(
                    zip(tape.gradient(scaled, [w._value for w in weights]), weights, strict=True)
                )
            return {"loss": loss}

    model = Gan()
    model.compile()
    return model, normal(8, 8, scale=1000), None


def scaled_operation():
    """`operation` with its exponent limited."""
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="before")(inputs)
    x = ops.exp(ops.minimum(x * 4, 10.0)) * 1e-6
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), normal(8, 8, scale=4)


@keras.saving.register_keras_serializable(package="cases")
class Slope(layers.Layer):
    """The slope of a net by the difference of two values."""

    def __init__(self, step=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.step = step
        self.net = layers.Dense(1, bias_initializer="ones", name="net")

    def get_config(self):
        return super().get_config() | {"step": self.step}

    def call(self, inputs):
        return (self.net(inputs + self.step) - self.net(inputs)) / self.step

    def compute_output_shape(self, shape):
        return (*shape[:-1], 1)


def slope():
    """u(x + h) - u(x), of values around 1."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, Slope(name="slope")(inputs)), normal(16, 4, scale=0.1, shift=1.0)


def slope_of_nothing():
    """A step so small that both values are the same in half, and the slope is zero."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, Slope(1e-4, name="slope")(inputs)), normal(
        16, 4, scale=0.1, shift=1.5
    )


class Dated(keras.Model):
    """A model of one's own, which casts what it gets, around a layer in float32."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.season = Compute(lambda x: ops.sin(x * 0.9), dtype="float32", name="season")
        self.head = layers.Dense(4, dtype="float32", name="head")

    def call(self, inputs):
        return self.head(self.season(inputs[:, :2]))


def dates(**settings):
    """Days since 1970, of which float16 knows every sixteenth."""
    model, days = Dated(**settings), np.float32(np.arange(19001, 19033).reshape(8, 4))
    model(days)
    return model, days


def survival():
    """What is left after 365 days of hazards of 1e-4, none of which half can take from 1."""
    inputs = keras.Input((365,))
    left = Compute(lambda x: ops.cumprod(1.0 - ops.sigmoid(x), axis=-1), name="left")(inputs)
    logs = Compute(lambda x: 100 * ops.log(x), dtype="float32", name="logs")(left)
    return keras.Model(inputs, logs), normal(4, 365, scale=0.2, shift=-9.0)


def buckets():
    """Milliseconds, infinite above 65 s, by which a bucket is looked up."""

    def bucket(seconds):
        whole = ops.cast(seconds * 1000.0, "int32")
        return ops.sum(ops.cast(whole > ops.array([1000, 20000, 60000, 120000]), "int32"), -1)

    inputs = keras.Input((1,))
    found = Compute(bucket, name="bucket")(inputs)
    outputs = layers.Embedding(5, 4, dtype="float32")(found)
    return keras.Model(inputs, outputs), np.float32(np.linspace(0.5, 240.0, 32)[:, None])


def nearest_code():
    """|x|² - 2 x e + |e|² of values around 8, as in a VQ-VAE."""

    def nearest(x):
        x = x * 0.1 + 8  # close together, as codes are
        codes = ops.cast(np.linspace(8.0, 8.16, 4)[:, None] + np.zeros(16), x.dtype)
        distances = ops.sum(x**2, -1, keepdims=True) - 2 * x @ ops.transpose(codes)
        distances += ops.sum(codes**2, axis=-1)
        return ops.one_hot(ops.argmin(distances, axis=-1), 4, dtype=x.dtype)

    return around(nearest), normal(64, 8)


def frozen_weight():
    """A weight of 3e5, frozen, for inputs of 3e-6."""
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, trainable=False, name="whiten"),
            layers.Dense(1, dtype="float32"),
        ]
    )
    model.layers[0].kernel.assign([[1 / 3e-6, 0.0], [0.0, 1.0]])
    return model, np.array([[3e-6, 1.0]] * 4, np.float32)


def half_within_float32(dtype="float16"):
    """A layer of float32 that casts to half and back."""

    def total(x):
        return ops.cast(ops.sum(ops.cast(x, dtype), axis=-1, keepdims=True), "float32") * 1e-5

    inputs = keras.Input((2000,))
    x = Compute(total, name="total", dtype="float32")(inputs)
    model = keras.Model(inputs, layers.Dense(1, dtype="float32")(x))
    return model, normal(2, 2000, shift=100)


BAD = {
    "slope": Bad(slope, "cancellation", "slope", "outputs wrong"),
    "slope_of_nothing": Bad(slope_of_nothing, "cancellation", "slope", "outputs wrong"),
    "dates": Bad(dates, "cancellation", None, "outputs wrong", lambda: dates(autocast=False)),
    "survival": Bad(survival, "leaves_float32", "left", "outputs wrong"),
    "buckets": Bad(buckets, "other_choice", "bucket", "outputs wrong"),
    "nearest_code": Bad(nearest_code, "other_choice", "planted", "outputs wrong"),
    "frozen_weight": Bad(frozen_weight, "half_overflow", "whiten", "outputs not finite"),
    "half_within_float32": Bad(
        half_within_float32,
        "half_overflow",
        "total",
        "outputs not finite",
        lambda: half_within_float32("float32"),
    ),
    "raw_inputs": Bad(raw_inputs, "half_overflow", "first", "outputs not finite"),
    "sum_pooling": Bad(sum_pooling, "half_overflow", "pool", "outputs not finite"),
    "instance_variance": Bad(instance_variance, "inner_overflow", "planted", "outputs wrong"),
    "unscaled_attention": Bad(
        unscaled_attention, "half_overflow", "block/scores", "outputs not finite"
    ),
    "logsumexp_by_hand": Bad(logsumexp_by_hand, "half_overflow", "planted", "outputs not finite"),
    "small_epsilon": Bad(small_epsilon, "half_overflow", "planted", "outputs not finite"),
    "in_subclass": Bad(
        in_subclass,
        "half_overflow",
        None,
        "outputs not finite",
        lambda: in_subclass(lambda x: ops.square(x * 1e-2)),
    ),
    "deep_inside": Bad(deep_inside, "inner_overflow", "block/cosine", "outputs wrong"),
    "unit_normalization": Bad(unit_normalization, "inner_overflow", "unit", "outputs wrong"),
    "cell": Bad(cell, "half_overflow", "rnn/growing", "outputs wrong"),
    "in_bidirectional": Bad(in_bidirectional, "half_overflow", "both", "outputs not finite"),
    "in_time_distributed": Bad(
        in_time_distributed, "half_overflow", "steps/each", "outputs not finite"
    ),
    "operation": Bad(operation, "half_overflow", "exp", "outputs not finite", scaled_operation),
    "two_networks": Bad(two_networks, "half_overflow", "discriminator/power", "outputs not finite"),
    "two_at_once": Bad(two_at_once, "flush_to_zero", "product", "outputs wrong"),
    "product_of_probabilities": Bad(
        product_of_probabilities, "flush_to_zero", "planted", "outputs wrong"
    ),
    "positions": Bad(positions, "leaves_float32", "phases", "outputs wrong"),
    "merged_variance": Bad(merged_variance, "leaves_float32", "planted", "outputs wrong"),
    "long_sum": Bad(long_sum, "leaves_float32", "sums", "outputs wrong"),
    "cast_by_name": Bad(
        cast_by_name, "half_overflow", "scaled", "outputs not finite", cast_to_float32
    ),
    "timestamps": Bad(timestamps, "leaves_float32", "since", "outputs wrong"),
    "added_loss": Bad(added_loss, "half_overflow", "added", "loss not finite"),
    "loss_in_half": Bad(
        loss_in_half, "half_overflow", None, "loss not finite", lambda: loss_in_half(1e-2)
    ),
    "mixed_constants": Bad(mixed_constants, "fails_in_half", "planted", "raises"),
}
