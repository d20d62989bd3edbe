"""`fit`: resume equals uninterrupted, and each way in which a run ends."""

import dataclasses
import os
import pathlib
import signal
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp import data, errors, evaluation, files, hardware
from tfmp.data import crops
from tfmp.training import TrainingConfig, fit, loop

BASE = TrainingConfig(epochs=3, warmup_epochs=1, batch_size=256, seed=5)


class StopAt(keras.callbacks.Callback):
    """Sends this process a signal at a step, as Ctrl-C and a scheduler do."""

    def __init__(self, step, number=signal.SIGTERM):
        super().__init__()
        self.at, self.number = step, number

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.step) == self.at:
            os.kill(os.getpid(), self.number)


class FullDisk(keras.callbacks.Callback):
    """From an epoch on an open file is one on a full disk."""

    def __init__(self, file, epoch):
        super().__init__()
        self.file, self.at = file, epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.at:
            opened = pathlib.Path("/proc/self/fd").iterdir()
            with open("/dev/full", "w") as full:
                for number in [int(x.name) for x in opened if x.resolve() == self.file]:
                    os.dup2(full.fileno(), number)


def weights(classifier):
    return [v.numpy() for v in classifier.model.variables]


@pytest.mark.parametrize(
    ("policy", "changes", "steps"),  # where it is stopped: in an epoch, or at the end of one of 4
    [
        ("float32", {}, (4, 6)),
        ("mixed_float16", {"jit_compile": "true"}, (6,)),
        ("mixed_bfloat16", {"ema": 0.9}, (6,)),
        (
            "mixed_float16",
            {"ema": 0.9, "gradient_accumulation_steps": 2, "optimizer": "adamw"},
            (6,),
        ),
        ("float32", {"steps_per_execution": 2}, (4, 6)),
        ("float32", {"optimizer": "lamb", "validation_fraction": 0.0}, (6,)),
    ],
)
def test_resume_equals_uninterrupted(make_classifier, digits, tmp_path, policy, changes, steps):
    config = dataclasses.replace(BASE, **changes)
    spe = config.steps_per_execution or 1
    assert config.epoch_steps(digits.sizes["train"]) == 5 // spe * spe
    if not config.validation_fraction:
        digits = dataclasses.replace(digits, validation=None)
    whole = make_classifier(policy, config)
    fit(whole, digits, config, tmp_path / "whole")
    for step in steps:
        stopped = make_classifier(policy, config)
        with pytest.raises(errors.StoppedError, match="SIGTERM after step"):
            fit(stopped, digits, config, tmp_path / "part", extra_callbacks=[StopAt(step)])
    resumed = make_classifier(policy, config)
    fitted = fit(resumed, digits, config, tmp_path / "part")
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    logs = [files.read_metrics(tmp_path / run / "metrics.csv") for run in ("whole", "part")]
    assert logs[0] == logs[1]
    assert [row["epoch"] for row in logs[0]] == [0, 1, 2]
    assert fitted.examples_per_second > 0
    assert int(whole.step) == int(resumed.step) == 3 * (5 // spe * spe)


def test_a_run_of_other_steps_a_call_goes_on_where_the_first_one_stopped(
    make_classifier, digits, tmp_path
):
    """Of 5 steps 2 are left; a call of 5, as several GPUs may take, would end in the next epoch."""
    whole = make_classifier(config=BASE)
    fit(whole, digits, BASE, tmp_path / "whole")
    with pytest.raises(errors.StoppedError):
        stopped = make_classifier(config=BASE)
        fit(stopped, digits, BASE, tmp_path / "part", extra_callbacks=[StopAt(8)])
    resumed = make_classifier(config=BASE)
    resumed.steps_per_execution = 5
    fit(resumed, digits, BASE, tmp_path / "part")
    assert int(resumed.step) == 15
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_resumed_at_its_end_has_the_averaged_weights(make_classifier, digits, tmp_path):
    """In the last epoch, and behind it."""
    config = dataclasses.replace(BASE, ema=0.9)
    whole, stopped = make_classifier(config=config), make_classifier(config=config)
    fit(whole, digits, config, tmp_path / "whole")
    with pytest.raises(errors.StoppedError):
        fit(stopped, digits, config, tmp_path / "part", extra_callbacks=[StopAt(12)])
    for name in ("part", "whole"):
        resumed = make_classifier(config=config)
        fit(resumed, digits, config, tmp_path / name)
        for a, b in zip(weights(whole), weights(resumed), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_gives_the_handlers_back(make_classifier, digits, tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(errors.StoppedError, match="Do this to resume"):
        fit(
            make_classifier(config=BASE),
            digits,
            BASE,
            tmp_path,
            resume_hint="Do this to resume.",
            extra_callbacks=[StopAt(2, number)],
        )
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert list((tmp_path / "checkpoints").glob("ckpt-*.index"))


def test_a_full_disk_is_one_line_and_the_run_goes_on(make_classifier, digits, tmp_path):
    former = signal.getsignal(signal.SIGTERM)
    fit(whole := make_classifier("float32", BASE), digits, BASE, tmp_path / "whole")
    full = FullDisk(tmp_path / "part" / "metrics.csv", epoch=1)
    with pytest.raises(errors.TfmpError, match=r"Can't go on with .*No space left.*--resume"):
        classifier = make_classifier("float32", BASE)
        fit(classifier, digits, BASE, tmp_path / "part", extra_callbacks=[full])
    assert signal.getsignal(signal.SIGTERM) == former
    fit(resumed := make_classifier("float32", BASE), digits, BASE, tmp_path / "part")
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saves_every_so_many_steps(make_classifier, digits, tmp_path):
    config = dataclasses.replace(BASE, save_every_steps=3, epochs=1, warmup_epochs=0)
    fit(make_classifier(config=config), digits, config, tmp_path)
    saved = {p.stem for p in (tmp_path / "checkpoints").glob("*.index")}
    assert saved == {"ckpt-3", "ckpt-5"}


def test_non_finite_weights_end_the_run_and_keep_the_last_good_checkpoint(
    make_classifier, digits, tmp_path
):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kernel = self.model.model.trainable_variables[0]
                kernel.assign(np.full(kernel.shape, np.nan, "float32"))

    with pytest.raises(errors.NonFiniteError, match="epoch 2, step 6, loss scale now 1") as ended:
        fit(make_classifier(config=BASE), digits, BASE, tmp_path, extra_callbacks=[Poison()])
    assert "ckpt-5" in str(ended.value)
    assert {p.stem for p in (tmp_path / "checkpoints").glob("*.index")} == {"ckpt-5"}


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            "mixed_float16",
            "the gradients, 52 steps in a row, at epoch 1, step 4, loss scale now 1.",
        ),
        ("float32", "the gradients, 2 steps in a row, at epoch 1, step 4, loss scale now 1."),
    ],
)
def test_steps_that_stay_bad_end_the_run(make_classifier, digits, tmp_path, policy, said):
    """At the end of an epoch: after 50 steps that a lower scale could mend, after 1 otherwise."""
    config = dataclasses.replace(BASE, epochs=40)

    def overflow(images, seed):
        return tf.where(seed[1] >= 3, np.inf, images)

    classifier = make_classifier(policy, config, augmentation=overflow)
    with pytest.raises(errors.NonFiniteError) as ended:
        fit(classifier, digits, config, tmp_path)
    assert said in str(ended.value)
    assert all(np.isfinite(w).all() for w in weights(classifier))


