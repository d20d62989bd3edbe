"""DCGANs: sizes, range and dtype of the images, and a generator that loads without tfmp."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp import errors
from tfmp.models import dcgan
from tfmp.policies import scope

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")


def noise(count=4, latent=64, seed=0):
    return np.random.default_rng(seed).normal(size=(count, latent)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "first"), [((8, 8, 1), 2), ((28, 28, 1), 7), ((32, 64, 3), 4), ((64, 64, 3), 4)]
)
def test_sizes_double_up_to_the_images(shape, first):
    model = dcgan.generator(image_shape=shape, width=8)
    judge = dcgan.discriminator(image_shape=shape, width=8)
    assert model.get_layer("first_grid").output.shape[1] == first
    assert model.output.shape == (None, *shape) == judge.input.shape
    assert judge.output.shape == (None, 1)
    # As published: 1,024 features at 4 pixels of images of 64.
    if shape == (64, 64, 3):
        paper = dcgan.generator(image_shape=shape, width=128, latent=100)
        assert paper.get_layer("first_grid").output.shape == (None, 4, 4, 1024)
        down = dcgan.discriminator(image_shape=shape, width=128)
        assert down.get_layer("relu4").output.shape == (None, 4, 4, 1024)


@pytest.mark.parametrize("policy", POLICIES)
def test_images_are_float32_of_0_to_255_and_logits_finite(policy):
    with scope(policy) as in_force:
        model = dcgan.generator(image_shape=(8, 8, 1), width=8)
        judge = dcgan.discriminator(image_shape=(8, 8, 1), width=8)
    assert model.get_layer("up1").compute_dtype == in_force.compute_dtype
    model.get_layer("up2").kernel.assign(model.get_layer("up2").kernel * 1e4)

    @tf.function(jit_compile=True)
    def run(noise):
        images = model(noise, training=True)
        return images, judge(images)

    images, logits = run(noise())
    assert images.dtype == logits.dtype == tf.float32
    assert 0 <= np.min(images) < 20 and 235 < np.max(images) <= 255
    assert np.isfinite(logits).all()
    whole = np.round(images).astype("uint8")
    np.testing.assert_array_equal(judge(whole), judge(whole.astype("float32")))


def test_a_saved_generator_loads_in_plain_keras(tmp_path, run_fresh):
    with scope("mixed_float16"):
        model = dcgan.generator(image_shape=(8, 8, 1), width=8, seed=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "noise.npy", noise())
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.saving.load_model('model.keras')\n"
        "np.save('images.npy', model.predict(np.load('noise.npy'), verbose=0))\n"
        "assert not any(name.startswith('tfmp') for name in sys.modules)"
    )
    run_fresh("-c", code, cwd=tmp_path)
    expected = model.predict(noise(), verbose=0)
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), expected)


def test_sizes_may_be_numpys():
    shape = tuple(np.array([8, 12, 1]))
    model, judge = (f(image_shape=shape, width=8) for f in (dcgan.generator, dcgan.discriminator))
    assert model.output_shape == judge.input_shape == (None, 8, 12, 1)


def test_other_sizes_are_refused():
    for build in (dcgan.generator, dcgan.discriminator):
        with pytest.raises(errors.UserError, match="multiples of 4 pixels"):
            build(image_shape=(30, 32, 1))


def test_a_seed_gives_the_same_weights():
    one, two, other = (dcgan.generator(image_shape=(8, 8, 1), seed=s) for s in (0, 0, 1))
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [keras.ops.convert_to_numpy(x.get_layer("up1").kernel) for x in (one, other)]
    assert not np.array_equal(*kernels)
