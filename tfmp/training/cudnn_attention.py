"""cuDNN's attention, in a training step that XLA compiles for a GPU.

Keras' TensorFlow backend writes down the logits of all pairs of tokens, [batch, heads, queries,
keys], and reads them again, several times in each direction. cuDNN's kernel keeps a tile of them
on the chip and writes only the result and, for the backward pass, the log of the sum in each
query's softmax: its memory grows with the number of tokens and not with their square. XLA knows
the kernel as a custom call, and TensorFlow can emit one.

While a step is traced, `cudnn_attention` stands in for what `keras.ops.dot_product_attention` and
`keras.layers.MultiHeadAttention` call. What the kernel can't do (float32, masks but the causal
one, a bias, batches of unknown size) goes to Keras' own, and so does all where operations have to
be deterministic: cuDNN's gradient of the queries is a sum in any order. Both have the softmax in
float32.

References:
    Dao et al. 2022, FlashAttention, arXiv:2205.14135, algorithms 1 and 4.
    XLA, xla/service/gpu/backend_configs.proto, CudnnfMHABackendConfig: the fields of `_config`.
"""

import functools
import json
import warnings

import tensorflow as tf
from keras.src.backend.tensorflow import nn  # `keras.ops` looks its functions up there
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.framework.config import is_op_determinism_enabled  # no public one

from tfmp.training.replaced import replaced_operation

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
TYPES = {tf.float16: "F16", tf.bfloat16: "BF16"}
MLIR_TYPES = {tf.float16: "f16", tf.bfloat16: "bf16", tf.float32: "f32", tf.uint8: "ui8"}
MODULE_VERSION = 9  # of how TensorFlow takes such a module
# cuDNN's kernels want Ampere or later, and of a head's features a multiple of 8, up to 128.
LEAST_CAPABILITY = (8, 0)
FEATURES_MULTIPLE, MOST_FEATURES = 8, 128

# The matrix products inside, by their names in XLA: the axes that are summed, left and right, and
# the batch axes of both. Queries, keys, values and all that has their shape are [batch, tokens,
# heads, features], logits [batch, heads, queries, keys].
FORWARD_PRODUCTS = {
    "bmm1": (3, 3, (0, 2), (0, 2)),
    "bmm2": (3, 1, (0, 1), (0, 2)),
}
BACKWARD_PRODUCTS = {
    "bmm1_grad_gemm1": (2, 1, (0, 1), (0, 2)),
    "bmm1_grad_gemm2": (3, 1, (0, 1), (0, 2)),
    "bmm2_grad_gemm1": (2, 1, (0, 1), (0, 2)),
    "bmm2_grad_gemm2": (3, 3, (0, 2), (0, 2)),
}

keras_attention = nn.dot_product_attention


def cudnn_attention():
    """A context in which Keras' attention is cuDNN's where it can be; for tracing under XLA."""
    return replaced_operation("dot_product_attention", _attention)


def takes(*tensors):
    """Whether cuDNN computes attention of such tensors here and now; arguments as for `fits`."""
    return nn.dot_product_attention is _attention and fits(*tensors)


def fits(query, key, value, bias=None, mask=None, scale=None):
    """Whether cuDNN computes attention of such tensors on this machine.

    Args:
        query: Tensor, as Keras' `dot_product_attention` takes it.
        key: Likewise.
        value: Likewise.
        bias: Likewise.
        mask: Likewise.
        scale: Likewise.
    """
    shapes = [x.shape for x in (query, key, value)]
    return (
        bias is None
        and mask is None
        and (scale is None or isinstance(scale, float | int))
        and query.dtype in TYPES
        and query.dtype == key.dtype == value.dtype
        and all(len(shape) == 4 and None not in shape for shape in shapes)
        and shapes[1] == shapes[2]
        and shapes[0][2:] == shapes[1][2:]
        and shapes[0][-1] % FEATURES_MULTIPLE == 0
        and shapes[0][-1] <= MOST_FEATURES
        and not is_op_determinism_enabled()
        and is_available()
    )