def test_early_stopping(make_classifier, digits, tmp_path):
    config = dataclasses.replace(BASE, epochs=30, early_stopping=1, learning_rate=1e-9)
    fit(make_classifier(config=config), digits, config, tmp_path)
    assert len(files.read_metrics(tmp_path / "metrics.csv")) == 2
    resumed = make_classifier(config=config)
    fit(resumed, digits, config, tmp_path)
    assert int(resumed.step) == 10, "a run that had stopped early went on"


def test_tensorboard(make_classifier, digits, tmp_path):
    config = dataclasses.replace(BASE, epochs=1, warmup_epochs=0, tensorboard=True)
    fit(make_classifier(config=config), digits, config, tmp_path)
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))


def test_the_first_call_is_timed_apart_even_if_it_is_a_whole_epoch(
    make_classifier, digits, tmp_path
):
    config = dataclasses.replace(BASE, batch_size=1295)
    fitted = fit(make_classifier(config=config), digits, config, tmp_path)
    assert fitted.compile_seconds > 5 * fitted.seconds_per_epoch[-1]
    assert len(fitted.seconds_per_epoch) == 3


def test_early_stopping_without_validation(make_classifier, digits, tmp_path):
    config = dataclasses.replace(BASE, early_stopping=2)
    with pytest.raises(errors.UserError, match="needs validation examples"):
        fit(make_classifier(), dataclasses.replace(digits, validation=None), config, tmp_path)


