"""The models of keras.applications: against Keras' own, published counts, and float16's range."""

import functools
import inspect
import sys
import urllib.error

import h5py
import keras
import numpy as np
import pytest
from keras.applications.imagenet_utils import preprocess_input
from keras.src.applications import convnext
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

from tfmp import errors, models
from tfmp.models import applications, build, parts
from tfmp.policies import scope

MODELS = applications.MODELS
POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")
EPS = float(np.finfo(np.float32).eps)

# Millions, with 1,000 classes: column "Parameters" of https://keras.io/api/applications/. It lacks
# MobileNetV3.
KERAS = {
    "mobilenet": 4.3, "mobilenet_v2": 3.5, "nasnet_mobile": 5.3, "nasnet_large": 88.9,
    "xception": 22.9, "inception_v3": 23.9, "inception_resnet_v2": 55.9,
    "densenet121": 8.1, "densenet169": 14.3, "densenet201": 20.2, "vgg16": 138.4, "vgg19": 143.7,
    "resnet50_v1": 25.6, "resnet101_v1": 44.7, "resnet152_v1": 60.4,
    "resnet50_v2": 25.6, "resnet101_v2": 44.7, "resnet152_v2": 60.4,
    "efficientnet_b0": 5.3, "efficientnet_b1": 7.9, "efficientnet_b2": 9.2, "efficientnet_b3": 12.3,
    "efficientnet_b4": 19.5, "efficientnet_b5": 30.6, "efficientnet_b6": 43.3,
    "efficientnet_b7": 66.7, "efficientnet_v2_b0": 7.2, "efficientnet_v2_b1": 8.2,
    "efficientnet_v2_b2": 10.2, "efficientnet_v2_b3": 14.5, "efficientnet_v2_s": 21.6,
    "efficientnet_v2_m": 54.4, "efficientnet_v2_l": 119.0, "convnext_tiny": 28.6,
    "convnext_small": 50.2, "convnext_base": 88.5, "convnext_large": 197.7,
    "convnext_xlarge": 350.1,
}  # fmt: skip
# "num_params" of torchvision's weights: trainable ones, without moving statistics.
TORCHVISION = {
    "mobilenet_v2": 3_504_872, "mobilenet_v3_small": 2_542_856, "mobilenet_v3_large": 5_483_032,
    "densenet121": 7_978_856, "densenet169": 14_149_480, "densenet201": 20_013_928,
    "efficientnet_b0": 5_288_548, "efficientnet_b1": 7_794_184, "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232, "efficientnet_b4": 19_341_616, "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704, "efficientnet_b7": 66_347_960, "efficientnet_v2_s": 21_458_488,
    "efficientnet_v2_m": 54_139_356, "efficientnet_v2_l": 118_515_272,
    "convnext_tiny": 28_589_128, "convnext_small": 50_223_688, "convnext_base": 88_591_464,
    "convnext_large": 197_767_336, "vgg16": 138_357_544, "vgg19": 143_667_240,
}  # fmt: skip
# Parameters of the published tops that are more than one dense layer, less that one.
VGG_TOP = (7 * 7 * 512 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000 - (512 + 1) * 1000
TOPS = {
    "vgg16": VGG_TOP,
    "vgg19": VGG_TOP,
    "mobilenet_v3_small": (576 + 1) * 1024 + (1024 + 1) * 1000 - (576 + 1) * 1000,
    "mobilenet_v3_large": (960 + 1) * 1280 + (1280 + 1) * 1000 - (960 + 1) * 1000,
}


# Our own is Keras' MobileNetV3Small, narrower than any published one.
PUBLISHED = [name for name in MODELS if name != "mobilenet_v3_micro"]


def some(quick, names=MODELS):
    """Parameters of a test: some models always, the others among the slow tests."""
    return [pytest.param(x, marks=[] if x in quick else [pytest.mark.slow]) for x in names]


def small(name="mobilenet", **options):
    if name.startswith("mobilenet"):
        options = {"alpha": 0.25, **options}
    return build(name, **{"classes": 10, "input_shape": (8, 8, 1), **options})


def images(size=8, channels=1, dtype="uint8"):
    drawn = np.random.default_rng(0).integers(0, 256, (3, size, size, channels))
    return drawn.astype(dtype)


@pytest.mark.parametrize("name", some(("mobilenet_v3_small", "efficientnet_b0"), PUBLISHED))
def test_parameters_equal_the_published_ones(name):
    model = build(name, classes=1000, input_shape=(32, 32, 3))
    total = model.count_params() + TOPS.get(name, 0)
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables) + TOPS.get(name, 0)
    assert name in KERAS or name in TORCHVISION
    if name in KERAS:
        # The table's figures are rounded, some of them down.
        assert total / 1e6 == pytest.approx(KERAS[name], abs=0.1)
    if name in TORCHVISION:
        assert trainable == TORCHVISION[name]


