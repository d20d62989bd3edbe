"""Every kind of state survives a round trip; damage is one clear error."""

import shutil

import numpy as np
import pytest

from tfmp import loss_scale
from tfmp.errors import TfmpError
from tfmp.training import TrainingConfig
from tfmp.training.checkpoints import Checkpoints

CONFIG = TrainingConfig(ema=0.9, gradient_accumulation_steps=2, optimizer="adamw", epochs=20)


def trained(make_classifier, digits, folder, steps=3):
    classifier = make_classifier("mixed_float16", CONFIG)
    checkpoints = Checkpoints(folder, classifier)
    classifier.fit(digits.train(32, seed=0), steps_per_epoch=steps, verbose=0, shuffle=False)
    return classifier, checkpoints


@pytest.fixture(scope="module")
def saved(make_classifier, digits, tmp_path_factory):
    """A folder with a checkpoint of step 3."""
    folder = tmp_path_factory.mktemp("saved")
    _, checkpoints = trained(make_classifier, digits, folder)
    checkpoints.save()
    return folder


def state(classifier):
    variables = [*classifier.variables, *classifier.optimizer.variables]
    return {f"{i}:{v.path}": v.numpy() for i, v in enumerate(variables)}


def set_step(classifier, step):
    skipped = int(classifier.optimizer.skipped_steps.numpy())
    loss_scale.inner(classifier.optimizer).variables[0].assign(step - skipped)


def test_round_trip(make_classifier, digits, tmp_path):
    classifier, checkpoints = trained(make_classifier, digits, tmp_path)
    checkpoints.seconds.assign(12.5)
    checkpoints.save()
    saved = state(classifier)
    names = " ".join(saved)
    for part in (
        *("seed_generator", "moving_mean", "average"),
        *("dynamic_scale", "step_counter", *loss_scale.optimizer.COUNTERS),
    ):
        assert part in names, f"no {part} among the state: the test looks at too little"
    fresh = make_classifier("mixed_float16", CONFIG)
    assert any((a != b).any() for a, b in zip(saved.values(), state(fresh).values(), strict=True))
    restored = Checkpoints(tmp_path, fresh)
    metrics = restored.restore()
    for (name, a), b in zip(saved.items(), state(fresh).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert restored.seconds.numpy() == 12.5
    fresh.reset_metrics()
    restored.set_metrics(metrics)
    assert fresh.get_metrics_result() == classifier.get_metrics_result()


def test_nothing_to_restore(make_classifier, tmp_path):
    checkpoints = Checkpoints(tmp_path, make_classifier())
    assert checkpoints.latest is None
    assert checkpoints.restore() is None


def test_the_same_step_is_saved_once_and_two_are_kept(make_classifier, digits, tmp_path):
    classifier, checkpoints = trained(make_classifier, digits, tmp_path)
    checkpoints.save()
    latest = checkpoints.latest
    checkpoints.save()
    assert checkpoints.latest == latest
    for step in (4, 5):
        set_step(classifier, step)
        checkpoints.save()
    assert sorted(p.name for p in tmp_path.glob("*.index")) == ["ckpt-4.index", "ckpt-5.index"]


def test_a_damaged_checkpoint_is_named(make_classifier, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    (data,) = folder.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(TfmpError, match="ckpt-3: it is damaged"):
        Checkpoints(folder, make_classifier("mixed_float16", CONFIG)).restore()


def test_a_damaged_list_of_checkpoints_is_no_new_start(make_classifier, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    (folder / "checkpoint").unlink()
    with pytest.raises(TfmpError, match="'checkpoint' there"):
        Checkpoints(folder, make_classifier("mixed_float16", CONFIG)).restore()


def test_a_checkpoint_of_another_model_is_refused(make_classifier, saved):
    with pytest.raises(TfmpError, match="of another model"):
        Checkpoints(saved, make_classifier("float32")).restore()


def test_a_full_disk_keeps_the_former_checkpoint(make_classifier, digits, tmp_path, monkeypatch):
    classifier, checkpoints = trained(make_classifier, digits, tmp_path)
    checkpoints.save()
    latest = checkpoints.latest

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    set_step(classifier, 9)
    with pytest.raises(TfmpError, match=r"No space left on device.*--resume"):
        checkpoints.save()
    assert checkpoints.latest == latest
