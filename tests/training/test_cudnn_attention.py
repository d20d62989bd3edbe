"""cuDNN's attention: what is emitted for XLA, when it is, and on a GPU what it computes."""

import contextlib
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import policies
from tfmp.training import cudnn_attention
from tfmp.training.attention import in_parts
from tfmp.training.cudnn_attention import attention, keras_attention


def tensors(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [tf.cast(rng.standard_normal(shape), dtype) for _ in range(4)]


def step(function):
    """Output and gradients of (query, key, value, upstream), compiled."""

    @tf.function(jit_compile=True, autograph=False)
    def run(query, key, value, upstream):
        inputs = [query, key, value]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            out = function(*inputs)
        upstream = tf.cast(upstream, out.dtype)
        return out, *tape.gradient(out, inputs, output_gradients=upstream)

    return run


@pytest.mark.parametrize("is_causal", [False, True])
def test_both_calls_are_emitted_with_their_shapes_and_products(is_causal):
    run = step(lambda *x: attention(*x, scale=0.25, is_causal=is_causal))
    x = tensors((2, 6, 3, 16), tf.float16)
    text = run.experimental_get_compiler_ir(*x)(stage="hlo")
    calls = re.findall(r"= (\(.*?\)) custom-call\(.*?target=\"(.*?)\".*?backend_config=(.*)", text)
    (of_forward, forward, first), (of_backward, backward, second) = calls
    assert (forward, backward) == (cudnn_attention.FORWARD, cudnn_attention.BACKWARD)
    heads_first = "f16[2,3,6,16]{3,1,2,0}"  # and yet tokens outside of heads in the memory
    assert of_forward == f"({heads_first}, f32[2,3,6]{{2,1,0}}, u8[0]{{0}})"
    assert of_backward == f"({heads_first}, {heads_first}, {heads_first}, u8[0]{{0}})"
    for config, products in (
        (first, cudnn_attention.FORWARD_PRODUCTS),
        (second, cudnn_attention.BACKWARD_PRODUCTS),
    ):
        found = json.loads(config)["cudnn_fmha_backend_config"]
        assert found["mask_type"] == ("CAUSAL" if is_causal else "NO_MASK")
        assert found["fmha_scale"] == 0.25
        assert found["intermediate_tensor_shape"]["dimensions"] == ["2", "3", "6", "6"]
        assert {f"{name}_dot_dimension_numbers" for name in products} <= set(found)


def test_the_products_are_those_of_attention_and_its_gradient():
    """Each product's axes, as an einsum, against TensorFlow's gradient of attention."""
    query, key, value, upstream = tensors((2, 5, 3, 4), tf.float64)

    def product(name, left, right, out):
        table = cudnn_attention.FORWARD_PRODUCTS | cudnn_attention.BACKWARD_PRODUCTS
        left_sum, right_sum, left_batch, right_batch = table[name]
        letters = dict(zip((0, *left_batch[1:]), "zn", strict=True)) | {left_sum: "s"}
        first = "".join(letters.get(axis, "l") for axis in range(4))
        letters = dict(zip((0, *right_batch[1:]), "zn", strict=True)) | {right_sum: "s"}
        second = "".join(letters.get(axis, "r") for axis in range(4))
        return tf.einsum(f"{first},{second}->{out}", left, right)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch([query, key, value])
        logits = tf.einsum("bqhd,bkhd->bhqk", query, key)
        weights = tf.nn.softmax(logits)
        out = tf.einsum("bhqk,bkhd->bqhd", weights, value)
    of_logits = tape.gradient(out, logits, output_gradients=upstream)
    of_weights = tape.gradient(out, weights, output_gradients=upstream)
    for name, left, right, form, expected in (
        ("bmm1", query, key, "znlr", logits),
        ("bmm2", weights, value, "zlnr", out),
        ("bmm1_grad_gemm1", of_logits, query, "zlnr", None),
        ("bmm1_grad_gemm2", of_logits, key, "zlnr", None),
        ("bmm2_grad_gemm1", weights, upstream, "zlnr", None),
        ("bmm2_grad_gemm2", upstream, value, "znlr", of_weights),
    ):
        if expected is None:
            of = {"bmm1_grad_gemm1": key, "bmm1_grad_gemm2": query, "bmm2_grad_gemm1": value}[name]
            expected = tape.gradient(out, of, output_gradients=upstream)
        np.testing.assert_allclose(product(name, left, right, form), expected, atol=1e-12)


def test_what_the_kernel_can_not_do_is_left_to_keras(monkeypatch):
    monkeypatch.setattr(cudnn_attention, "is_available", lambda: True)
    query, key, value, _ = tensors((2, 6, 3, 16), tf.float16)
    fits = cudnn_attention.fits
    assert fits(query, key, value) and fits(query, key[:, :5], value[:, :5], scale=0.5)
    mask = tf.ones([6, 6], tf.bool)
    assert not fits(query, key, value, mask=mask) and not fits(query, key, value, bias=query)
    assert not fits(query, key, value, scale=tf.constant(0.5))
    assert not fits(*(tf.cast(x, tf.float32) for x in (query, key, value)))
    assert not fits(query, key, value[..., :8]) and not fits(query, key[:, :, :1], value[:, :, :1])
    assert not fits(*(x[..., :12] for x in (query, key, value)))  # no multiple of 8
    assert not fits(*(tf.tile(x, [1, 1, 1, 9]) for x in (query, key, value)))  # 144 features
    with monkeypatch.context() as patch:
        patch.setattr(cudnn_attention, "is_op_determinism_enabled", lambda: True)
        assert not fits(query, key, value)
    monkeypatch.setattr(cudnn_attention, "is_available", lambda: False)
    assert not fits(query, key, value)


@pytest.mark.parametrize("chosen", [True, False])
def test_where_it_is_chosen_attention_is_not_computed_in_parts(monkeypatch, chosen):
    monkeypatch.setattr(cudnn_attention, "is_available", lambda: True)
    x = keras.Input((6, 2, 8), batch_size=3, dtype="float16")
    model = keras.Model(x, keras.ops.dot_product_attention(x, x, x, scale=1.0, is_causal=True))

    @tf.function(jit_compile=True, autograph=False)
    def run(x):
        context = cudnn_attention.cudnn_attention() if chosen else contextlib.nullcontext()
        with context, in_parts(model, 2):
            return model(x)

    text = run.experimental_get_compiler_ir(tf.zeros([3, 6, 2, 8], tf.float16))(stage="hlo")
    assert text.count(f'"{cudnn_attention.FORWARD}"') == (1 if chosen else 0)
    assert text.count(" concatenate(") == (0 if chosen else 1)


def test_keras_own_is_back_behind_the_context_whatever_happens():
    from keras.src.backend.tensorflow import nn

    with contextlib.suppress(ZeroDivisionError), cudnn_attention.cudnn_attention():
        assert nn.dot_product_attention is not keras_attention
        x = tensors((1, 4, 1, 8), tf.float32)[0]
        expected = keras_attention(x, x, x, is_causal=True)
        np.testing.assert_array_equal(
            keras.ops.dot_product_attention(x, x, x, is_causal=True), expected
        )
        raise ZeroDivisionError
    assert nn.dot_product_attention is keras_attention


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="has a GPU")
def test_without_a_gpu_it_is_not_available():
    assert not cudnn_attention.is_available()


