"""Decoder-only transformers: from tokens to the logits of the next ones, as GPT-2.

Blocks of causal attention and of two dense layers, normalized at their begin and added to what
they took; learned positions; and one matrix for the tokens' embeddings and the logits. Only Keras'
own layers and operations are used: a saved model loads without tfmp.

Of the precision: LayerNormalization computes in float32 inside and attention as
`tfmp.models.attention` says. The logits are a product in the policy's dtype, handed on as float32:
for a large vocabulary that product is a third of the work. `with_float32(["tokens_embedding"])`
computes it in float32, too.

References:
    Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3 and
        Table 2; epsilons, GELU by tanh and initial values as in its code, github.com/openai/gpt-2.
    Press and Wolf 2016, Using the Output Embedding to Improve Language Models, arXiv:1608.05859.
"""

import functools
from collections.abc import Callable

import keras
from keras import layers, ops

from tfmp.errors import UserError
from tfmp.models import parts
from tfmp.models.attention import attention

EPSILON = 1e-5
STDDEV = 0.02


def gpt(
    *,
    width: int,
    depth: int,
    heads: int,
    vocabulary: int,
    context: int,
    dropout: float = 0.0,
    seed: int | None = None,
    name: str = "gpt",
) -> keras.Model:
    """Builds a language model under the global policy.

    Args:
        width: Features of a token; the dense layer inside a block has four times as many.
        depth: Blocks.
        heads: Heads of attention; they divide the width.
        vocabulary: Number of different tokens.
        context: Tokens of an input.
        dropout: Share of features dropped behind the embedding and at each branch's end.
        seed: Seed of the initial weights and of dropout, drawn for each layer from this seed and
            its name. None leaves them to `keras.utils.set_random_seed`.
        name: The model's name.

    Returns:
        A built functional model: tokens [batch, context], any integer dtype, to logits [batch,
        context, vocabulary] float32. Those at a place depend on the tokens up to it alone.

    Raises:
        ValueError: A size or a rate that can't be.
    """
    _check(width, heads, vocabulary, context, dropout)
    make = _Layers(width, depth, heads, dropout, seed)
    # No int32, which TensorFlow keeps on the host.
    tokens = keras.Input((context,), dtype="int64", name="tokens")
    embedding = layers.ReversibleEmbedding(
        vocabulary, width, embeddings_initializer=make.initial("tokens"), name="tokens_embedding"
    )
    # Of one example, since all have the same.
    first = ops.slice(tokens, (0, 0), (1, context))
    positions = ops.cumsum(ops.ones_like(first), axis=1) - 1
    positions = layers.Embedding(
        context, width, embeddings_initializer=make.initial("positions"), name="positions_embedding"
    )(positions)
    x = make.dropped(embedding(tokens) + positions, "embedding_dropout")
    for index in range(1, depth + 1):
        x = make.branch(x, _attention, f"block{index}_attention")
        x = make.branch(x, _mlp, f"block{index}_mlp")
    x = make.norm(x, "norm")
    logits = embedding(x, reverse=True)
    logits = layers.Activation("linear", dtype="float32", name="logits")(logits)
    return keras.Model(tokens, logits, name=name)


class _Layers:
    """The layers of one network: their common settings, and the seed of each."""

    def __init__(self, width, depth, heads, dropout, seed):
        self.width = width
        self.depth = depth
        self.heads = heads
        self.dropout = dropout
        self._seed = seed

    def initial(self, name: str, stddev: float = STDDEV):
        """Normal initial values."""
        seed = parts.seed_of(self._seed, name)
        return keras.initializers.RandomNormal(stddev=stddev, seed=seed)

    def norm(self, x, name: str):
        """LayerNormalization; in float32 inside, under every policy."""
        return layers.LayerNormalization(epsilon=EPSILON, name=name)(x)

    def dense(self, x, units: int, name: str, stddev: float = STDDEV):
        """A dense layer with bias."""
        return layers.Dense(units, kernel_initializer=self.initial(name, stddev), name=name)(x)

    def last(self, x, name: str):
        """The dense layer at a branch's end; the sum of all branches starts out as one token's."""
        return self.dense(x, self.width, name, STDDEV * (2 * self.depth) ** -0.5)

    def dropped(self, x, name: str):
        """Dropout, where there is any."""
        if not self.dropout:
            return x
        return layers.Dropout(self.dropout, seed=parts.seed_of(self._seed, name), name=name)(x)

    def branch(self, x, inside: Callable, name: str):
        """Adds `inside` of the normalized x to x."""
        y = inside(self, self.norm(x, f"{name}_norm"), name)
        return layers.Add(name=f"{name}_add")([x, self.dropped(y, f"{name}_dropout")])


def _attention(make: _Layers, x, name: str):
    """Every token gets the values of the tokens before it, and its own, whose keys fit."""
    tokens, width = x.shape[1:]
    x = make.dense(x, 3 * width, f"{name}_qkv")
    x = layers.Reshape((tokens, 3, make.heads, width // make.heads), name=f"{name}_heads")(x)
    x = attention(*ops.unstack(x, 3, axis=2), causal=True)
    x = layers.Reshape((tokens, width), name=f"{name}_joined")(x)
    return make.last(x, f"{name}_out")


def _mlp(make: _Layers, x, name: str):
    """Two dense layers, with the GELU by tanh between them."""
    x = ops.gelu(make.dense(x, 4 * make.width, f"{name}_in"), approximate=True)
    return make.last(x, f"{name}_out")


def _check(width, heads, vocabulary, context, dropout) -> None:
    if heads < 1 or width % heads:
        raise UserError(f"heads: expected a divisor of the width, {width}. Received: {heads}")
    if vocabulary < 2 or context < 1:
        raise UserError(
            "vocabulary and context: expected 2 tokens or more, and 1 or more. Received: "
            f"{vocabulary} and {context}"
        )
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: expected from 0 to below 1. Received: {dropout}")


MODELS: dict[str, Callable[..., keras.Model]] = {
    # For bytes, on two cores.
    "gpt_micro": functools.partial(gpt, width=128, depth=2, heads=4),
    "gpt2_small": functools.partial(gpt, width=768, depth=12, heads=12),
    "gpt2_medium": functools.partial(gpt, width=1024, depth=24, heads=16),
}
