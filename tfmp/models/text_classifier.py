"""Classifiers of texts: from tokens, filled up with zeros, to logits.

The encoder is a transformer whose tokens all see each other; the other model is a bidirectional
LSTM. The logits are read from the mean over the tokens. The token 0 is none: it is not seen, and
not in the mean. Only Keras' own layers and operations are used: a saved model loads without tfmp.

Of the precision: attention and its mask as `tfmp.models.attention` says; the mean is in float32,
and so are the logits.

References:
    Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762, section 3.1 (the encoder; here
        with normalization before each branch and learned positions).
    Graves and Schmidhuber 2005, Framewise Phoneme Classification with Bidirectional LSTM.
"""

import functools
from collections.abc import Callable

import keras
from keras import layers, ops

from tfmp.models import parts
from tfmp.models.blocks import Blocks


def encoder(
    *,
    width: int,
    depth: int,
    heads: int,
    classes: int,
    vocabulary: int,
    length: int,
    dropout: float = 0.0,
    seed: int | None = None,
    name: str = "encoder",
) -> keras.Model:
    """Builds a transformer encoder under the global policy.

    Args:
        width: Features of a token; the dense layer inside a block has four times as many.
        depth: Blocks.
        heads: Heads of attention; they divide the width.
        classes: Number of logits.
        vocabulary: Number of different tokens, 0 included.
        length: Tokens of an input.
        dropout: Share of features dropped behind the embedding and at each branch's end.
        seed: Seed of the initial weights and of dropout; None: `keras.utils.set_random_seed`'s.
        name: The model's name.

    Returns:
        A built functional model: tokens [batch, length], any integer dtype, to logits [batch,
        classes] float32.

    Raises:
        ValueError: A size or a rate that can't be.
    """
    classes, vocabulary, length = _sizes(classes, vocabulary, length)
    tokens, seen = _input(length)
    blocks = Blocks(width, depth, heads, dropout, seed)
    embedding = layers.Embedding(
        vocabulary, width, embeddings_initializer=blocks.initial("tokens"), name="tokens_embedding"
    )
    x = blocks.dropped(embedding(tokens) + blocks.positions(tokens), "embedding_dropout")
    x = blocks(x, mask=ops.reshape(seen, (-1, 1, 1, length)))
    return keras.Model(tokens, _head(x, seen, classes, blocks.initial("head")), name=name)


def lstm(
    *,
    width: int,
    classes: int,
    vocabulary: int,
    length: int,
    dropout: float = 0.0,
    seed: int | None = None,
    name: str = "lstm",
) -> keras.Model:
    """Builds a bidirectional LSTM under the global policy.

    Args:
        width: Features of a token, and of the state in each direction.
        classes: As for `encoder`, and so are the others.
        vocabulary: Number of different tokens, 0 included.
        length: Tokens of an input.
        dropout: Share of features dropped behind the embedding and before the logits.
        seed: Seed of the initial weights and of dropout; None: `keras.utils.set_random_seed`'s.
        name: The model's name.

    Returns:
        As `encoder` does.

    Raises:
        ValueError: A size or a rate that can't be.
    """
    classes, vocabulary, length = _sizes(classes, vocabulary, length)
    tokens, seen = _input(length)
    blocks = Blocks(width, 1, 1, dropout, seed)
    x = layers.Embedding(
        vocabulary, width, embeddings_initializer=blocks.initial("tokens"), name="tokens_embedding"
    )(tokens)
    x = blocks.dropped(x, "embedding_dropout")
    glorot, orthogonal = keras.initializers.GlorotUniform, keras.initializers.Orthogonal
    forward, backward = (
        layers.LSTM(
            width,
            kernel_initializer=glorot(parts.seed_of(seed, way)),
            recurrent_initializer=orthogonal(seed=parts.seed_of(seed, f"{way}_recurrent")),
            return_sequences=True,
            go_backwards=way == "backward",
            name=way,
        )
        for way in ("forward", "backward")
    )
    x = layers.Bidirectional(forward, backward_layer=backward, name="lstm")(x, mask=seen)
    x = blocks.dropped(x, "dropout")
    return keras.Model(tokens, _head(x, seen, classes, blocks.initial("head")), name=name)


def _sizes(classes, vocabulary, length):
    return (
        parts.size("classes", classes),
        parts.size("vocabulary", vocabulary, 2),
        parts.size("length", length),
    )


def _input(length):
    """Tokens, and which of them are some."""
    # No int32, which TensorFlow keeps on the host.
    tokens = keras.Input((length,), dtype="int64", name="tokens")
    return tokens, ops.not_equal(tokens, 0)


def _head(x, seen, classes, initial):
    """Logits of the mean of what is seen; of a text of no token that is 0."""
    shares = ops.expand_dims(ops.cast(seen, "float32"), -1)
    count = ops.maximum(ops.sum(shares, axis=1), 1.0)
    x = ops.sum(ops.cast(x, "float32") * shares, axis=1) / count
    return layers.Dense(classes, kernel_initializer=initial, dtype="float32", name="head")(x)


MODELS: dict[str, Callable[..., keras.Model]] = {
    "encoder_micro": functools.partial(encoder, width=64, depth=2, heads=4),
    "encoder_small": functools.partial(encoder, width=384, depth=6, heads=6),
    "lstm": functools.partial(lstm, width=64),
}
