"""Models that half breaks on a batch, and look-alikes that are right.

Each function builds a model under the global policy and gives it with a batch: (model, inputs) or
(model, inputs, labels). Those with labels are compiled.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops


@dataclasses.dataclass(frozen=True)
class Bad:
    """What is wrong with a model.

    Attributes:
        build: Builds it.
        rule: The rule that finds it.
        layer: The layer that it names; None: the model.
        damage: What goes wrong in half and not in float32, a key of `DAMAGE` in the tests.
        mended: Builds it as the finding says; None: `fix` mends it.
        policy: Policy of the model.
    """

    build: Callable
    rule: str
    layer: str | None
    damage: str
    mended: Callable | None = None
    policy: str = "mixed_float16"


def normal(*shape, scale=1.0, shift=0.0):
    return np.float32(np.random.default_rng(0).normal(size=shape) * scale + shift)


class Compute(keras.layers.Layer):
    """A layer of the user's own that computes a function."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)

    def get_config(self):
        return super().get_config() | {"function": self.function}


@keras.saving.register_keras_serializable(package="cases")
class Growing(keras.layers.Layer):
    """A cell whose state grows with each step."""

    state_size = output_size = 4

    def call(self, inputs, states):
        state = states[0] * 3 + inputs
        return state, [state]


@keras.saving.register_keras_serializable(package="cases")
class Square(keras.layers.Layer):
    """A square that is made small too late."""

    def call(self, inputs):
        return inputs * inputs * 1e-4

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="cases")
class SumOfSquares(keras.regularizers.Regularizer):
    """Small, but for its sum."""

    def __call__(self, x):
        return 1e-3 * ops.sum(ops.square(x))

    def get_config(self):
        return {}


def around(function, features=8, name="planted", head=4, **options):
    """A small functional model with a layer of a function in its middle."""
    inputs = keras.Input((features,))
    x = layers.Dense(16, activation="relu", name="before")(inputs)
    x = Compute(function, name=name, **options)(x)
    x = layers.Dense(8, name="after")(x)
    return keras.Model(inputs, layers.Dense(head, dtype="float32", name="head")(x))


def trained(model, inputs, loss="mse"):
    """The model compiled, its inputs and labels of ones."""
    model.compile(keras.optimizers.SGD(0.01), loss)
    return model, inputs, np.ones((len(inputs), 4), np.float32)


# What overflows.


def raw_inputs():
    """Times of day in seconds go into a Dense layer (tensorflow/tensorflow#38357 has such losses)."""
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
    loss = lambda y, p: 1e-5 * ops.mean(ops.square(p - y))
    model.compile(keras.optimizers.Adam(), loss, auto_scale_loss=scaled)
    return model, normal(4, 16, 16, 3, scale=0.1), np.zeros((4, 16, 16, 1), np.float32)


def half_weights(policy=None):
    """Weights in float16 that a small step doesn't move."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="only", dtype=policy)])
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    return model, normal(8, 4), normal(8, 4)


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
            make = lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
            self.first, self.second = make(), make()

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


BAD = {
    # Forward.
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
    "timestamps": Bad(timestamps, "leaves_float32", "since", "outputs wrong"),
    "added_loss": Bad(added_loss, "half_overflow", "added", "loss not finite"),
    "mixed_constants": Bad(mixed_constants, "fails_in_half", "planted", "raises"),
    # Backward.
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


# Look-alikes that are right.


def scaled_inputs():
    """The times of day of `raw_inputs`, brought to a size of 1 in float32."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Rescaling(1e-4, -8.0, dtype="float32"),
            layers.Dense(8, name="first"),
            layers.Dense(1, dtype="float32"),
        ]
    )
    return model, normal(8, 4, scale=1e4, shift=8e4)


