"""Residual networks against the published ones."""

import keras
import numpy as np
import pytest

from tfmp import errors
from tfmp.models import build, resnet
from tfmp.policies import scope

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")

# "num_params" in torchvision 0.20's weights, torchvision/models/resnet.py; these are the
# trainable ones, without the normalization's moving statistics.
TORCHVISION = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def small(**options):
    return build("resnet_small", **{"classes": 10, "input_shape": (8, 8, 1), **options})


def digits(dtype="uint8", channels=1, size=8):
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, channels))
    return images.astype(dtype)


@pytest.mark.parametrize("name", resnet.MODELS)
def test_parameters_equal_the_published_ones(name):
    model = build(name, classes=1000, input_shape=(224, 224, 3))
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    if name in TORCHVISION:
        assert trainable == TORCHVISION[name]
        assert model.get_layer("stem_conv").kernel.shape == (7, 7, 3, 64)
        # The last stage is 224 / 32 pixels wide.
        assert model.get_layer("pool").input.shape[1:3] == (7, 7)
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names)
    # Every layer bears a name of ours: Keras' own would change with each model built.
    assert {n.split("_")[0].rstrip("1234") for n in names} == {
        "images", "normalize", "stem", "stage", "pool", "head",
    }  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["resnet_small", "resnet18"])
def test_logits_are_float32_and_finite(name, policy):
    with scope(policy) as in_force:
        model = build(name, classes=10, input_shape=(16, 16, 3))
    assert model.output.dtype == "float32"
    assert model.get_layer("stage1_block1_conv1").compute_dtype == in_force.compute_dtype
    logits = model.predict(digits(channels=3, size=16), verbose=0)
    assert logits.shape == (4, 10)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", sorted(set(resnet.MODELS) - {"resnet_small", "resnet18"}))
