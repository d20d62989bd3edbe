"""What is chosen for a TPU; a run with these choices is in tests/distribution/test_tpu.py."""

import pytest

from tfmp import distribution, errors, policies
from tfmp.recipes import resnet
from tfmp.training import tpu


def test_float16_becomes_bfloat16_and_other_policies_stay():
    found = tpu.policy(policies.resolve("mixed_float16"))
    assert found.name == "mixed_bfloat16" and "TPU" in found.reason
    for name in ("float32", "mixed_bfloat16"):
        assert tpu.policy(policies.resolve(name)).name == name


@pytest.mark.parametrize(
    ("asked", "save_every", "epoch_steps", "expected"),
    [
        *[(None, 0, 5004, 36), (None, 1000, 5000, 100), (None, 30, 100, 10), (None, 0, 7, 7)],
        *[(5, 0, 20, 5), (1, 0, 20, 1)],
    ],
)
def test_steps_of_a_call_divide_an_epoch_and_what_is_saved(
    asked, save_every, epoch_steps, expected
):
    config = resnet.Config(steps_per_execution=asked, save_every_steps=save_every)
    assert tpu.steps_per_execution(config, epoch_steps) == expected


@pytest.mark.parametrize(
    "setting", [{"gradient_accumulation_steps": 2}, {"remat": True}, {"trace_every": 5}]
)
def test_what_a_tpu_can_not_do_is_refused_by_name(setting):
    with pytest.raises(errors.UserError, match=f"--{next(iter(setting))} is not for"):
        tpu.check(resnet.Config(**setting))


@pytest.mark.parametrize(("name", "environment"), [("tpu", {}), ("auto", {"TPU_NAME": "local"})])
def test_without_a_tpu_it_says_so(monkeypatch, name, environment):
    for key in ("TPU_NAME", "TF_CONFIG", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(errors.UserError, match=r"Expected a TPU: .* Received none at 'local'"):
        distribution.resolve(name)
