"""Blocks of transformers of text: attention and two dense layers, as GPT-2 has them.

Each is normalized at its begin and added to what it took. Epsilons, GELU by tanh and initial values
are those of GPT-2's code, github.com/openai/gpt-2.
"""

from collections.abc import Callable

import keras
from keras import layers, ops

from tfmp.errors import UserError
from tfmp.models import parts
from tfmp.models.attention import attention

EPSILON = 1e-5
STDDEV = 0.02


class Blocks(parts.Layers):
    """The layers of one network: their common settings, and the seed of each.

    Args:
        width: Features of a token; the dense layer inside a block has four times as many.
        depth: Blocks.
        heads: Heads of attention; they divide the width.
        dropout: Share of features dropped behind the embedding and at each branch's end.
        seed: Seed of initial weights and of dropout; None: `keras.utils.set_random_seed`'s.

    Raises:
        ValueError: A size or a rate that can't be.
    """

    def __init__(self, width, depth, heads, dropout, seed):
        if heads < 1 or width % heads:
            raise UserError(f"heads: expected a divisor of the width, {width}. Received: {heads}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout: expected from 0 to below 1. Received: {dropout}")
        self.width = width
        self.depth = depth
        self.heads = heads
        super().__init__(seed, dropout)

    def initial(self, name: str, stddev: float = STDDEV):
        """Normal initial values."""
        seed = self.seed(name)
        return keras.initializers.RandomNormal(stddev=stddev, seed=seed)

    def positions(self, tokens):
        """The learned embedding of each place, [1, context, width]."""
        context = tokens.shape[1]
        # Of one example, since all have the same.
        first = ops.slice(tokens, (0, 0), (1, context))
        return layers.Embedding(
            context,
            self.width,
            embeddings_initializer=self.initial("positions"),
            name="positions_embedding",
        )(ops.cumsum(ops.ones_like(first), axis=1) - 1)

    def norm(self, x, name: str):
        """LayerNormalization; in float32 inside, under every policy."""
        return layers.LayerNormalization(epsilon=EPSILON, name=name)(x)

    def __call__(self, x, *, causal: bool = False, mask=None):
        """All blocks, one behind the other: [batch, tokens, width] to the same.

        Args:
            x: `keras.KerasTensor`.
            causal: Whether a token sees only those before it, and itself.
            mask: bool [batch, 1, 1, tokens]: whether a token may be seen.
        """
        for index in range(1, self.depth + 1):
            x = self._branch(x, self._attention, f"block{index}_attention", causal, mask)
            x = self._branch(x, self._mlp, f"block{index}_mlp")
        return self.norm(x, "norm")

    def _branch(self, x, inside: Callable, name: str, *options):
        """Adds `inside` of the normalized x to x."""
        y = inside(self.norm(x, f"{name}_norm"), name, *options)
        return layers.Add(name=f"{name}_add")([x, self.dropped(y, f"{name}_dropout")])

    def _attention(self, x, name: str, causal, mask):
        tokens, size = x.shape[1], self.width // self.heads
        x = self._dense(x, 3 * self.width, f"{name}_qkv")
        x = layers.Reshape((tokens, 3, self.heads, size), name=f"{name}_heads")(x)
        x = attention(*ops.unstack(x, 3, axis=2), causal=causal, mask=mask)
        x = layers.Reshape((tokens, self.width), name=f"{name}_joined")(x)
        return self._last(x, f"{name}_out")

    def _mlp(self, x, name: str):
        x = ops.gelu(self._dense(x, 4 * self.width, f"{name}_in"), approximate=True)
        return self._last(x, f"{name}_out")

    def _dense(self, x, units: int, name: str, stddev: float = STDDEV):
        return layers.Dense(units, kernel_initializer=self.initial(name, stddev), name=name)(x)

    def _last(self, x, name: str):
        """The dense layer at a branch's end; the sum of all branches starts out as one token's."""
        return self._dense(x, self.width, name, STDDEV * (2 * self.depth) ** -0.5)
