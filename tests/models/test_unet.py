"""U-Nets: published counts, bilinear upsampling against Keras', policies, and plain Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp.models import build, unet
from tfmp.policies import scope

# Of the published form, with biases and without normalization, for one channel and one class:
# "U-Net" in the table of model complexity of EdgeAttNet's README (arXiv:2509.02964).
PUBLISHED = 31_030_593


def small(**options):
    return build("unet_small", **{"classes": 11, "input_shape": (16, 24, 1), "seed": 0, **options})


def images(dtype="uint8"):
    return np.random.default_rng(0).integers(0, 256, (2, 16, 24, 1)).astype(dtype)


def test_parameters_equal_the_published_ones():
    model = build("unet", classes=1, input_shape=(32, 32, 1))
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    trainable = sum(
        v.shape.num_elements() for v in map(lambda v: v.value, model.trainable_variables)
    )
    # A normalization has two parameters a channel, where the published convolution has a bias.
    channels = sum(x.gamma.shape[0] for x in norms)
    assert trainable - channels == PUBLISHED
    assert len(norms) == 18 and channels == 2 * sum((64, 128, 256, 512, 1024, 512, 256, 128, 64))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(5, 3, 2), (1, 4, 1)])
def test_bilinear_upsampling_is_keras_own_up_to_rounding(dtype, jit_compile, shape):
    x = tf.cast(np.random.default_rng(0).normal(size=(4, *shape)), dtype)
    expected = keras.layers.UpSampling2D(2, interpolation="bilinear", dtype="float32")

    def with_gradient(function, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
        return y, tape.gradient(loss, x)

    run = tf.function(with_gradient, jit_compile=jit_compile)
    y, gradient = run(unet.bilinear, x)
    assert y.dtype == gradient.dtype == dtype
    right, right_gradient = with_gradient(expected, tf.cast(x, tf.float32))
    eps = (
        np.finfo(np.float32).eps
        if dtype == "float32"
        else {"float16": 2**-10, "bfloat16": 2**-7}[dtype]
    )
    np.testing.assert_allclose(np.asarray(y, np.float32), right, atol=6 * eps)
    np.testing.assert_allclose(np.asarray(gradient, np.float32), right_gradient, atol=60 * eps)


@pytest.mark.parametrize("upsampling", unet.UPSAMPLINGS)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_logits_are_float32_for_each_pixel_and_every_weight_gets_a_gradient(policy, upsampling):
    with scope(policy) as in_force:
        model = small(upsampling=upsampling)
    assert model.get_layer("up1_conv1").compute_dtype == in_force.compute_dtype
    assert {v.dtype for v in model.variables} == {"float32"}

    @tf.function(jit_compile=True)
    def run(x):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = tf.reduce_mean(logits**2)
        return logits, tape.gradient(loss, model.trainable_variables)

    logits, gradients = run(images())
    assert logits.shape == (2, 16, 24, 11) and logits.dtype == tf.float32
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient), variable.path
    np.testing.assert_array_equal(model(images()), model(images("float32")))


def test_the_last_level_sees_details_of_the_first_and_pixels_far_away():
    model = small()
    x = images("float32")
    before = np.asarray(model(x))
    x[0, 8, 8] += 100.0
    changed = np.abs(np.asarray(model(x)) - before).max(-1)
    assert changed[0, 8, 8] > 0 and changed[0, 8, 20] > 0 and not changed[1].any()


def test_a_saved_model_loads_in_plain_keras(tmp_path, run_fresh):
    expected = {}
    for upsampling in unet.UPSAMPLINGS:
        with scope("mixed_float16"):
            model = small(upsampling=upsampling)
        model.save(tmp_path / f"{upsampling}.keras")
        expected[upsampling] = np.asarray(model(images()))
    np.save(tmp_path / "images.npy", images())
    code = (
        "import pathlib, sys, keras, numpy as np\n"
        "for file in pathlib.Path().glob('*.keras'):\n"
        "    model = keras.models.load_model(file)\n"
        "    np.save(file.stem, model(np.load('images.npy')))\n"
        "assert not any(name.startswith('tfmp') for name in sys.modules)"
    )
    run_fresh("-c", code, cwd=tmp_path)
    for upsampling, logits in expected.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{upsampling}.npy"), logits)


def test_what_cannot_be_built_says_why():
    with pytest.raises(ValueError, match=r"halved 2 times, multiples of 4. Received: 18x24"):
        small(input_shape=(18, 24, 1))
    with pytest.raises(ValueError, match=r"upsampling: .*transposed, bilinear. Received: 'cubic'"):
        small(upsampling="cubic")
    with pytest.raises(ValueError, match=r"filters and depth: expected 1 or more. Received: 0, 2"):
        unet.unet(filters=0, depth=2, classes=2, input_shape=(8, 8, 1))
