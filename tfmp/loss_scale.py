"""Loss scaling of an optimizer, as plain functions over Keras' LossScaleOptimizer.

Without loss scaling every function still answers (a scale of 1, no step skipped), so that
callers never branch.

References:
    Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
"""

import keras


def wrap(optimizer, initial_scale=2.0**15):
    """Returns the optimizer with dynamic loss scaling around it.

    Args:
        optimizer: A Keras optimizer; returned as it is where it scales the loss already.
        initial_scale: First factor on the loss.

    Returns:
        A `keras.optimizers.LossScaleOptimizer`.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=initial_scale)


def is_scaled(optimizer):
    """Whether the optimizer scales the loss."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def inner(optimizer):
    """The optimizer that updates the weights: without its loss scaling, if it has any."""
    return optimizer.inner_optimizer if is_scaled(optimizer) else optimizer


def scale(optimizer):
    """The factor on the loss now: a scalar float32 tensor, or 1.0 where there is none."""
    if not is_scaled(optimizer):
        return 1.0
    return optimizer.dynamic_scale.value if optimizer.built else optimizer.initial_scale


def applied_steps(optimizer):
    """Steps whose gradients were applied or accumulated: an integer scalar tensor.

    A step that the loss scale skipped is not among them. `Optimizer.iterations` would not do:
    it counts one for several accumulated steps.
    """
    return inner(optimizer).variables[0].value
