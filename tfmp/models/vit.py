"""Vision Transformers, for images of 0-255.

An image is cut into square patches. Each becomes a token, to which a learned embedding of its
position is added; blocks of attention and of two dense layers follow, normalized at their begin
and added to what they took. The class is read from the first token, which stands for no patch
(the papers' class token, so that published figures are a fair comparison), or from the mean.

The patches' projection has a bias of its own at each position. That bias is the position
embedding; and since the class token is a patch of zeros, its bias is that token. So a model here
has 2 x width parameters less than the published one and computes the same functions: there each
patch gets one bias more, and the class token a position. Only Keras' own layers and operations
are used: a saved model loads without tfmp.

Of the precision: images are normalized in float32; LayerNormalization computes in float32 inside,
as Keras' does anyhow; attention divides the queries before they meet the keys and has its softmax
in float32, and the logits are. (`keras.layers.MultiHeadAttention` divides after the product, and
has three products where one does for queries, keys and values. With dropout it divides first, but
has its softmax in float16.)

References:
    Dosovitskiy et al. 2020, An Image is Worth 16x16 Words, arXiv:2010.11929, equations 1-4 and
        Table 1 (Base).
    Touvron et al. 2020, Training data-efficient image transformers, arXiv:2012.12877, Table 1
        (Tiny, Small).
    Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv:1603.09382, section 3 (with a
        probability of survival that falls linearly with depth).
"""

import functools
from collections.abc import Callable

import keras
from keras import layers, ops

from tfmp.errors import UserError
from tfmp.models import parts
from tfmp.models.attention import attention

# The paper's code and DeiT's have this one; Keras' default is 1e-3.
EPSILON = 1e-6
# Sides of patches that `patch_size=None` picks from, and how many large ones it wants along an
# image's shorter side.
LARGE_PATCHES, SMALL_PATCHES = (16, 8), (4, 2, 1)
FEWEST_PATCHES = 7
# Attention's work and memory grow with the square of this. 1,024 are 32 x 32 patches.
MOST_PATCHES = 1024


def vit(
    *,
    width: int,
    depth: int,
    heads: int,
    classes: int,
    input_shape: tuple[int, int, int],
    patch_size: int | None = None,
    pool: str = "token",
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    position_stddev: float = 0.02,
    seed: int | None = None,
    name: str = "vit",
) -> keras.Model:
    """Builds a Vision Transformer under the global policy.

    Args:
        width: Features of a token; the dense layer inside a block has four times as many.
        depth: Blocks.
        heads: Heads of attention; they divide the width.
        classes: Number of logits.
        input_shape: (height, width, channels) of an image, in pixels.
        patch_size: Side of a patch in pixels, which divides height and width. None: 16 or 8 where
            it does so and leaves 7 patches or more along the shorter side, else 4 (2 or 1 where
            4 doesn't divide); so 16 for images of 224 px, 8 for 64, and 4 for 32 and 8.
        pool: "token" (the class token) or "mean" (of all patches; there is no class token then).
        dropout: Share of features dropped behind the embedding and at each branch's end.
        stochastic_depth: Share of examples for which the last block's branches are left out; it
            grows linearly from 0 at the first block.
        position_stddev: Deviation of the initial position embeddings; the papers' code has 0.02.
        seed: Seed of the initial weights and of dropout, drawn for each layer from this seed and
            its name. None leaves them to `keras.utils.set_random_seed`.
        name: The model's name.

    Returns:
        A built functional model: images [batch, height, width, channels] of 0-255, any dtype, to
        logits [batch, classes] float32.

    Raises:
        ValueError: A shape, a size or a rate that can't be.
    """
    classes, input_shape = parts.check(classes, input_shape)
    _check(width, heads, pool, dropout, stochastic_depth)
    side = _patch_size(input_shape, patch_size)
    make = _Layers(width, heads, dropout, seed)
    images = keras.Input(input_shape, name="images")
    x = _patches(parts.normalize(images), side)
    if pool == "token":
        x = layers.ZeroPadding1D((1, 0), name="class_token")(x)
    x = layers.EinsumDense(
        "btp,pd->btd",
        (x.shape[1], width),
        bias_axes="td",
        kernel_initializer=make.initial("embedding", "fan_in"),
        bias_initializer=keras.initializers.RandomNormal(
            stddev=position_stddev, seed=make.seed("positions")
        ),
        name="embedding",
    )(x)
    x = make.dropped(x, "embedding_dropout")
    for index in range(1, depth + 1):
        left_out = stochastic_depth * (index - 1) / max(1, depth - 1)
        x = make.branch(x, _attention, f"block{index}_attention", left_out)
        x = make.branch(x, _mlp, f"block{index}_mlp", left_out)
    if pool == "token":
        # The others' normalization would be for nothing.
        x = layers.Cropping1D((0, x.shape[1] - 1), name="class_token_out")(x)
    x = make.norm(x, "norm")
    x = layers.GlobalAveragePooling1D(dtype="float32", name="pool")(x)
    logits = layers.Dense(
        classes,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.02, seed=make.seed("head")),
        dtype="float32",
        name="head",
    )(x)
    return keras.Model(images, logits, name=name)


