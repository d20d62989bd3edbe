"""The fresh process that loads what was saved: one JSON spec as its argument, one JSON line out.

Nothing of tfmp's that registers a class may be imported before Keras' own loading.
"""

import importlib
import json
import os
import sys
import textwrap
import warnings

from tfmp.commands.benchmark import children


def load(spec):
    """What comes of loading by Keras alone, and then by tfmp.

    Args:
        spec: Dict: `path` for `tfmp.load` and `keras_path` for Keras, each None where it can't be
            loaded so; `modules` to import first.

    Returns:
        Dict of "keras" and "tfmp": what `_state` gives, or {"error": why there is none}.
    """
    import keras

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in spec["modules"]:
        try:
            importlib.import_module(module)
        except Exception as error:
            said = f"--modules: {module} can't be imported ({type(error).__name__}: {error})."
            return {"mistake": said}
    found = {"keras": _tried(keras.saving.load_model, spec["keras_path"])}
    import tfmp

    return found | {"tfmp": _tried(tfmp.load, spec["path"])}


def _tried(function, path):
    if path is None:
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = function(path)
        except Exception as error:
            return {"error": textwrap.shorten(f"{type(error).__name__}: {error}", 200)}
    said = [str(x.message).strip().partition("\n")[0] for x in caught]
    return _state(model) | {"warnings": [x for x in said if "optimizer" in x]}


def _state(model):
    """What a model holds, as `contents.Contents` has it."""
    import keras
    import numpy as np

    from tfmp.commands.audit.contents import digest

    seeds = [v for v in model.variables if v.name == "seed_generator_state"]
    weights = [v for v in model.variables if all(v is not seed for seed in seeds)]
    layers = [x for x in model._flatten_layers() if not isinstance(x, keras.layers.InputLayer)]
    optimizer = getattr(model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    scaled = optimizer is not inner
    scale = None
    if optimizer is not None and scaled:
        scale = float(optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale)
    return {
        "weights": [digest(np.array(v)) for v in weights],
        "seeds": [digest(np.array(v)) for v in seeds],
        "policies": {x.name: x.dtype_policy.name for x in layers},
        "optimizer": type(inner).__name__ if inner is not None else None,
        "scaled": scaled,
        "scale": scale,
        "state": [digest(np.array(v)) for v in inner.variables] if inner is not None else [],
    }


if __name__ == "__main__":
    children.answer(load, json.loads(sys.argv[1]))
