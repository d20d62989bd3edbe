"""cuDNN's fused attention in a training step that XLA compiles for a GPU.

Keras' TensorFlow backend writes down the logits of all pairs of tokens, [batch, heads, queries,
keys], and reads them again, several times in each direction. cuDNN's kernel keeps a tile of them
on the chip and writes only the result and, for the backward pass, each query's log of the
softmax's sum: memory grows with the number of tokens and not with its square. XLA knows cuDNN's
kernel as a custom call, and TensorFlow's XLA bridge can emit one.

While a step is traced, `fused_attention` stands in for Keras' `dot_product_attention`, which
`keras.ops.dot_product_attention` and `keras.layers.MultiHeadAttention` call. What the kernel has
not (float32, masks but the causal one, a bias, sizes that it can't do) goes to Keras' own.

References:
    Dao et al. 2022, FlashAttention, arXiv:2205.14135, algorithms 1 and 4.
    XLA, xla/service/gpu/backend_configs.proto, CudnnfMHABackendConfig.
"""

import contextlib
import json

import tensorflow as tf
from keras.src.backend.tensorflow import nn  # `keras.ops` dispatches to its functions

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
TYPES = {tf.float16: "F16", tf.bfloat16: "BF16"}
# Of a head's features, by cuDNN's support matrix for Ampere; Hopper has up to 256.
MOST_FEATURES = 128
FEATURES_MULTIPLE = 8
# First NVIDIA architecture with the kernels: Ampere.
LEAST_CAPABILITY = (8, 0)

# Matrix products inside: (contracting axes of left and right, batch axes of left and right).
# Queries, keys, values and what comes out are [batch, tokens, heads, features] (BTNH, BSNH), the
# logits [batch, heads, queries, keys] (BNTS).
PRODUCTS = {
    False: {
        "bmm1": (3, 3, (0, 2), (0, 2)),
        "bmm2": (3, 1, (0, 1), (0, 2)),
    },
    True: {
        "bmm1_grad_gemm1": (2, 1, (0, 1), (0, 2)),
        "bmm1_grad_gemm2": (3, 1, (0, 1), (0, 2)),
        "bmm2_grad_gemm1": (2, 1, (0, 1), (0, 2)),
        "bmm2_grad_gemm2": (3, 3, (0, 2), (0, 2)),
    },
}

keras_attention = nn.dot_product_attention


@contextlib.contextmanager
def fused_attention():
    """A context in which Keras' attention is cuDNN's where that can be; for tracing under XLA."""
    nn.dot_product_attention = _attention
    try:
        yield
    finally:
        nn.dot_product_attention = keras_attention


def _attention(
    query, key, value, bias=None, mask=None, scale=None, is_causal=False, *args, **kwargs
):
    if (
        bias is None
        and mask is None
        and not args
        and not any(kwargs.values())
        and _fits(query, key, value, scale)
    ):
        size = query.shape[-1]
        return attention(query, key, value, size**-0.5 if scale is None else scale, is_causal)
    return keras_attention(query, key, value, bias, mask, scale, is_causal, *args, **kwargs)


def _fits(query, key, value, scale):
    """Whether the kernel computes attention of such tensors."""
    shapes = [x.shape for x in (query, key, value)]
    return (
        {query.dtype, key.dtype, value.dtype} in [{kind} for kind in TYPES]
        and all(len(shape) == 4 and None not in shape for shape in shapes)
        and shapes[1] == shapes[2]
        and shapes[0][2:] == shapes[1][2:]
        and shapes[0][-1] % FEATURES_MULTIPLE == 0
        and shapes[0][-1] <= MOST_FEATURES
        and (scale is None or isinstance(scale, float | int))
        and _has_kernels()
    )


def _has_kernels():
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return bool(gpus) and all(
        found.get("compute_capability", (0, 0)) >= LEAST_CAPABILITY for found in details
    )


def attention(query, key, value, scale, is_causal):
    """Softmax of scaled products of queries and keys, times the values, by cuDNN; needs XLA.

    Args:
        query: [batch, queries, heads, features] float16 or bfloat16, of static shape.
        key: [batch, keys, heads, features], likewise.
        value: Likewise.
        scale: Factor of the products, which are float32 inside, as the softmax is.
        is_causal: Whether a query sees only keys up to its own position.

    Returns:
        [batch, queries, heads, features] of the queries' dtype.
    """
    from tensorflow.compiler.tf2xla.python import xla  # loads nothing that isn't there

    batch, queries, heads, features = query.shape
    keys, dtype = key.shape[1], query.dtype

    def call(target, backward, operands, *shapes):
        config = _config(batch, heads, queries, keys, dtype, scale, is_causal, backward)
        specs = [tf.TensorSpec(shape, kind) for shape, kind in shapes]
        specs.append(tf.TensorSpec([0], tf.uint8))  # the workspace, whose size XLA fills in
        return xla.custom_call_v2(target, operands, specs, config, False)[:-1]

    @tf.custom_gradient
    def attend(query, key, value):
        out, statistics = call(
            FORWARD,
            False,
            [query, key, value],
            ([batch, heads, queries, features], dtype),
            ([batch, heads, queries], tf.float32),
        )
        out = tf.transpose(out, [0, 2, 1, 3])

        def gradient(upstream):
            found = call(
                BACKWARD,
                True,
                [query, key, value, statistics, upstream, out],
                ([batch, heads, queries, features], dtype),
                ([batch, heads, keys, features], dtype),
                ([batch, heads, keys, features], dtype),
            )
            return [tf.transpose(x, [0, 2, 1, 3]) for x in found]

        return out, gradient

    return attend(query, key, value)


def _config(batch, heads, queries, keys, dtype, scale, is_causal, backward):
    """What XLA's compiler reads of the call, as JSON of its GpuBackendConfig."""
    products = {
        f"{name}_dot_dimension_numbers": {
            "lhs_contracting_dimensions": [str(left)],
            "rhs_contracting_dimensions": [str(right)],
            "lhs_batch_dimensions": [str(axis) for axis in left_batch],
            "rhs_batch_dimensions": [str(axis) for axis in right_batch],
        }
        for name, (left, right, left_batch, right_batch) in PRODUCTS[backward].items()
    }
    logits = {
        "element_type": TYPES[dtype],
        "dimensions": [str(n) for n in (batch, heads, queries, keys)],
        "layout": {"minor_to_major": ["3", "2", "1", "0"]},
        "is_dynamic_dimension": [False] * 4,
    }
    algorithm = {
        "algo_id": "0",
        "math_type": "TENSOR_OP_MATH",
        "tuning_knobs": {"17": "1", "24": "0"},
        "is_cudnn_frontend": True,
        "workspace_size": "0",
    }
    found = {
        "algorithm": algorithm,
        "fmha_scale": scale,
        "intermediate_tensor_shape": logits,
        "is_flash_attention": True,
        "mask_type": "CAUSAL" if is_causal else "NO_MASK",
        "dropout_rate": 0.0,
        "seed": 42,
        "sliding_window_length": 0,
        "max_seg_per_batch": 1,
        "is_paged_attention": False,
        **products,
    }
    return json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": found})