def mean_pooling():
    """The mean over the pixels."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(x)), normal(4, 32, 32, 3, scale=400)


def variance_in_float32():
    """An instance normalization that computes in float32 inside."""

    def instance_norm(x):
        y = ops.cast(x, "float32")
        mean, variance = ops.moments(y, axes=[-1], keepdims=True)
        return ops.cast((y - mean) * ops.rsqrt(variance + 1e-3), x.dtype)

    return around(instance_norm), normal(8, 8, scale=1000)


def layer_normalization():
    """Keras' own normalizations, which compute in float32 inside."""
    inputs = keras.Input((16, 16, 8))
    x = layers.LayerNormalization()(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.GroupNormalization(4)(x)
    x = layers.Conv2D(8, 3, use_bias=True)(x)
    x = layers.BatchNormalization()(x)
    x = layers.GlobalMaxPooling2D()(layers.ReLU()(x))
    return trained(
        keras.Model(inputs, layers.Dense(4, dtype="float32")(x)),
        normal(4, 16, 16, 8, scale=20, shift=100),
    )


def attention():
    """Keras' attention with masks, and a dropout in it."""
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(50, 16, mask_zero=True)(inputs)
    x = layers.MultiHeadAttention(2, 8, dropout=0.2)(x, x, use_causal_mask=True)
    x = layers.GlobalAveragePooling1D()(x)
    tokens = np.random.default_rng(0).integers(1, 50, (4, 12)) * (np.arange(12) < 9)
    return trained(keras.Model(inputs, layers.Dense(4, dtype="float32")(x)), np.int32(tokens))


def masked_by_infinity():
    """A mask of minus infinity, which is one in either precision."""

    def causal(x):
        there = ops.tril(ops.ones(x.shape[-2:], "bool"))
        return ops.softmax(ops.where(there, x, -np.inf), axis=-1)

    inputs = keras.Input((6, 6))
    x = layers.Dense(6)(inputs)
    x = layers.Flatten()(Compute(causal, name="causal")(x))
    return trained(keras.Model(inputs, layers.Dense(4, dtype="float32")(x)), normal(4, 6, 6))


def stable_logsumexp():
    """Keras' own, which takes the maximum off."""
    model = around(lambda x: ops.logsumexp(x, axis=-1, keepdims=True))
    return model, normal(8, 8, scale=10)


def recurrent():
    """Recurrent layers, one with a cell of the user's."""

    class Leaky(keras.layers.Layer):
        state_size = output_size = 4

        def call(self, inputs, states):
            state = ops.tanh(0.9 * states[0] + 0.1 * inputs)
            return state, [state]

    inputs = keras.Input((24, 8))
    x = layers.LSTM(4, return_sequences=True)(inputs)
    x = layers.RNN(Leaky(), return_sequences=True)(x[:, :6])
    x = layers.Bidirectional(layers.GRU(4, dropout=0.3, recurrent_dropout=0.2))(x)
    return trained(keras.Model(inputs, layers.Dense(4, dtype="float32")(x)), normal(4, 24, 8))


def per_step():
    """A layer applied to each step, and one shared by two branches."""
    shared = layers.Dense(8, activation="gelu", name="shared")
    first, second = keras.Input((5, 4)), keras.Input((5, 4))
    x = layers.TimeDistributed(layers.Dense(4))(first)
    x = ops.concatenate([shared(x), shared(second)], axis=-1)
    x = layers.Flatten()(x * 0.5 + 1)
    model = keras.Model([first, second], layers.Dense(4, dtype="float32")(x))
    return model, [normal(4, 5, 4), normal(4, 5, 4, scale=3)]


def random_layers():
    """Noise of all kinds; one draws by TensorFlow itself."""
    inputs = keras.Input((16,))
    x = layers.GaussianNoise(0.5)(inputs)
    x = layers.Dropout(0.4)(layers.Dense(32)(x))
    x = layers.GaussianDropout(0.3)(x)
    x = Compute(lambda x: x + tf.random.normal(tf.shape(x), dtype=x.dtype), name="noise")(x)
    x = layers.AlphaDropout(0.2)(x)
    return trained(keras.Model(inputs, layers.Dense(4, dtype="float32")(x)), normal(8, 16))


def tied_weights():
    """A head that uses the embedding's weights, with a regularizer on them."""

    class Tied(keras.Model):
        def __init__(self):
            super().__init__(name="tied")
            self.embed = layers.Embedding(20, 8, embeddings_regularizer="l2", name="embed")
            self.mix = layers.Dense(8, name="mix", kernel_regularizer="l2")

        def call(self, tokens):
            x = self.mix(self.embed(tokens))
            return ops.cast(ops.matmul(x, ops.transpose(self.embed.embeddings)), "float32")

    model = Tied()
    tokens = np.random.default_rng(0).integers(0, 20, (4, 6)).astype(np.int32)
    model(tokens)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, tokens, tokens


def products_in_logs():
    """The product of probabilities of 16 features, as a sum of logarithms."""
    model = around(lambda x: ops.sum(ops.log_sigmoid(x), axis=-1, keepdims=True))
    return trained(model, normal(8, 8))


def positions_as_integers():
    """Positions above 2048 that stay integers until they are embedded."""
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(6000, 4)(inputs))
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(x))
    return model, np.arange(5001, 5033, dtype=np.int32).reshape(8, 4)


