"""Model builders: images of 0-255 in, float32 logits out; of a U-Net for each pixel.

A new model is a file beside this one with a dict of builders, and one line in `MODELS`. A
builder takes `classes`, `input_shape`, `name` and what else it likes by keyword, works under the
global policy, and returns a built model.
"""

from collections.abc import Callable
from typing import Any

import keras

from tfmp.errors import UserError
from tfmp.models import applications, resnet, unet, vit
from tfmp.models.weights import load_weights

__all__ = ["MODELS", "build", "load_weights"]

MODELS: dict[str, Callable[..., keras.Model]] = {
    **resnet.MODELS,
    **vit.MODELS,
    **unet.MODELS,
    **applications.MODELS,
}


def build(
    name: str,
    /,
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    **options: Any,
) -> keras.Model:
    """Builds a model by its name, under the global policy.

    Args:
        name: A key of `MODELS`; the first argument, without a keyword.
        classes: Number of logits.
        input_shape: (height, width, channels) of an image, in pixels.
        **options: What else the builder takes, such as `seed`, or the model's own `name`, of which
            another model can hold but one; by default the same. See `tfmp.models.resnet.resnet`,
            `tfmp.models.vit.vit`, `tfmp.models.unet.unet` and
            `tfmp.models.applications.application`.

    Returns:
        A built model: images [batch, height, width, channels] of 0-255, any dtype, to logits
        [batch, classes] float32, of a U-Net [batch, height, width, classes].

    Raises:
        ValueError: No such model, or a value the builder refuses.
    """
    if name not in MODELS:
        raise UserError(f"model: expected one of {', '.join(MODELS)}. Received: {name!r}")
    return MODELS[name](classes=classes, input_shape=input_shape, **{"name": name, **options})
