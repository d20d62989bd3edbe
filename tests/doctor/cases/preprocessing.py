"""Raw values and augmentation in half."""

import keras
import numpy as np
from keras import layers

from cases import Bad
from cases.constants import HALF, float32_head


def model_of(layer, shape=(4,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, float32_head(layer(inputs)))


def inside(model, x):
    """What the first layer gives."""
    return np.asarray(model.layers[1](x), "float64")


def off(x, expected, tolerance):
    return lambda model: not np.allclose(inside(model, np.array(x)), expected, atol=tolerance)


def contrast_differs(model):
    """From the same layer in float32, with the same seed."""
    x = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    layer = model.layers[1]
    if isinstance(layer, layers.Pipeline):
        layer = layer.layers[-1]
    exact = type(layer).from_config(layer.get_config() | {"dtype": "float32"})
    again = type(layer).from_config(layer.get_config())
    a, b = (np.asarray(y(x, training=True), "float32") for y in (exact, again))
    return np.abs(a - b).max() > 0.5


BAD = {
    "pixels_of_16_bits": Bad(
        lambda: model_of(layers.Rescaling(1 / 65535, dtype=HALF, name="scale")),
        "half_preprocessing",
        "scale",
        off([[65535.0, 0.0, 4097.0, 1.0]], [[1.0, 0.0, 4097 / 65535, 1 / 65535]], 1e-6),
    ),
    "years": Bad(
        lambda: model_of(
            layers.Normalization(mean=2030.0, variance=25.0, dtype=HALF, name="years"), (1,)
        ),
        "half_preprocessing",
        "years",
        off([[2051.0]], [[4.2]], 0.1),
    ),
    "pressures": Bad(
        lambda: model_of(
            layers.Normalization(mean=1e5, variance=1e6, dtype=HALF, name="pressures"), (1,)
        ),
        "half_preprocessing",
        "pressures",
        off([[101325.0]], [[1.325]], 0.1),
    ),
    "bins": Bad(
        lambda: model_of(
            layers.Discretization([4096.0, 4097.0, 4098.0], dtype=HALF, name="bins"), (1,)
        ),
        "half_preprocessing",
        "bins",
        lambda model: model.layers[1].compute_dtype == "float16",
    ),
    "contrast": Bad(
        lambda: model_of(
            layers.RandomContrast(0.5, seed=1, dtype=HALF, name="contrast"), (64, 64, 3)
        ),
        "half_augmentation",
        "contrast",
        contrast_differs,
    ),
    "contrast_in_a_pipeline": Bad(
        lambda: model_of(
            layers.Pipeline(
                [
                    layers.RandomFlip(dtype=HALF),
                    layers.RandomContrast(0.5, seed=1, dtype=HALF, name="contrast"),
                ],
                name="augmentation",
            ),
            (64, 64, 3),
        ),
        "half_augmentation",
        "augmentation/contrast",
        contrast_differs,
    ),
}

CLEAN = {
    "pixels_of_8_bits": lambda: model_of(layers.Rescaling(1 / 255, dtype=HALF)),
    "pixels_of_16_bits_in_float32": lambda: model_of(layers.Rescaling(1 / 65535)),
    "small_numbers": lambda: model_of(
        layers.Normalization(
            mean=[0.0, 1.0, 2.0, 30.0], variance=[1.0, 1.0, 9.0, 100.0], dtype=HALF
        )
    ),
    "years_in_float32": lambda: model_of(layers.Normalization(mean=2010.0, variance=25.0), (1,)),
    "flips": lambda: model_of(layers.RandomFlip(dtype=HALF), (8, 8, 3)),
    "contrast_in_float32": lambda: model_of(layers.RandomContrast(0.5), (8, 8, 3)),
    "few_bins": lambda: model_of(layers.Discretization([1.0, 2.0, 3.0], dtype=HALF)),
}
