"""The fresh process that loads saved models: one JSON spec as its argument, one JSON line out."""

import json
import math
import pathlib
import pickle
import sys

import keras
import numpy as np

from tfmp.commands.advise import target
from tfmp.commands.benchmark import children


def compare(spec):
    """How far predictions of loaded models are from what they were before saving.

    Args:
        spec: Dict: `target`, whose module may define classes, and `folders` with `model.keras` and
            `outputs.pickle`, which `cell.train` wrote.

    Returns:
        Dict by folder of {"difference": share of the largest output} or {"error": what failed};
        {} where the model predicts nothing.
    """
    if target.is_function(spec["target"]):
        target.function(spec["target"])
    return {folder: _difference(pathlib.Path(folder)) for folder in spec["folders"]}


def outputs_of(model, inputs):
    """What a model predicts, as a list of tensors; nothing of one that is its `train_step` only.

    Seeds and the states of stateful layers, which Keras doesn't load, are set to a beginning.
    """
    keras.utils.set_random_seed(0)
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            variable.assign(keras.ops.zeros_like(variable))
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
            layer.reset_state()
    try:
        outputs = keras.tree.flatten(model(inputs, training=False))
    except NotImplementedError:
        return []
    return [keras.ops.convert_to_tensor(x) for x in outputs if x is not None]


def _difference(folder):
    inputs, expected = pickle.loads((folder / "outputs.pickle").read_bytes())
    try:
        model = keras.saving.load_model(folder / "model.keras", compile=False)
        outputs = outputs_of(model, inputs)
    except Exception as error:
        return {"error": target.said(error)}
    pairs = zip(outputs, expected, strict=True)
    differences = [
        np.abs(keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")) - y).max()
        / max(np.abs(y).max(), 1e-6)
        for x, y in pairs
    ]
    if not differences:
        return {}
    worst = float(np.max(differences))
    if math.isfinite(worst):
        return {"difference": worst}
    if all(np.isfinite(y).all() for y in expected):
        return {"error": "its outputs are not finite there"}
    return {"difference": 0.0}  # what is not finite before is said elsewhere


if __name__ == "__main__":
    children.answer(compare, json.loads(sys.argv[1]))