def small_residuals():
    """A branch that starts at 1e-6, as ConvNeXt's layer scales do, and a normalization of zeros."""

    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.gamma = self.add_weight(
                shape=(shape[-1],), initializer=keras.initializers.Constant(1e-6)
            )

        def call(self, inputs):
            return inputs * self.gamma

    inputs = keras.Input((16,))
    branch = Scale(name="scale")(layers.Dense(16, activation="gelu")(inputs))
    x = layers.LayerNormalization()(layers.Add()([inputs, branch]))
    return trained(keras.Model(inputs, layers.Dense(4, dtype="float32")(x)), normal(8, 16))


def discontinuous():
    """Rounding, the largest of several, comparisons: half may choose otherwise near a tie."""

    def steps(x):
        chosen = ops.one_hot(ops.argmax(x, axis=-1), 16, dtype=x.dtype)
        return x * chosen + ops.cast(x > 0.5, x.dtype) + ops.round(x * 4) / 4

    return trained(around(steps), normal(64, 8))


def not_finite_in_float32():
    """A logarithm of zero, which is wrong in any precision."""
    return around(lambda x: ops.log(ops.relu(x)) * 0 + x), normal(8, 8)


def large_loss_scale():
    """Gradients that overflow at the first loss scale, and not at a lower one."""
    model = around(lambda x: x * 8)
    return trained(model, normal(64, 8), lambda y, p: ops.sum(ops.square(p - y)))


def gan():
    """The GAN of `two_networks` whose features are made small in time."""
    return two_networks(lambda x: ops.square(x * 1e-2))


def own_step():
    """A train_step that clips, accumulates a moving average and feeds itself."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.net = keras.Sequential(
                [keras.Input((8,)), layers.Dense(8), layers.Dense(4, dtype="float32")], name="net"
            )
            self.average = self.add_weight(shape=(), trainable=False, name="average")

        def call(self, inputs):
            return self.net(inputs)

        def train_step(self, data):
            inputs, labels = data
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(self(inputs, training=True) - labels))
                scaled = self.optimizer.scale_loss(loss)
            weights = [w._value for w in self.trainable_variables]
            gradients = [tf.clip_by_norm(g, 1e4) for g in tape.gradient(scaled, weights)]
            self.average.assign(0.9 * self.average + 0.1 * ops.cast(loss, "float32"))
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    model = Own()
    model(normal(2, 8))
    model.compile("adam")
    return model, normal(8, 8), normal(8, 4)


CLEAN = {
    function.__name__: function
    for function in (
        scaled_inputs,
        mean_pooling,
        variance_in_float32,
        layer_normalization,
        attention,
        masked_by_infinity,
        stable_logsumexp,
        recurrent,
        per_step,
        random_layers,
        tied_weights,
        products_in_logs,
        positions_as_integers,
        small_residuals,
        discontinuous,
        not_finite_in_float32,
        large_loss_scale,
        gan,
        own_step,
    )
}