class _Layers(parts.Layers):
    """The layers of one network: their common settings, and the seed of each."""

    def __init__(self, width, heads, dropout, seed):
        self.width = width
        self.heads = heads
        super().__init__(seed, dropout)

    def initial(self, name: str, mode: str):
        """Glorot's variance where `mode` is "fan_avg", LeCun's where it is "fan_in".

        LeCun's gives the three square matrices of `qkv` what Glorot's gives each alone, as the
        paper's code has them.
        """
        return keras.initializers.VarianceScaling(1.0, mode, "uniform", seed=self.seed(name))

    def norm(self, x, name: str):
        """LayerNormalization; in float32 inside, under every policy."""
        return layers.LayerNormalization(epsilon=EPSILON, name=name)(x)

    def dense(self, x, units: int, name: str, *, mode="fan_avg", activation=None):
        """A dense layer with bias."""
        return layers.Dense(
            units, activation, kernel_initializer=self.initial(name, mode), name=name
        )(x)

    def branch(self, x, inside: Callable, name: str, left_out: float):
        """Adds `inside` of the normalized x to x, but for a share of the examples."""
        y = inside(self, self.norm(x, f"{name}_norm"), name)
        y = self.dropped(y, f"{name}_dropout")
        y = self.dropped(y, f"{name}_depth", left_out, noise_shape=(None, 1, 1))
        return layers.Add(name=f"{name}_add")([x, y])


def _patches(images, side: int):
    """[batch, height, width, channels] to [batch, patches, pixels of a patch and channels]."""
    height, width, channels = images.shape[1:]
    rows, columns = height // side, width // side
    x = layers.Reshape((rows, side, columns, side, channels), name="patches_grid")(images)
    x = layers.Permute((1, 3, 2, 4, 5), name="patches_apart")(x)
    return layers.Reshape((rows * columns, side * side * channels), name="patches")(x)


def _attention(make: _Layers, x, name: str):
    """Every token gets the values of the tokens whose keys fit its query."""
    tokens, width = x.shape[1:]
    size = width // make.heads
    x = make.dense(x, 3 * width, f"{name}_qkv", mode="fan_in")
    x = layers.Reshape((tokens, 3, make.heads, size), name=f"{name}_heads")(x)
    queries, keys, values = ops.unstack(x, 3, axis=2)
    x = attention(queries, keys, values)
    x = layers.Reshape((tokens, width), name=f"{name}_joined")(x)
    return make.dense(x, width, f"{name}_out")


def _mlp(make: _Layers, x, name: str):
    """Two dense layers, with the exact GELU between them."""
    x = make.dense(x, 4 * make.width, f"{name}_in", activation="gelu")
    return make.dense(x, make.width, f"{name}_out")


def _patch_size(input_shape, patch_size: int | None) -> int:
    """The side of the patches, checked."""
    height, width, _ = input_shape
    if patch_size is not None:
        if patch_size < 1 or height % patch_size or width % patch_size:
            raise UserError(
                f"patch_size: expected a divisor of the image's height and width, {height} and "
                f"{width}. Received: {patch_size}"
            )
        return patch_size
    shorter = min(height, width)
    sides = [side for side in LARGE_PATCHES if shorter // side >= FEWEST_PATCHES]
    side = next(x for x in (*sides, *SMALL_PATCHES) if not height % x and not width % x)
    if (patches := height * width // side**2) > MOST_PATCHES:
        raise UserError(
            f"patch_size: images of {height}x{width} pixels would be cut into {patches:,} patches "
            f"of {side}x{side}. Give a patch_size that divides height and width, or another "
            "image size, such as a multiple of 16."
        )
    return side


def _check(width, heads, pool, *rates) -> None:
    if heads < 1 or width % heads:
        raise UserError(f"heads: expected a divisor of the width, {width}. Received: {heads}")
    if pool not in POOLS:
        raise UserError(f"pool: expected one of {POOLS}. Received: {pool!r}")
    if not all(0 <= rate < 1 for rate in rates):
        raise UserError(
            "dropout and stochastic_depth: expected from 0 to below 1. "
            f"Received: {', '.join(map(str, rates))}"
        )


POOLS = ("token", "mean")

MODELS: dict[str, Callable[..., keras.Model]] = {
    # For images of 8 to 32 px. It has few images to learn from what a position means.
    "vit_micro": functools.partial(vit, width=96, depth=2, heads=4, position_stddev=0.5),
    "vit_tiny": functools.partial(vit, width=192, depth=12, heads=3),
    "vit_small": functools.partial(vit, width=384, depth=12, heads=6),
    "vit_base": functools.partial(vit, width=768, depth=12, heads=12),
}