def keras_own(name, size):
    """Keras' model without top, with statistics as after a training; and its normalization."""
    make = MODELS[name].args[0]
    theirs = make(include_top=False, weights=None, input_shape=(size, size, 3), pooling="avg")
    preprocess = sys.modules[make.__module__].preprocess_input
    for layer in applications.batch_norms(theirs):
        layer.momentum = 0.0
    theirs(preprocess(images(size, 3, "float32")), training=True)
    for layer in applications.batch_norms(theirs):
        # Three images leave variances near zero, by which rounding would grow.
        variance = np.asarray(layer.moving_variance)
        layer.moving_variance.assign(variance + variance.mean())
    return theirs, preprocess


def set_normalization(model, variance):
    """Gives EfficientNet's own layer, which others lack, ImageNet's mean and a variance."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            layer.adapt_mean.assign(parts.IMAGENET_MEAN)
            layer.adapt_variance.assign(variance)
            layer.finalize_state()


@pytest.mark.parametrize("name", some(("mobilenet_v3_small", "efficientnet_b0"), PUBLISHED))
def test_with_the_weights_of_keras_own_model_it_computes_the_same(name, tmp_path):
    """So the images are normalized as the family's weights want it, and files of them load."""
    size = max(32, MODELS[name].keywords["smallest"])
    theirs, preprocess = keras_own(name, size)
    published, new = tmp_path / "published_notop.h5", tmp_path / "new.weights.h5"
    set_normalization(theirs, parts.IMAGENET_STD)  # deviations, as they are published
    with h5py.File(published, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
    theirs.save_weights(new)
    set_normalization(theirs, np.square(parts.IMAGENET_STD))
    expected = np.asarray(theirs(preprocess(images(size, 3, "float32"))))
    assert np.std(expected) > 1e-3
    ours, other = (build(name, classes=10, input_shape=(size, size, 3)) for _ in range(2))
    head = ours.get_layer("head").get_weights()
    applications.load_weights(ours, published)
    features = applications.backbone_of(ours)(images(size, 3))
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3 * np.std(expected))
    for a, b in zip(ours.get_layer("head").get_weights(), head, strict=True):
        np.testing.assert_array_equal(a, b)
    applications.load_weights(other, new)
    for a, b in zip(other.weights[:-2], ours.weights[:-2], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_normalization_is_that_of_the_family(name):
    make, kind = MODELS[name].args[0], MODELS[name].keywords["normalize"]
    x = images(2, 3, "float32")
    expected = sys.modules[make.__module__].preprocess_input(x.copy())
    if np.array_equal(expected, x):  # done inside of Keras' model: held against that above
        assert kind == "inside" or "include_preprocessing" in inspect.signature(make).parameters
    else:
        inputs = keras.Input(x.shape[1:])
        ours = keras.Model(inputs, applications.NORMALIZE[kind](inputs))(x)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def first_layers(kind, policy):
    """Images of three channels to what the backbone gets, under a policy."""
    with scope(policy):
        if kind == "inside":
            model = build("efficientnet_b0", classes=2, input_shape=(32, 32, 3))
            return keras.Model(model.input, model.get_layer("stem_conv_pad").input)
        inputs = keras.Input((32, 32, 3))
        return keras.Model(inputs, applications.NORMALIZE[kind](inputs))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", applications.NORMALIZE)
def test_images_are_normalized_in_float32_and_have_its_range(kind, policy):
    x = images(32, 3, "float32")
    x[0] += 1 / 64  # float16 has steps of 1/8 at 200, bfloat16 of 1
    x[1, 0, 0] = 1e5  # above float16's largest value, 65504
    modes = {"unit": "tf", "imagenet": "torch", "inside": "torch", "caffe": "caffe"}
    exact = x.astype("float64")
    expected = preprocess_input(exact, mode=modes[kind]) if kind in modes else exact / 128 - 1
    model = first_layers(kind, policy)
    assert model.output.dtype == "float32"
    scale = np.abs(expected).max(axis=-1, keepdims=True) + 1
    error = np.abs(np.asarray(model(x)) - expected) / scale
    assert error.max() <= 8 * EPS


def test_keras_own_layers_overflow_where_ours_do_not():
    """What the float32 layers are there for."""
    with scope("mixed_float16"):
        theirs = keras.applications.MobileNetV3Small(
            input_shape=(32, 32, 3), include_top=False, weights=None
        )
        ours = small("mobilenet_v3_small", input_shape=(32, 32, 3))
    x = np.full((1, 32, 32, 3), 1e5, np.float32)
    rescaling = next(x for x in theirs.layers if isinstance(x, keras.layers.Rescaling))
    assert not np.isfinite(np.asarray(rescaling(x))).any()
    assert np.isfinite(np.asarray(ours.get_layer("normalize")(x))).all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", some(("mobilenet_v3_micro",)))
def test_logits_are_float32_and_the_images_dtype_does_not_count(name, policy):
    if name != "mobilenet_v3_micro" and policy == "mixed_bfloat16":
        pytest.skip("mixed_float16 shows the same")
    with scope(policy) as in_force:
        model = small(name)
    assert {v.dtype for v in model.variables if "int" not in v.dtype} == {"float32"}
    convolutions = [x for x in model.layers if "Conv2D" in type(x).__name__]
    assert {x.compute_dtype for x in convolutions} == {in_force.compute_dtype}
    expected = np.asarray(model(images()))
    assert expected.dtype == np.float32 and expected.shape == (3, 10)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(model(images(dtype="float32")), expected)


def test_small_and_gray_images_are_enlarged_and_colored():
    model = small()
    assert model.get_layer("normalize").output.shape == (None, 32, 32, 3)
    assert small("xception").get_layer("enlarge").output.shape == (None, 72, 72, 3)
    colored = keras.Model(model.input, model.get_layer("gray_to_rgb").output)(images())
    np.testing.assert_array_equal(colored, np.repeat(images(), 3, axis=-1))
    assert not [x for x in small(input_shape=(40, 32, 3)).layers if x.name == "enlarge"]


def test_saved_models_load_in_plain_keras(tmp_path, monkeypatch, run_fresh):
    """ConvNeXt has layers of classes that Keras doesn't export."""
    make = functools.partial(convnext.ConvNeXt, depths=[1] * 4, projection_dims=[8] * 4)
    little = functools.partial(applications.application, make, normalize="imagenet")
    monkeypatch.setitem(models.MODELS, "little_convnext", little)
    round_trip(("mobilenet_v3_micro", "little_convnext"), "mixed_float16", tmp_path, run_fresh)


@pytest.mark.slow
def test_every_saved_model_loads_in_plain_keras(tmp_path, run_fresh):
    huge = ("xlarge", "convnext_large", "nasnet_large", "_v2_l", "_v2_m", "_b6", "_b7")
    round_trip([x for x in MODELS if not x.endswith(huge)], "mixed_float16", tmp_path, run_fresh)


def round_trip(names, policy, folder, run_fresh):
    expected = {}
    np.save(folder / "images.npy", images())
    for name in names:
        with scope(policy):
            model = small(name)
        for layer in applications.batch_norms(model):  # else nothing gets through
            layer.moving_variance.assign(np.full(layer.moving_variance.shape, 0.1))
        model.save(folder / f"{name}.keras")
        expected[name] = np.asarray(model(images()))
    code = (
        "import pathlib, sys, keras, numpy as np\n"
        "for file in pathlib.Path().glob('*.keras'):\n"
        "    model = keras.models.load_model(file)\n"
        "    np.save(file.stem, model(np.load('images.npy')))\n"
        "assert not any(name.startswith('tfmp') for name in sys.modules)"
    )
    run_fresh("-c", code, cwd=folder)
    for name, logits in expected.items():
        np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), logits)