def test_where_the_kernel_fails_there_is_a_note_and_keras_own(monkeypatch):
    """On a machine that says it has a GPU: XLA for CPUs has no such call."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one"])
    details = {"compute_capability": (9, 0)}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    with pytest.warns(UserWarning, match="can't be used, and Keras' own is"):
        assert not cudnn_attention.is_available.__wrapped__()
    details["compute_capability"] = (7, 5)
    assert not cudnn_attention.is_available.__wrapped__()


def test_its_trial_has_both_directions_also_while_a_step_is_traced():
    texts = []

    @tf.function(autograph=False)
    def step():
        with tf.init_scope():
            run = tf.function(
                cudnn_attention._gradient_of_attention, jit_compile=True, autograph=False
            )
            get = run.experimental_get_compiler_ir(tf.ones([1, 8, 1, 8], tf.float16))
            texts.append(get(stage="hlo"))

    step()
    for target in (cudnn_attention.FORWARD, cudnn_attention.BACKWARD):
        assert texts[0].count(f'"{target}"') == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
@pytest.mark.parametrize(
    ("shape", "is_causal"),
    [((4, 197, 6, 64), False), ((2, 1024, 12, 64), True), ((4, 5, 4, 24), True)],
)
def test_it_is_as_near_to_float32_as_keras_own(dtype, shape, is_causal):
    assert cudnn_attention.is_available()
    x, scale = tensors(shape, dtype), shape[-1] ** -0.5
    exact = step(lambda *x: keras_attention(*x, scale=scale, is_causal=is_causal))(
        *(tf.cast(part, tf.float32) for part in x)
    )
    ours = step(lambda *x: attention(*x, scale=scale, is_causal=is_causal))(*x)
    theirs = step(lambda *x: keras_attention(*x, scale=scale, is_causal=is_causal))(*x)
    for name, got, keras_own, expected in zip("oqkv", ours, theirs, exact, strict=True):
        off, usual = (np.abs(np.float32(y) - expected).max() for y in (got, keras_own))
        assert off <= 1.5 * usual, name


@pytest.mark.gpu
def test_a_model_with_attention_trains_through_it():
    with policies.scope("mixed_float16"):
        inputs = keras.Input((32, 64))
        x = keras.layers.MultiHeadAttention(4, 16)(inputs, inputs, use_causal_mask=True)
        outputs = keras.layers.Dense(1, dtype="float32")(x)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse", jit_compile=True)
    tfmp.accelerate(model)
    x = np.random.default_rng(0).standard_normal((64, 32, 64)).astype("float32")
    losses = model.fit(x, x[..., :1], batch_size=16, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
