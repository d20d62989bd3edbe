"""The program of U-Nets: its options, mistakes, and that it beats trivial models."""

import keras
import numpy as np
import PIL.Image
import pytest
from sklearn.linear_model import LogisticRegression

from tfmp import cli, errors
from tfmp.data import canvases, masks
from tfmp.recipes import unet
from tfmp.training.segmentation import MeanDice, MeanIoU

QUICK = ["--epochs=1", "--policy=float32", "--batch_size=32", "--measure_inference=false"]


def quick(workdir, *flags):
    """A short run in this process; returns its results."""
    return unet.run(cli.parse(unet.Config, [*QUICK, f"--workdir={workdir}", *flags]))


def test_options_reach_the_run_and_the_results(tmp_path, monkeypatch, run_fresh):
    monkeypatch.setattr(canvases, "CANVASES", {"train": 64, "validation": 16, "test": 16})
    flags = ["--upsampling=bilinear", "--dice=0.5", "--augmentation=crop_flip", "--warmup_epochs=0"]
    results = quick(tmp_path / "run", *flags)
    final = results["final"]
    assert {"mean_iou", "val_mean_iou", "test_mean_iou", "test_mean_dice"} <= set(final)
    assert 0 < final["test_mean_iou"] <= final["test_mean_dice"] < 1
    assert results["best"].keys() == {"epoch", "val_mean_iou"}
    assert results["data"]["name"] == "digit_canvases"
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert not any("Transpose" in type(layer).__name__ for layer in model.layers)
    run_fresh("-c", "import tfmp; assert tfmp.load('run').loss.dice == 0.5", cwd=tmp_path)


def test_images_and_masks_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    for i in range(40):
        mask = np.zeros((16, 16), np.uint8)
        top, left = rng.integers(1, 9, size=2)
        mask[top : top + 6, left : left + 6] = 1
        image = 120 * mask + rng.integers(80, size=mask.shape, dtype=np.uint8)
        mask[0] = 255  # where it can't be told
        image[0] = 255
        PIL.Image.fromarray(image).save(tmp_path / "own" / "images" / f"{i}.png")
        PIL.Image.fromarray(mask).save(tmp_path / "own" / "masks" / f"{i}.png")
    (tmp_path / "own" / "classes.txt").write_text("ground\nsquare\n")
    words = [f"--dataset=folder:{tmp_path / 'own'}", "--epochs=8", "--batch_size=8"]
    results = quick(tmp_path / "run", *words, "--jit_compile=false", "--warmup_epochs=0")
    assert results["data"]["class_names"] == ["ground", "square"]
    assert results["final"]["test_mean_iou"] > 0.8  # all ground: 0.43


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dice=-1"], "--dice 0 or more"),
        (["--dataset=cifar10"], "digit_canvases"),
        (["--model=resnet18"], "unet_small"),
        (["--dataset=synthetic", "--image_size=30"], "multiples of 4. Received: 30x30"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, flags, said):
    with pytest.raises(errors.UserError, match=said):
        quick(tmp_path / "run", *flags)
    assert not list(tmp_path.iterdir())


def trivial_models():
    """(mean IoU, mean Dice) on the test canvases, by name."""
    data = masks.load("digit_canvases")
    images, labels = next(data.train(256, seed=0).as_numpy_iterator())
    tests, truth, _ = next(data.test(256).as_numpy_iterator())
    pixel = LogisticRegression(max_iter=1000).fit(images.reshape(-1, 1) / 255, labels.ravel())
    commonest = np.bincount(labels[labels > 0]).argmax()
    answers = {
        "background": np.zeros_like(truth),
        "threshold": np.where(tests[..., 0] > 96, commonest, 0),
        "regression": pixel.predict(tests.reshape(-1, 1) / 255).reshape(truth.shape),
    }
    one_hot = {name: np.eye(11, dtype="float32")[x] for name, x in answers.items()}
    return {
        name: (float(MeanIoU(11)(truth, x)), float(MeanDice(11)(truth, x)))
        for name, x in one_hot.items()
    }


@pytest.mark.slow
def test_with_no_flags_it_beats_trivial_models_within_two_minutes(with_no_flags):
    trivial = trivial_models()
    results, _ = with_no_flags("unet")
    assert results["final"]["test_mean_iou"] >= 0.4 > 3 * max(iou for iou, _ in trivial.values())
