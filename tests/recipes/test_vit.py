"""The program of the Vision Transformers: what differs from the ResNets'."""

import keras
import numpy as np
import pytest
from sklearn import datasets

from tfmp import cli, errors
from tfmp.recipes import vit

QUICK = ["--epochs=2", "--policy=float32", "--batch_size=256", "--measure_inference=false"]
TEST_ROWS = 360


def quick(workdir, *flags):
    """A short run in this process; returns its results."""
    return vit.run(cli.parse(vit.Config, [*QUICK, f"--workdir={workdir}", *flags]))


def test_every_option_reaches_the_model_and_the_model_loads_without_tfmp(tmp_path, run_fresh):
    flags = ["--patch_size=2", "--pool=token", "--dropout=0.1", "--stochastic_depth=0.2"]
    flags += ["--augmentation=randaugment", "--mixup=0.2", "--policy=mixed_float16", "--epochs=1"]
    results = quick(tmp_path / "run", *flags, "--fused_layers=true", "--warmup_epochs=0")
    assert results["fused_layers"] is results["jit_compile"] is True
    assert np.isfinite(results["final"]["loss"])
    assert results["config"]["optimizer"] == "adamw" and results["config"]["clip_norm"] == 1
    code = (
        "import sys, keras; model = keras.saving.load_model('run/model.keras')\n"
        "assert 'tfmp' not in sys.modules\n"
        "print(model.get_layer('embedding').bias.shape, model.get_layer('block2_mlp_depth').rate,"
        "model.get_layer('block1_mlp_dropout').rate)"
    )
    out = run_fresh("-c", code, cwd=tmp_path)
    assert out.stdout.split() == ["(17,", "96)", "0.2", "0.1"], out.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--patch_size=3"], "patch_size: expected a divisor"),
        (["--patch_size=0"], "--patch_size above 0"),
        (["--dropout=1"], "--dropout from 0 to below 1"),
        (["--clip_norm=-1"], "--clip_norm 0 or more"),
        (["--model=resnet18"], "vit_micro"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, flags, said):
    with pytest.raises(errors.UserError, match=said):
        quick(tmp_path / "run", *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_with_no_flags_it_beats_a_trivial_model_within_two_minutes(with_no_flags, trivial_accuracy):
    digits = datasets.load_digits()
    results, workdir = with_no_flags("vit")
    assert results["final"]["test_accuracy"] >= 0.95 > trivial_accuracy
    model = keras.saving.load_model(workdir / "model.keras")
    images = np.round(digits.images[-TEST_ROWS:, :, :, None] * 255 / 16).astype("uint8")
    right = model.predict(images, verbose=0).argmax(-1) == digits.target[-TEST_ROWS:]
    assert right.mean() == pytest.approx(results["final"]["test_accuracy"], abs=2 / TEST_ROWS)