@functools.cache
def is_available():
    """Whether this machine's GPUs, cuDNN and XLA compute attention: tried once, on a small one."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    capabilities = [x.get("compute_capability", (0, 0)) for x in details]
    if not gpus or min(capabilities) < LEAST_CAPABILITY:
        return False
    run = tf.function(_gradient_of_attention, jit_compile=True, autograph=False)
    try:
        with tf.init_scope(), tf.device("GPU:0"):
            found = run(tf.ones([1, 8, 1, 8], tf.float16))
            return bool(tf.reduce_all(tf.math.is_finite(found)))
    except Exception as error:  # whatever it is, there is another way to go on
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(
            f"cuDNN's attention can't be used, and Keras' own is, which is slower: {reason}",
            stacklevel=2,
        )
        return False


def _gradient_of_attention(x):
    # By no GradientTape, since `init_scope` stops them all.
    (gradient,) = tf.gradients(attention(x, x, x, scale=1.0, is_causal=True), x)
    return gradient


def _attention(query, key, value, bias=None, mask=None, scale=None, is_causal=False, **more):
    if any(more.values()) or not fits(query, key, value, bias, mask, scale):
        return keras_attention(query, key, value, bias, mask, scale, is_causal, **more)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return attention(query, key, value, scale=scale, is_causal=is_causal)


def attention(query, key, value, *, scale, is_causal):
    """Softmax of the scaled products of queries and keys, times the values, by cuDNN; needs XLA.

    Args:
        query: [batch, queries, heads, features] float16 or bfloat16, of static shape.
        key: [batch, keys, heads, features], likewise.
        value: Likewise.
        scale: Factor of the products, which are float32 inside.
        is_causal: Whether a query sees only keys up to its own position.

    Returns:
        [batch, queries, heads, features] of the queries' dtype.
    """
    batch, queries, heads, _ = query.shape
    logits = batch, heads, queries, key.shape[1]
    sums = tf.TensorSpec(logits[:3], tf.float32)
    config = functools.partial(_config, logits, query.dtype, scale, is_causal)

    @tf.custom_gradient
    def attend(query, key, value):
        inputs = [query, key, value]
        out, log_sums = _call(FORWARD, inputs, config(FORWARD_PRODUCTS), [query, sums])

        def gradients(upstream):
            operands = [*inputs, log_sums, upstream, out]
            return _call(BACKWARD, operands, config(BACKWARD_PRODUCTS), inputs)

        return out, gradients

    return attend(query, key, value)


def _call(target, operands, config, like):
    """XLA's custom call of a kernel of cuDNN.

    It is a module of StableHLO, since that says how results lie in the memory. cuDNN's have heads
    before tokens in their shape; laid out with tokens before heads, they are transposed for free.

    Args:
        target: The kernel's name in XLA.
        operands: List of tensors.
        config: JSON, for XLA's compiler.
        like: Tensors, or their specs, of the shapes and dtypes that the results have.

    Returns:
        List of tensors.
    """
    results = [tf.TensorSpec(x.shape, x.dtype) for x in like]
    made = [*map(_heads_first, results), tf.TensorSpec([0], tf.uint8)]  # and a workspace
    module = _module(target, operands, config, made, results)
    return xla.call_module(
        operands,
        version=MODULE_VERSION,
        module=module,
        Tout=[x.dtype for x in results],
        Sout=[x.shape for x in results],
        platforms=["CUDA"],
        # Any machine can show what is emitted; only XLA's compiler for these GPUs takes it.
        disabled_checks=[xla.call_module_disable_check_platform()],
    )


def _module(target, operands, config, made, results):
    """The text of a module that calls a kernel and transposes what it made."""
    names = [f"%operand{i}" for i in range(len(operands))]
    arguments = [f"{name}: {_mlir(x)}" for name, x in zip(names, operands, strict=True)]
    out = [f"%result{i}" for i in range(len(results))]
    transposed = [
        f"{name} = stablehlo.transpose %made#{i}, dims = {_axes(x)} : ({_mlir(of)}) -> {_mlir(x)}"
        for i, (name, of, x) in enumerate(zip(out, made, results, strict=False))
    ]
    new_line = "\n  "
    return f"""func.func public @main({_listed(arguments)}) -> ({_listed(map(_mlir, results))}) {{
  %made:{len(made)} = "stablehlo.custom_call"({_listed(names)}) {{
    call_target_name = "{target}", backend_config = {json.dumps(config)},
    api_version = 2 : i32, has_side_effect = false, called_computations = [],
    operand_layouts = [{_listed(_layout(range(len(x.shape))) for x in operands)}],
    result_layouts = [{_listed(_layout(_axes(x)) for x in made)}]
  }} : ({_listed(map(_mlir, operands))}) -> ({_listed(map(_mlir, made))})
  {new_line.join(transposed)}
  return {_listed(out)} : {_listed(map(_mlir, results))}
}}"""


def _listed(words):
    return ", ".join(words)


def _axes(x):
    """The axes of a result in the order in which cuDNN has them; and the way back."""
    return [0, 2, 1, 3] if len(x.shape) == 4 else list(range(len(x.shape)))


def _heads_first(x):
    return tf.TensorSpec([x.shape[axis] for axis in _axes(x)], x.dtype)


def _mlir(x):
    """A tensor's type as MLIR writes it."""
    return f"tensor<{'x'.join(map(str, x.shape))}x{MLIR_TYPES[x.dtype]}>"


def _layout(axes):
    """The attribute of a layout that has axes from the outermost to the innermost."""
    return f"dense<{[*axes][::-1]}> : tensor<{len(axes)}xindex>"


def _config(logits_shape, dtype, scale, is_causal, products):
    """What XLA's compiler reads of a call: its GpuBackendConfig as JSON, int64 as strings."""
    numbers = {
        f"{name}_dot_dimension_numbers": {
            "lhs_contracting_dimensions": [str(left)],
            "rhs_contracting_dimensions": [str(right)],
            "lhs_batch_dimensions": [str(axis) for axis in left_batch],
            "rhs_batch_dimensions": [str(axis) for axis in right_batch],
        }
        for name, (left, right, left_batch, right_batch) in products.items()
    }
    return json.dumps(
        {
            "cudnn_fmha_backend_config": {
                "algorithm": {
                    "algo_id": "0",
                    "math_type": "TENSOR_OP_MATH",
                    "tuning_knobs": {"17": "1", "24": "0"},
                    "is_cudnn_frontend": True,
                    "workspace_size": "0",
                },
                "fmha_scale": scale,
                "intermediate_tensor_shape": {
                    "element_type": TYPES[dtype],
                    "dimensions": [str(size) for size in logits_shape],
                    "layout": {"minor_to_major": ["3", "2", "1", "0"]},
                    "is_dynamic_dimension": [False] * 4,
                },
                "is_flash_attention": True,
                "mask_type": "CAUSAL" if is_causal else "NO_MASK",
                "max_seg_per_batch": 1,
                **numbers,
            }
        }
    )
