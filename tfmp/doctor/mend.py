"""The mechanical mend of findings: layers that go to float32."""

import re
from collections.abc import Iterable

import keras

from tfmp import policies
from tfmp.doctor.finding import Finding
from tfmp.errors import UserError
from tfmp.layer_paths import Part, parts
from tfmp.policies.choice import HALF


def fix(model: keras.Model, findings: Iterable[Finding]) -> keras.Model:
    """A model with the layers in float32 that findings name for it, with the same weights.

    What a finding can't mend so (a loss scale, the source of a `train_step`, half variables) stays;
    its message says what to do. So does what costs speed only, or breaks seldom ("info"). Compile
    the result by `tfmp.compile`.

    Args:
        model: The model that `diagnose` looked at.
        findings: What it returned, or a part of it.

    Returns:
        A copy, uncompiled, of a functional or Sequential model; any other model itself, changed in
        place. Without anything to mend, the model as it is.

    Raises:
        UserError: A finding is of another model, or `tfmp.policies.set_policy` can't change this
            one.
    """
    serious = [finding for finding in findings if finding.severity != "info"]
    names = list(dict.fromkeys(name for finding in serious for name in finding.float32))
    if not names:
        return model
    held = list(parts(model))
    patterns = [_pattern(name, held) for name in names]
    half = [part.layer for part in held if part.layer.compute_dtype in HALF]
    policy = f"mixed_{half[0].compute_dtype}" if half else "float32"
    return policies.set_policy(model, policies.with_float32(patterns, policy))


def _pattern(path, held) -> str:
    """What matches the layer of a path in a policy map, and no other."""
    found = [part.layer for part in held if part.path == path and not part.hidden]
    if not found:
        raise UserError(f"fix: expected findings of this model. Received one of layer {path!r}.")
    matching = pattern(found[0], held)
    if matching is None:
        raise UserError(
            f"fix: expected layers with names of their own. Received several {found[0].name!r}."
        )
    return matching


def pattern(layer: keras.Layer, held: list[Part]) -> str | None:
    """What matches a layer in a policy map, and no other; None: others have its name, and no path.

    Args:
        layer: A layer of the model.
        held: All parts of the model.
    """
    alone = sum(part.layer.name == layer.name for part in held) == 1
    name = layer.name if alone else layer.path
    return re.escape(name) if name else None
