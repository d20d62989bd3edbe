"""Generator and discriminator of a DCGAN, for images of 0-255.

As published: strided convolutions without pooling, BatchNormalization but for the generator's last
and the discriminator's first layer, ReLU in the generator and leaky ReLU in the discriminator, a
hyperbolic tangent at the end, weights drawn with a deviation of 0.02. Images of 28 and 8 pixels
begin at 7 and 2 pixels.

Of the precision: the generator's last layer and its tangent are float32, and so are its images, of
0-255, which the discriminator normalizes in float32; its logits are float32. Only Keras' own layers
are used: a saved generator loads without tfmp.

References:
    Radford et al. 2016, Unsupervised Representation Learning with Deep Convolutional Generative
        Adversarial Networks, arXiv:1511.06434, section 3 and figure 1.
"""

import keras
from keras import layers

from tfmp.errors import UserError
from tfmp.models import parts

KERNEL = 4  # a multiple of the stride, so that each pixel is made of equally many products
MOMENTUM = 0.9


def generator(
    *,
    image_shape: tuple[int, int, int],
    latent: int = 64,
    width: int = 32,
    seed: int | None = None,
    name: str = "dcgan_generator",
) -> keras.Model:
    """Builds a generator under the global policy.

    Args:
        image_shape: (height, width, channels) of its images, both sides multiples of 4 pixels.
        latent: Numbers that an image is made of, drawn from the standard normal distribution.
        width: Features of the last layer but one; each layer before has twice as many.
        seed: Seed of the initial weights, drawn for each layer from this seed and its name. None
            leaves them to `keras.utils.set_random_seed`.
        name: The model's name.

    Returns:
        A built functional model: [batch, latent] float32 to images [batch, height, width,
        channels] of 0-255, float32.

    Raises:
        ValueError: A shape that can't be.
    """
    image_shape = parts.image_shape(image_shape)
    latent, width = parts.size("latent", latent), parts.size("width", width)
    doublings = _doublings(image_shape)
    rows, columns = (side >> doublings for side in image_shape[:2])
    features = width << (doublings - 1)
    x = inputs = keras.Input((latent,), name="noise")
    x = layers.Dense(
        rows * columns * features,
        use_bias=False,
        kernel_initializer=_initial(seed, "first"),
        name="first",
    )(x)
    x = layers.Reshape((rows, columns, features), name="first_grid")(x)
    for index in range(1, doublings + 1):
        x = layers.BatchNormalization(momentum=MOMENTUM, name=f"norm{index}")(x)
        x = layers.ReLU(name=f"relu{index}")(x)
        last = index == doublings
        x = layers.Conv2DTranspose(
            image_shape[2] if last else features >> index,
            KERNEL,
            strides=2,
            padding="same",
            use_bias=last,
            activation="tanh" if last else None,
            kernel_initializer=_initial(seed, f"up{index}"),
            dtype="float32" if last else None,
            name=f"up{index}",
        )(x)
    images = layers.Rescaling(127.5, 127.5, dtype="float32", name="images")(x)
    return keras.Model(inputs, images, name=name)


def discriminator(
    *,
    image_shape: tuple[int, int, int],
    width: int = 32,
    seed: int | None = None,
    name: str = "dcgan_discriminator",
) -> keras.Model:
    """Builds a discriminator under the global policy.

    Args:
        image_shape: As for `generator`.
        width: Features of the first layer; each layer behind has twice as many.
        seed: As for `generator`.
        name: The model's name.

    Returns:
        A built functional model: images [batch, height, width, channels] of 0-255, any dtype, to
        logits [batch, 1] float32, above 0 for real ones.

    Raises:
        ValueError: A shape that can't be.
    """
    image_shape = parts.image_shape(image_shape)
    width = parts.size("width", width)
    inputs = keras.Input(image_shape, name="images")
    x = layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="normalize")(inputs)
    for index in range(1, _doublings(image_shape) + 1):
        x = layers.Conv2D(
            width << (index - 1),
            KERNEL,
            strides=2,
            padding="same",
            use_bias=index == 1,
            kernel_initializer=_initial(seed, f"down{index}"),
            name=f"down{index}",
        )(x)
        if index > 1:
            x = layers.BatchNormalization(momentum=MOMENTUM, name=f"norm{index}")(x)
        x = layers.LeakyReLU(0.2, name=f"relu{index}")(x)
    x = layers.Flatten(name="features")(x)
    logits = layers.Dense(
        1, kernel_initializer=_initial(seed, "head"), dtype="float32", name="head"
    )(x)
    return keras.Model(inputs, logits, name=name)


def _initial(seed, name):
    return keras.initializers.RandomNormal(stddev=0.02, seed=parts.seed_of(seed, name))


def _doublings(image_shape) -> int:
    """How often the size doubles: from about 4 pixels, or 7, and twice at least."""
    shorter = min(image_shape[:2])
    if any(side % 4 for side in image_shape[:2]):
        raise UserError(
            "Expected images whose height and width are multiples of 4 pixels. Received: "
            f"{image_shape[0]}x{image_shape[1]}. Give another --image_size."
        )
    doublings = 2
    while shorter >> doublings >= 8 and not any(
        side % (2 << doublings) for side in image_shape[:2]
    ):
        doublings += 1
    return doublings
