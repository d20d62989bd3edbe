"""Work of a model: the multiply-adds of its convolutions, dense layers and attention."""

import math
import re

import keras
from keras import layers
from keras.src.ops.nn import DotProductAttention  # these two have no public names
from keras.src.ops.numpy import Einsum

DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
COUNTED = (layers.Dense, layers.EinsumDense, *DEPTHWISE, *CONVOLUTIONS, *TRANSPOSED)
PRODUCTS = (Einsum, DotProductAttention)


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds of the forward pass of one example.

    Convolutions, dense layers, logits by a `ReversibleEmbedding`, and products of activations
    (attention, `keras.ops.einsum`) only, as published figures count; a layer counts once, so a
    model that calls one several times has more. Attention counts all pairs of tokens, those too
    that a causal mask leaves out. A multiply-add is two floating-point operations, and a training
    step does about three times those of a forward pass: the backward pass computes a gradient of
    the inputs and one of the weights.

    Args:
        model: Built functional or Sequential model.

    Returns:
        A count, 4.09e9 for a ResNet-50 of 224 pixels.
    """
    of_layers = sum(
        of_layer(layer, layer.output.shape)
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, COUNTED)
    )
    of_logits = sum(
        math.prod(node.input_tensors[0].shape[1:]) * node.operation.input_dim
        for node in _nodes(model)
        if makes_logits(node.operation, node.input_tensors)
    )
    return of_layers + of_logits + sum(map(of_product, products(model)))


def makes_logits(layer, inputs) -> bool:
    """Whether a call is of an embedding's matrix the other way round, from features to logits."""
    if not isinstance(layer, layers.ReversibleEmbedding):
        return False
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(inputs[0].dtype))


def products(model: keras.Model) -> list:
    """Keras' nodes that multiply activations, as attention does, of the functional models in it."""
    return [node for node in _nodes(model) if isinstance(node.operation, PRODUCTS)]


def _nodes(model):
    graphs = [x for x in model._flatten_layers() if hasattr(x, "_nodes_by_depth")]
    return [node for x in graphs for nodes in x._nodes_by_depth.values() for node in nodes]


def of_product(node) -> int:
    """Multiply-adds of a node of `products` for one example."""
    shapes = [x.shape for x in node.input_tensors]
    if isinstance(node.operation, DotProductAttention):
        (_, queries, heads, size), (_, keys, *_) = shapes[:2]
        return 2 * queries * keys * heads * size
    return of_einsum(node.operation.subscripts, shapes)


def of_einsum(subscripts: str, shapes: list[tuple[int | None, ...]]) -> int:
    """Multiply-adds of an einsum for one example: one for each combination of its indices.

    Args:
        subscripts: Such as "bqhd,bkhd->bhqk".
        shapes: Shapes of what is multiplied; only the batch may be unknown.
    """
    terms = subscripts.replace(" ", "").partition("->")[0].split(",")
    sizes = {
        index: size
        for term, shape in zip(terms, shapes, strict=True)
        for index, size in zip(term, shape, strict=True)
    }
    return math.prod(size or 1 for index, size in sizes.items() if index != terms[0][0])


def einsum_sizes(layer: layers.EinsumDense) -> tuple[int, int]:
    """Elements of the layer's kernel along the axes that are summed, and along the others."""
    _, weights, outputs = re.split(",|->", layer.equation.replace(" ", ""))
    summed = [n for n, axis in zip(layer.kernel.shape, weights, strict=True) if axis not in outputs]
    return math.prod(summed), math.prod(layer.kernel.shape) // math.prod(summed)


def of_layer(layer: keras.Layer, output_shape: tuple[int | None, ...]) -> int:
    """Multiply-adds of one call of a layer for one example; 0 of layers that are not `COUNTED`.

    Args:
        layer: A built layer.
        output_shape: What this call returns; only the batch may be unknown.
    """
    outputs = math.prod(size or 0 for size in output_shape[1:])
    if isinstance(layer, layers.Dense):
        return outputs * layer.kernel.shape[0]
    if isinstance(layer, layers.EinsumDense):
        return outputs * einsum_sizes(layer)[0]
    if isinstance(layer, DEPTHWISE):
        return outputs * math.prod(layer.kernel_size)
    if isinstance(layer, CONVOLUTIONS):
        # The kernel's last axis is the filters, counted in the output already.
        return outputs * math.prod(layer.kernel.shape[:-1])
    if isinstance(layer, TRANSPOSED):
        # Each input meets the whole kernel, and there are as many of them as of the outputs,
        # divided by the strides (where the borders aren't cut or filled up).
        return outputs // math.prod(layer.strides) * math.prod(layer.kernel.shape) // layer.filters
    return 0
