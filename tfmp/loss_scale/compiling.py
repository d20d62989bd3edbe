"""`compile` that scales the loss wherever a layer computes in float16."""

import keras

from tfmp import policies
from tfmp.loss_scale.optimizer import wrap


def compile(model, optimizer="rmsprop", **kwargs):
    """Compiles a model, with loss scaling wherever some layer computes in float16.

    Keras' own `compile` adds it only where the model's own policy is named mixed_float16, so
    that per-layer policies and `DTypePolicyMap`s train without it, silently.

    Args:
        model: A Keras model.
        optimizer: A Keras optimizer or its name; for settings of the loss scale give a
            `tfmp.LossScaleOptimizer`.
        **kwargs: Further arguments of `keras.Model.compile`.

    Returns:
        The model.
    """
    if kwargs.pop("auto_scale_loss", True) and policies.uses_float16(model):
        optimizer = wrap(optimizer)
    model.compile(optimizer=optimizer, auto_scale_loss=False, **kwargs)
    return model


def optimizers_of(model):
    """All Keras optimizers of a model: that of `compile`, and attributes of a model of one's own.

    Args:
        model: A Keras model.

    Returns:
        List of optimizers, that of `compile` first.
    """
    found = [getattr(model, "optimizer", None), *vars(model).values()]
    return list({id(x): x for x in found if isinstance(x, keras.optimizers.Optimizer)}.values())
