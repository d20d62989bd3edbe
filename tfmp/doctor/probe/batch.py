"""The batch that a model is probed with: given, or drawn from the inputs that it declares."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Rows of a drawn batch: fewer where they are large, such as images of 224 px.
ROWS, FEW_ROWS, LARGE = 8, 2, 2**14
# What stands for sides that a model leaves open: images of 64 px, sequences of 16.
IMAGE_SIDE, LENGTH = 64, 16


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a model is fed.

    Attributes:
        inputs: As the model takes them.
        labels: As the loss takes them; None where there are none.
        drawn: Whether the inputs are random.
        own_loss: Whether the loss is not that of `compile`.
    """

    inputs: Any
    labels: Any = None
    drawn: bool = False
    own_loss: bool = False

    def data(self):
        """As `train_step` takes it."""
        if self.labels is not None:
            return (self.inputs, self.labels)
        return (self.inputs,) if isinstance(self.inputs, list | tuple) else self.inputs


def tensors(values):
    """Nested arrays as tensors; float64, which numpy makes of any number, as float32."""

    def one(value):
        value = tf.convert_to_tensor(value)
        return tf.cast(value, "float32") if value.dtype == tf.float64 else value

    return keras.tree.map_structure(one, values)


def draw(model: keras.Model, seed: int = 0):
    """Random inputs of a model, by what it declares: normal floats, all values of uint8.

    Other integers are below the smallest vocabulary of the model's embeddings.

    Returns:
        The inputs; None where the model doesn't say what it takes, or takes strings.
    """
    rng = np.random.default_rng(seed)
    layers = model._flatten_layers()
    words = min((x.input_dim for x in layers if isinstance(x, keras.layers.Embedding)), default=2)

    def one(spec):
        shape, dtype = spec.shape, tf.as_dtype(spec.dtype)
        open_side = IMAGE_SIDE if len(shape) == 4 else LENGTH
        sizes = [1, *(open_side if n is None else n for n in shape[1:])]
        rows = FEW_ROWS if np.prod(sizes[1:]) > LARGE else ROWS
        sizes[0] = rows if shape[0] is None else shape[0]
        if dtype.is_floating:
            return tf.constant(rng.standard_normal(sizes), dtype)
        highest = 2 if dtype.is_bool else 256 if dtype == tf.uint8 else words
        return tf.cast(rng.integers(0, highest, sizes), dtype)

    declared = _declared(model)
    specs = keras.tree.flatten(declared)
    if not specs or any(tf.as_dtype(x.dtype) == tf.string for x in specs):
        return None
    return keras.tree.map_structure(one, declared)


def _declared(model):
    """Nested Keras tensors of what a model takes."""
    if getattr(model, "inputs", None):
        single = isinstance(model, keras.Sequential) and len(model.inputs) == 1
        return model.inputs[0] if single else model.input
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    # A shape says nothing of the dtype, nor of what a number means to an embedding.
    tokens = any(isinstance(x, keras.layers.Embedding) for x in model._flatten_layers())
    shape = shapes.get("input_shape") if len(shapes) == 1 else None
    if tokens or not isinstance(shape, tuple) or not all(n is None or n > 0 for n in shape):
        return None
    return keras.KerasTensor((None, *shape[1:]), "float32")


def labels_for(loss, outputs, seed: int = 0):
    """Random labels of a loss for a model's outputs.

    Args:
        loss: The loss: its name, a function or a Keras loss.
        outputs: [batch, ..., n] float tensor.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng(seed)
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    shape = tuple(outputs.shape)
    if "sparse" in str(name):
        return tf.constant(rng.integers(0, shape[-1], shape[:-1]), "int32")
    if "categorical" in str(name):
        return tf.one_hot(rng.integers(0, shape[-1], shape[:-1]), shape[-1])
    if "binary" in str(name):
        return tf.constant(rng.integers(0, 2, shape), "float32")
    return tf.constant(rng.standard_normal(shape), "float32")