def test_without_validation(make_classifier, digits, tmp_path):
    data = dataclasses.replace(digits, validation=None)
    config = dataclasses.replace(BASE, epochs=1, warmup_epochs=0)
    fitted = fit(make_classifier(config=config), data, config, tmp_path)
    assert len(fitted.seconds_per_epoch) == 1
    assert fitted.compile_seconds > 0


@pytest.mark.parametrize(
    ("message", "batch", "fits"),
    [
        ("Out of memory while trying to allocate 68719476736 bytes", 1024, 352),
        ("Out of memory while trying to allocate 106.21GiB.", 1783, 376),
        ("OOM when allocating tensor with shape[1,2]", 1024, 512),
        ("Out of memory while trying to allocate 10 bytes", 3, 1),
    ],
)
def test_out_of_memory_names_a_batch_that_should_fit(monkeypatch, message, batch, fits):
    monkeypatch.setattr(hardware, "memory_limit_bytes", lambda: 32 * 2**30)
    model = types.SimpleNamespace(dtype_policy=keras.DTypePolicy("mixed_float16"))
    config = dataclasses.replace(BASE, batch_size=batch)
    error = loop._out_of_memory(types.SimpleNamespace(message=message), config, model)
    for part in (f"--batch_size={batch} ", "mixed_float16", f"--batch_size={fits}."):
        assert part in str(error)


@pytest.mark.parametrize(("kind", "place"), [("png", b"IDAT"), ("jpeg", b"\xff\xc4")])
def test_an_image_that_is_damaged_behind_its_header(kind, place):
    encode = {"png": tf.io.encode_png, "jpeg": tf.io.encode_jpeg}[kind]
    image = bytearray(encode(np.zeros((80, 80, 3), np.uint8)).numpy())
    begin = image.find(place) + len(place)
    image[begin : begin + 8] = b"\xff" * 8
    images = tf.data.Dataset.from_tensors(bytes(image))
    images = images.map(lambda x: crops.random(x, (72, 72, 3), tf.constant([0, 1], tf.int64)))
    with (
        pytest.raises(
            errors.UserError,
            match=r"^An image of digits is damaged or gone: [^{}]*Invalid \w+ data",
        ),
        loop.naming_errors(BASE, None),
    ):
        next(iter(images))


def test_an_image_that_is_gone_is_named(tmp_path):
    image = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(image)
    found = data.load(f"folder:{tmp_path}")
    for file in (tmp_path / "b").iterdir():
        file.unlink()
    with (
        pytest.raises(errors.UserError, match=r"b/\d\.png; No such file or directory\. Remove"),
        loop.naming_errors(BASE, None),
    ):
        next(iter(found.train(2, seed=0)))
    with pytest.raises(errors.UserError, match=r"b/\d\.png; No such file or directory\. Remove"):
        evaluation.predict(None, found.test(2), compiled=lambda x: x)
