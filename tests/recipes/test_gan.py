"""The program of the DCGAN: files, exact resume of both optimizers, and what it is good for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import cli, data, errors, files
from tfmp.metrics.frechet import frechet_distance
from tfmp.recipes import gan
from tfmp.training import judge

# 5 steps an epoch; scales that fall in the first, and differ.
QUICK = ["--epochs=3", "--batch_size=256", "--width=8", "--latent=8", "--deterministic"]
QUICK += ["--jit_compile=false", "--initial_scale=65536", "--measure_inference=false"]


def run(workdir, *flags):
    """A run in this process; returns its results."""
    return gan.run(cli.parse(gan.Config, [*QUICK, f"--workdir={workdir}", *flags]))


def test_stopped_in_an_epoch_and_resumed_it_is_the_same_run(tmp_path, stopped_before):
    whole = run(tmp_path / "whole", "--measure_inference=true")
    with stopped_before(7):
        run(tmp_path / "part")
    part = run(tmp_path / "part", "--resume")
    for name in ("final", "best", "loss_scale", "steps"):
        assert whole[name] == part[name], name
    assert whole["steps"] == 15
    checkpoints = [
        tf.train.load_checkpoint(tf.train.latest_checkpoint(tmp_path / x / "checkpoints"))
        for x in ("whole", "part")
    ]
    parts = ("model", "optimizer", "metrics")
    names = [x for x in checkpoints[0].get_variable_to_shape_map() if x.startswith(parts)]
    # Weights, moments and counters of both networks.
    assert len(names) > 60
    for name in names:
        np.testing.assert_array_equal(*(x.get_tensor(name) for x in checkpoints), err_msg=name)
    logs = [files.read_metrics(tmp_path / x / "metrics.csv") for x in ("whole", "part")]
    assert logs[0] == logs[1] and {"generator_loss_scale", "discriminator_loss_scale"} < {
        *logs[0][0]
    }
    assert whole["loss_scale"]["discriminator"]["final"] >= 1
    assert whole["cost"]["inference"]["batch_1"]["examples_per_second"] > 0
    pictures = sorted((tmp_path / "part" / "samples").iterdir())
    assert [x.name for x in pictures] == [f"epoch-00{n}.png" for n in (1, 2, 3)]
    picture = tf.io.decode_png(pictures[-1].read_bytes()).numpy()
    assert picture.shape == (8 * 32, 8 * 32, 1) and np.ptp(picture) > 0
    generator = keras.saving.load_model(tmp_path / "part" / "model.keras")
    images = generator.predict(np.zeros((2, 8), np.float32), verbose=0)
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.float32
    assert tfmp.load(tmp_path / "part").loss is None
    assert "val_frechet" in whole["best"] and "test_frechet" in whole["final"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strategy=mirrored"], "--strategy none: a GAN trains on one device"),
        (["--gradient_accumulation_steps=2"], "--gradient_accumulation_steps 1"),
        (["--ema=0.9"], "--ema 0"),
        (["--validation_fraction=0"], "--validation_fraction above 0"),
        (["--latent=0"], "--latent above 0"),
        (["--image_size=9"], "image_size 8"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, words, said):
    with pytest.raises(errors.UserError, match=said):
        run(tmp_path / "run", *words)
    assert not list(tmp_path.iterdir())


def test_a_damaged_image_ends_it_before_training_in_one_line(tmp_path):
    image = tf.io.encode_png(np.zeros((8, 8, 1), np.uint8)).numpy()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            content = image.replace(b"IDAT", b"IDAT\xff\xff") if number else image
            (tmp_path / name / f"{number}.png").write_bytes(content)
    with pytest.raises(errors.UserError, match="damaged or gone: "):
        run(tmp_path / "run", f"--dataset=folder:{tmp_path}", "--batch_size=1")


@pytest.mark.slow
def test_with_no_flags_it_beats_normal_distributions_of_the_pixels(with_no_flags):
    digits = data.load("digits")
    images, labels = next(digits.train(1295, seed=0).as_numpy_iterator())
    judged = judge.build(images, labels, 10)
    pixels = images.reshape(len(images), -1).astype(np.float64)
    mean, spread, covariance = pixels.mean(0), pixels.std(0), np.cov(pixels, rowvar=False)
    real = next(digits.test(360).as_numpy_iterator())[0]
    generator = np.random.default_rng(0)
    figures = {}
    for name, drawn in {
        "noise": generator.uniform(0, 255, (360, 64)),
        "pixels": generator.normal(mean, spread, (360, 64)),
        "covariance": generator.multivariate_normal(mean, covariance, 360),
    }.items():
        features, probabilities = judged(drawn.clip(0, 255).reshape(-1, 8, 8, 1))
        distance = frechet_distance(judged(real)[0].numpy(), features.numpy())
        figures[name] = distance, probabilities.numpy().max(-1).mean()
    assert figures["noise"][0] > 20 and figures["pixels"][0] == pytest.approx(7.4, abs=1)
    assert figures["covariance"] == pytest.approx((1.43, 0.67), abs=0.1)
    results, workdir = with_no_flags("gan")
    final = results["final"]
    assert final["test_frechet"] < figures["pixels"][0] / 4
    assert final["test_confidence"] > figures["covariance"][1] + 0.05
    assert final["test_classes"] > 9
    assert len(list((workdir / "samples").iterdir())) == results["epochs"]
