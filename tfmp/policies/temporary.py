"""A built model under another policy for a while, in place."""

import contextlib
from collections.abc import Iterator

import keras
from keras.dtype_policies import DTypePolicy, DTypePolicyMap

from tfmp.errors import UserError
from tfmp.policies import change
from tfmp.policies.choice import as_policy


@contextlib.contextmanager
def under(model: keras.Model, policy: str | DTypePolicy) -> Iterator[keras.Model]:
    """A model computes as `set_policy` would make it, within a `with` block and without a copy.

    For calls of the model and of its `train_step`: compiled functions of former calls are dropped,
    on entering and on leaving. Inputs that were declared half stay half.

    Args:
        model: A built model.
        policy: As `set_policy` takes it.

    Yields:
        The model.

    Raises:
        ValueError: The model isn't built, holds half or quantized variables, or one of a map's
            patterns matches no layer.
    """
    policy = as_policy(policy)
    if not model.built:
        raise UserError(f"Expected a built model. Received: {model.name!r}, before its first call.")
    targets, _ = change._plan(model, policy)
    default = policy.default_policy if isinstance(policy, DTypePolicyMap) else policy
    layers = change.sublayers(model)
    before = [(x, x._dtype_policy, getattr(x, "compiled", False)) for x in [model, *layers]]
    try:
        for layer in layers:
            layer._dtype_policy = targets.get(id(layer), layer._dtype_policy)
        model._dtype_policy = default
        for layer, _, compiled in before:
            _forget(layer, compiled)
        yield model
    finally:
        for layer, former, _ in before:
            layer._dtype_policy = former
        for layer, _, compiled in before:
            _forget(layer, compiled)


def _forget(layer, compiled):
    change._forget(layer)
    if isinstance(layer, keras.Model):
        layer.compiled = compiled  # its optimizer and loss stay