def test_weights_of_other_classes_load_without_the_head(tmp_path, capsys):
    saved, same, other = small(), small(), small(classes=4)
    for layer in applications.batch_norms(saved):
        layer.beta.assign(np.random.default_rng(0).normal(size=layer.beta.shape))
    saved.save(tmp_path / "model.keras")
    applications.load_weights(same, tmp_path / "model.keras")
    for a, b in zip(same.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not capsys.readouterr().out
    applications.load_weights(other, tmp_path / "model.keras")
    assert "all but the head" in capsys.readouterr().out
    for a, b in zip(other.get_weights()[:-2], saved.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(errors.UserError, match=r"model\.keras don't fit mobilenet_v3_small_backb"):
        applications.load_weights(small("mobilenet_v3_small"), tmp_path / "model.keras")
    for name in ("damaged.keras", "damaged.weights.h5"):
        (tmp_path / name).write_bytes((tmp_path / "model.keras").read_bytes()[:999])
        with pytest.raises(errors.UserError, match=rf"{name} can't be read"):
            applications.load_weights(same, tmp_path / name)
    with pytest.raises(errors.UserError, match=r"\.weights\.h5 or \.h5.*Received: imagenet\.npz"):
        applications.load_weights(same, "imagenet.npz")


def test_published_weights_are_fetched_by_keras(tmp_path, monkeypatch):
    """With a file in the place of the download: nothing is fetched here."""
    theirs, _ = keras_own("mobilenet_v3_small", 32)
    theirs.save_weights(tmp_path / "fetched.weights.h5")
    asked = []

    def get_file(name, url, **_):
        asked.append(url)
        return tmp_path / "fetched.weights.h5"

    monkeypatch.setattr(file_utils, "get_file", get_file)
    with pytest.warns(UserWarning, match="224"):  # Keras': they were trained on that size
        ours = build("mobilenet_v3_small", classes=10, input_shape=(8, 8, 1), weights="imagenet")
    assert len(asked) == 1 and asked[0].endswith("small_224_1.0_float_no_top_v2.h5")
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=False):
        np.testing.assert_array_equal(a, b)
    applications.load_weights(ours, "imagenet")  # nothing is left to do


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(file_utils, "urlretrieve", fail)
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    with pytest.raises(errors.UserError, match=r"can't be downloaded: .*no network.*by hand"):
        build("densenet121", classes=10, input_shape=(32, 32, 3), weights="imagenet")


def test_what_cannot_be_built_says_why():
    with pytest.raises(ValueError, match=r"1 or 3 channels, for mobilenet. Received: \(8, 8, 4\)"):
        small(input_shape=(8, 8, 4))
    with pytest.raises(ValueError, match="alpha: expected none for densenet121"):
        small("densenet121", alpha=0.5)
    with pytest.raises(ValueError, match="classes: expected an integer, 1 or more"):
        small(classes=0)


def test_every_classifier_of_keras_is_there():
    makers = {x for x in vars(keras.applications).values() if inspect.isfunction(x)}
    assert makers == {model.args[0] for model in MODELS.values()}
