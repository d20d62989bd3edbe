"""What a model does in a training step: its layers' calls, with sizes, work and memory traffic."""

import contextlib
import math

import keras
import tensorflow as tf
from keras import layers

from tfmp.models import flops
from tfmp.policies.change import sublayers
from tfmp.training.replaced import replaced

TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
NORMALIZATIONS = (
    layers.BatchNormalization,
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.RMSNormalization,
)
POOLINGS = tuple(
    getattr(layers, f"{kind}Pooling{n}D")
    for kind in ("Average", "Max", "GlobalAverage", "GlobalMax")
    for n in (1, 2, 3)
)
MERGES = (
    layers.Add,
    layers.Average,
    layers.Concatenate,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.Subtract,
)
# How often a training step reads or writes a call's inputs and outputs where XLA fuses what is
# elementwise into its neighbors. A product reads its input and writes its output, and in the
# backward pass reads the output's gradient twice, the input once, and writes the input's gradient.
# A normalization: statistics, normalizing (read, write), sums of the gradient (two reads), its
# input's gradient (two reads, a write).
PRODUCT, NORMALIZATION, POOLING, MERGE, FUSED = (3, 3), (0, 8), (2, 2), (0, 2), (0, 0)
# Layers whose own work is more than that of the layers in them, and is not counted.
UNCOUNTED = (layers.MultiHeadAttention, layers.GroupQueryAttention, layers.Attention)


def of_model(model):
    """The calls of a training step, in their order.

    Args:
        model: A built Keras model that knows its inputs.

    Returns:
        A dict that JSON can write:
        `calls`: list of dicts: `name`, `type`, `dtype` (computed in), `multiply_adds` (forward, of
            one example), `inputs`, `outputs` (elements of one example), `passes` (how often a
            training step passes over each of them), and of matrix products `input_size` and
            `output_size` (features or channels), `rows` (positions of one example that a dense
            layer multiplies; None of a convolution), `fixed` (those of the two sizes that the
            data decide).
        `multiply_adds`, `parameters` (trainable): sums.
        `uncounted`: types of layers whose work is not in these figures.
        `output_dtypes`: dtypes of the outputs.
    """
    found: list[dict] = []
    inside = sublayers(model)
    with contextlib.ExitStack() as stack:
        for layer in inside:
            stack.enter_context(_recorded(layer, found))
        specs = keras.tree.map_structure(
            lambda x: tf.TensorSpec(x.shape, x.dtype), inputs_of(model)
        )
        function = tf.function(lambda x: model(x, training=True), autograph=False)
        outputs = keras.tree.flatten(function.get_concrete_function(specs).structured_outputs)
    _note_fixed(found, model.inputs, outputs)
    found += map(_product, flops.products(model))
    return {
        "calls": found,
        "multiply_adds": sum(call["multiply_adds"] for call in found),
        "parameters": sum(math.prod(x.shape) for x in model.trainable_variables),
        "uncounted": sorted({type(x).__name__ for x in inside if _is_uncounted(x)}),
        "output_dtypes": sorted({x.dtype.name for x in outputs}),
    }


def inputs_of(model):
    """The symbolic inputs of a built functional or Sequential model, in its own structure."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def _recorded(layer, found):
    """A context in which a layer's calls are added to a list."""

    def call(*args, **kwargs):
        result = type(layer).call(layer, *args, **kwargs)
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if tf.is_tensor(x)]
        outputs = [x for x in keras.tree.flatten(result) if tf.is_tensor(x)]
        if outputs and not isinstance(layer, keras.Model):
            found.append(_call(layer, tensors, outputs))
        return result

    return replaced(layer, "call", call)


def _call(layer, inputs, outputs):
    logits = flops.makes_logits(layer, inputs)
    sizes = (layer.output_dim, layer.input_dim) if logits else _sizes(layer)
    shapes = inputs[0].shape if inputs else (), outputs[0].shape
    record = {
        "name": layer.path or layer.name,
        "type": type(layer).__name__,
        "dtype": layer.compute_dtype,
        "multiply_adds": _elements(shapes[0]) * layer.input_dim
        if logits
        else _multiply_adds(layer, *shapes),
        "inputs": sum(_elements(x.shape) for x in inputs if x.dtype.is_floating),
        "outputs": sum(_elements(x.shape) for x in outputs if x.dtype.is_floating),
        "passes": PRODUCT if logits else _passes(layer),
    }
    if sizes:
        dense = logits or isinstance(layer, layers.Dense | layers.EinsumDense)
        rows = _elements(outputs[0].shape) // sizes[1] if dense else None
        record |= dict(zip(("input_size", "output_size"), sizes, strict=True))
        record |= {"rows": rows, "fixed": []}
    return record


def _product(node):
    """The record of a product of activations, which no layer makes."""
    return {
        "name": node.operation.name,
        "type": type(node.operation).__name__,
        "dtype": node.outputs[0].dtype,
        "multiply_adds": flops.of_product(node),
        "inputs": sum(_elements(x.shape) for x in node.input_tensors),
        "outputs": _elements(node.outputs[0].shape),
        "passes": PRODUCT,
    }


def _elements(shape):
    return math.prod(size or 1 for size in shape[1:])


def _sizes(layer):
    """(input, output) features or channels of a matrix product's weights; None of others."""
    if isinstance(layer, layers.Dense):
        return tuple(layer.kernel.shape)
    if isinstance(layer, layers.EinsumDense):
        return flops.einsum_sizes(layer)
    if isinstance(layer, TRANSPOSED):
        return layer.kernel.shape[-1], layer.kernel.shape[-2]
    if isinstance(layer, SEPARABLE):
        return tuple(layer.pointwise_kernel.shape[-2:])
    if isinstance(layer, flops.CONVOLUTIONS):
        return tuple(layer.kernel.shape[-2:])
    return None


def _multiply_adds(layer, input_shape, output_shape):
    if isinstance(layer, TRANSPOSED):
        return _elements(input_shape) * math.prod(layer.kernel.shape[:-1])
    if isinstance(layer, SEPARABLE):
        positions = _elements(output_shape) // layer.filters
        kernels = layer.depthwise_kernel, layer.pointwise_kernel
        return positions * sum(math.prod(kernel.shape) for kernel in kernels)
    return flops.of_layer(layer, output_shape)


def _passes(layer):
    if _sizes(layer) or isinstance(layer, flops.DEPTHWISE):
        return PRODUCT
    for kinds, passes in ((NORMALIZATIONS, NORMALIZATION), (POOLINGS, POOLING), (MERGES, MERGE)):
        if isinstance(layer, kinds):
            return passes
    return FUSED


def _is_uncounted(layer):
    own = layer._trainable_variables and not isinstance(layer, layers.Embedding)
    return isinstance(layer, UNCOUNTED) or (own and _passes(layer) == FUSED)


def _note_fixed(calls, inputs, outputs):
    """Marks the first sizes that equal an input's last axis, and the last that equal an output's.

    Those are the channels of the images and the number of classes, in all but odd models.
    """
    products = [call for call in calls if "rows" in call]
    given, asked = ({x.shape[-1] for x in ends if len(x.shape) > 1} for ends in (inputs, outputs))
    made: set = set()
    for call in products:
        if call["input_size"] in given - made:
            call["fixed"].append("input_size")
        made.add(call["output_size"])
    taken: set = set()
    for call in reversed(products):
        if call["output_size"] in asked - taken:
            call["fixed"].append("output_size")
        taken.add(call["input_size"])
