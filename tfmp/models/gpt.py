"""Decoder-only transformers: from tokens to the logits of the next ones, as GPT-2.

Blocks of causal attention and of two dense layers; learned positions; and one matrix for the
tokens' embeddings and the logits. Only Keras' own layers and operations are used: a saved model
loads without tfmp.

Of the precision: LayerNormalization computes in float32 inside and attention as
`tfmp.models.attention` says. The logits are a product in the policy's dtype, handed on as float32:
for a large vocabulary that product is a third of the work. `with_float32(["tokens_embedding"])`
computes it in float32, too.

References:
    Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3 and
        Table 2.
    Press and Wolf 2016, Using the Output Embedding to Improve Language Models, arXiv:1608.05859.
"""

import functools
from collections.abc import Callable

import keras
from keras import layers

from tfmp.models import parts
from tfmp.models.blocks import Blocks


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
    vocabulary, context = parts.size("vocabulary", vocabulary, 2), parts.size("context", context)
    blocks = Blocks(width, depth, heads, dropout, seed)
    # No int32, which TensorFlow keeps on the host.
    tokens = keras.Input((context,), dtype="int64", name="tokens")
    embedding = layers.ReversibleEmbedding(
        vocabulary, width, embeddings_initializer=blocks.initial("tokens"), name="tokens_embedding"
    )
    # Or its weights are taken as they are, and the product is one in float32.
    embedding.reverse_dtype = embedding.compute_dtype
    x = blocks.dropped(embedding(tokens) + blocks.positions(tokens), "embedding_dropout")
    logits = embedding(blocks(x, causal=True), reverse=True)
    logits = layers.Activation("linear", dtype="float32", name="logits")(logits)
    return keras.Model(tokens, logits, name=name)


MODELS: dict[str, Callable[..., keras.Model]] = {
    # For bytes, on two cores.
    "gpt_micro": functools.partial(gpt, width=96, depth=2, heads=4),
    "gpt2_small": functools.partial(gpt, width=768, depth=12, heads=12),
    "gpt2_medium": functools.partial(gpt, width=1024, depth=24, heads=16),
}