def test_deep_networks_build_under_every_policy(name, policy):
    if name in ("resnet101", "resnet152") and policy != "mixed_float16":
        pytest.skip("resnet50 shows the same in less time")
    with scope(policy):
        model = build(name, classes=10, input_shape=(32, 32, 3))
    assert model.output.dtype == "float32"
    assert {v.dtype for v in model.variables} == {"float32"}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_images_dtype_does_not_count(policy):
    with scope(policy):
        model = small(seed=0)
    expected = model.predict(digits(), verbose=0)
    for dtype in ("float32", "int32", "float64"):
        np.testing.assert_array_equal(model.predict(digits(dtype), verbose=0), expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_images_keep_float32_until_they_are_normalized(policy):
    with scope(policy):
        model = small()
    assert model.input.dtype == "float32"
    # 1 / 64 apart at 200: float16 there has steps of 1 / 8, bfloat16 of 1.
    images = np.full((2, 8, 8, 1), 200, np.float32)
    images[1] += 1 / 64
    normalized = keras.Model(model.input, model.get_layer("normalize").output)(images)
    expected = (images / 255 - 0.449) / 0.226
    np.testing.assert_allclose(normalized, expected, rtol=4 * float(np.finfo(np.float32).eps))


def test_normalization_is_per_channel_for_color_and_one_for_others():
    for channels, mean in ((3, (0.485, 0.456, 0.406)), (1, (0.449,)), (4, (0.449,) * 4)):
        model = small(input_shape=(8, 8, channels))
        images = np.broadcast_to(np.array(mean, np.float32) * 255, (1, 8, 8, channels))
        np.testing.assert_allclose(model.get_layer("normalize")(images), 0 * images, atol=1e-6)


def test_the_stem_goes_by_the_size():
    def kernel(size, stem="auto"):
        model = small(input_shape=(size, size, 3), stem=stem)
        return model.get_layer("stem_conv").kernel_size[0]

    assert [kernel(32), kernel(64), kernel(65), kernel(224)] == [3, 3, 7, 7]
    assert [kernel(32, "imagenet"), kernel(224, "small")] == [7, 3]


def test_each_block_starts_as_its_shortcut():
    model = build("resnet50", classes=10, input_shape=(32, 32, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            last = layer.name.endswith("_bn3")
            np.testing.assert_array_equal(layer.gamma, np.full(layer.gamma.shape, not last))
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)


def test_version_one_and_a_half_strides_in_the_3x3():
    model = build("resnet50", classes=10, input_shape=(64, 64, 3))
    strides = {
        layer.name: layer.strides[0]
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.name.startswith("stage2_block1")
    }
    assert strides == {
        "stage2_block1_conv1": 1,
        "stage2_block1_conv2": 2,
        "stage2_block1_conv3": 1,
        "stage2_block1_shortcut_conv": 2,
    }


def test_stride_two_pads_both_sides():
    # Mirrored images and mirrored kernels give mirrored outputs only under symmetric padding, and
    # an odd side: with an even one the last window starts at another pixel than the first ends.
    model = small(input_shape=(9, 9, 1), seed=0)
    part = keras.Model(model.input, model.get_layer("stage2_block1_conv1").output)
    images = digits(size=9)
    forward = np.asarray(part(images))
    for layer in part.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel.assign(np.asarray(layer.kernel)[:, ::-1])
    mirrored = np.asarray(part(images[:, :, ::-1]))
    np.testing.assert_allclose(mirrored[:, :, ::-1], forward, atol=1e-4)
    assert forward.shape[1:3] == (5, 5)


def test_a_model_may_hold_two_of_a_kind_by_names_of_their_own():
    images = keras.Input((8, 8, 1))
    logits = [small(name=name)(images) for name in ("one", "other")]
    both = keras.Model(images, keras.layers.Average(dtype="float32")(logits))
    assert np.shape(both(digits())) == (4, 10)


def test_a_seed_gives_the_same_weights_and_layers_differ():
    first, second, other = small(seed=3), small(seed=3), small(seed=4)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kernel = first.get_layer("stage1_block1_conv1").kernel
    for layer in (other.get_layer("stage1_block1_conv1"), first.get_layer("stage1_block1_conv2")):
        if layer.kernel.shape == kernel.shape:
            assert not np.array_equal(layer.kernel, kernel)
    assert float(np.std(first.get_layer("head").kernel)) == pytest.approx(0.01, rel=0.2)


# Keras 3.15.1 turns its variables into arrays in a way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_saved_model_loads_in_plain_keras(tmp_path, run_fresh):
    expected = {}
    for policy in POLICIES:
        with scope(policy):
            model = small(seed=0)
        model.save(tmp_path / f"{policy}.keras")
        expected[policy] = model.predict(digits(), verbose=0)
    np.save(tmp_path / "images.npy", digits())
    code = (
        "import pathlib, sys, keras, numpy as np\n"
        "for file in pathlib.Path().glob('*.keras'):\n"
        "    model = keras.models.load_model(file)\n"
        "    np.save(file.stem, model.predict(np.load('images.npy'), verbose=0))\n"
        "assert not any(name.startswith('tfmp') for name in sys.modules)"
    )
    run_fresh("-c", code, cwd=tmp_path)
    for policy in POLICIES:
        loaded = np.load(tmp_path / f"{policy}.npy")
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, expected[policy])


@pytest.mark.parametrize("name", ["resnet_small", "vit_micro", "unet_small", "mobilenet_v3_micro"])
def test_sizes_may_be_numpys(name):
    labels, images = np.array([0, 1, 2]), digits()
    model = build(name, classes=labels.max() + 1, input_shape=np.array(images.shape[1:]))
    assert model.input_shape == (None, 8, 8, 1) and model.output_shape[-1] == 3
    assert {type(n) for n in model.input_shape[1:]} == {int}


def test_what_cannot_be_built_says_why():
    with pytest.raises(ValueError, match=r"resnet_small, resnet18.*Received: 'resnet51'"):
        build("resnet51", classes=10, input_shape=(8, 8, 1))
    with pytest.raises(ValueError, match=r"input_shape: .*without the batch"):
        small(input_shape=(None, 8, 8, 1))
    with pytest.raises(ValueError, match=r"stem: .*Received: 'large'"):
        small(stem="large")
    with pytest.raises(ValueError, match="classes: expected an integer, 1 or more"):
        small(classes=0)
    for classes in (None, "10", 10.0):
        with pytest.raises(errors.UserError, match=rf"1 or more. Received: {classes!r}"):
            small(classes=classes)
    for shape in (8, None, (8, 8), (8.0, 8, 1), "881"):
        with pytest.raises(errors.UserError, match=r"input_shape: .*Received: "):
            small(input_shape=shape)
