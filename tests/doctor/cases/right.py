"""Look-alikes of `forward` and `backward` that are right."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from cases.forward import two_networks
from cases.probed import Compute, around, normal, trained


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


def translation():
    """An encoder's state that a decoder begins with, of padded sequences."""
    source, target = (keras.Input((n,), dtype="int32") for n in (7, 5))
    words = layers.Embedding(12, 6, mask_zero=True)
    _, *state = layers.LSTM(6, return_state=True, name="encoder")(words(source))
    x = layers.LSTM(6, return_sequences=True, name="decoder")(words(target), initial_state=state)
    x = layers.Attention()([x, words(source)])
    model = keras.Model([source, target], layers.Dense(12, dtype="float32")(x))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    source = rng.integers(1, 12, (4, 7)) * (np.arange(7) < 5)
    target = rng.integers(1, 12, (4, 5)) * (np.arange(5) < 4)
    return model, [np.int32(source), np.int32(target)], np.int32(target)


def per_step():
    """A layer applied to each step, and one shared by two branches."""
    shared = layers.Dense(8, activation="gelu", name="shared")
    first, second = keras.Input((5, 4)), keras.Input((5, 4))
    x = layers.TimeDistributed(layers.Dense(4))(first)
    x = ops.concatenate([shared(x), shared(second)], axis=-1)
    x = layers.Flatten()(x * 0.5 + 1)
    model = keras.Model([first, second], layers.Dense(4, dtype="float32")(x))
    return model, [normal(4, 5, 4), normal(4, 5, 4, scale=3)]


class CtcLoss(layers.Layer):
    """Adds the loss, which TensorFlow computes in a function that keeps no graph."""

    def call(self, labels, logits):
        lengths = [ops.full((ops.shape(labels)[0],), n, "int32") for n in (3, 8)]
        self.add_loss(ops.mean(ops.ctc_loss(labels, logits, *lengths, mask_index=0)))
        return logits


def letters_in_a_row():
    """A recurrent net with the loss of connectionist temporal classification, in float32."""
    strips, labels = keras.Input((8, 16)), keras.Input((3,), dtype="int32")
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(strips)
    logits = layers.Dense(5, dtype="float32")(x)
    model = keras.Model([strips, labels], CtcLoss(dtype="float32")(labels, logits))
    return model, [normal(4, 8, 16), np.random.default_rng(0).integers(1, 5, (4, 3), "int32")]


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
    """A train_step of the user's own, with a moving average beside."""

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
            gradients = tape.gradient(scaled, weights)
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
        translation,
        per_step,
        letters_in_a_row,
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
