"""The program of keras.applications' classifiers: what differs from the ResNets'."""

import functools

import keras
import pytest

from tfmp import cli, errors, models
from tfmp.models import applications
from tfmp.recipes import image_classifier

QUICK = ["--epochs=1", "--policy=float32", "--batch_size=256", "--measure_inference=false"]
TEST_ROWS = 360


def quick(workdir, *flags):
    """A short run in this process; returns its results."""
    config = cli.parse(image_classifier.Config, [*QUICK, f"--workdir={workdir}", *flags])
    return image_classifier.run(config)


def little(include_top, weights, input_tensor, input_shape, pooling, alpha=1.0):
    """A backbone as keras.applications makes them, of one convolution."""
    x = keras.layers.Conv2D(round(16 * alpha), 3, use_bias=False, name="conv")(input_tensor)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="conv_bn")(x))
    features = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), features)


def test_fine_tuning_starts_from_given_weights_freezes_and_takes_every_option(
    tmp_path, run_fresh, monkeypatch
):
    build = functools.partial(applications.application, little, normalize="unit")
    monkeypatch.setitem(models.MODELS, "mobilenet_v3_micro", build)
    keras.utils.set_random_seed(1)
    given = models.build("mobilenet_v3_micro", classes=10, input_shape=(8, 8, 1), alpha=0.25)
    given.save(tmp_path / "given.keras")
    flags = [f"--weights={tmp_path / 'given.keras'}", "--freeze_batch_norm", "--alpha=0.25"]
    flags += ["--dropout=0.1", "--batch_norm_momentum=0.8", "--learning_rate=1e-12"]
    results = quick(tmp_path / "run", *flags, "--head_learning_rate=0.01")
    assert results["config"]["optimizer"] == "adamw"
    assert results["first_phase"]["epochs"] == 1  # since there are weights
    assert results["first_phase"]["learning_rate"] == 0.01
    code = (
        "import sys, keras, numpy as np; model = keras.saving.load_model('run/model.keras')\n"
        "assert 'tfmp' not in sys.modules\n"
        "given = keras.saving.load_model('given.keras')\n"
        "pairs = list(zip(given.weights, model.weights, strict=True))\n"
        "print(*(a.path for a, b in pairs if not np.allclose(a, b, atol=1e-6)))\n"
        "print(model.get_layer('head_dropout').rate, model.get_layer('conv_bn').momentum)"
    )
    out = run_fresh("-c", code, cwd=tmp_path)
    assert out.stdout.split() == ["head/kernel", "head/bias", "0.1", "0.8"], out.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--alpha=0"], "--alpha above 0"),
        (["--alpha=2", "--model=vgg16"], "alpha: expected none for vgg16"),
        (["--dropout=1"], "--dropout from 0 to below 1"),
        (["--batch_norm_momentum=1"], "--batch_norm_momentum from 0 to below 1"),
        (["--weights=imagenet.npz"], r"\.h5\. Received: imagenet\.npz"),
        (["--weights=none.h5"], "does not exist"),
        (["--model=vit_tiny"], "mobilenet_v3_micro"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, flags, said):
    with pytest.raises(errors.UserError, match=said):
        quick(tmp_path / "run", *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_with_no_flags_it_beats_a_trivial_model_within_two_minutes(with_no_flags, trivial_accuracy):
    results, _ = with_no_flags("image_classifier")
    assert results["final"]["test_accuracy"] >= 0.93 > trivial_accuracy
