"""Power and energy of GPUs, from drivers that are not there."""

import glob
import os
import sys
import threading
import time
import types

import pytest

from tfmp import power


@pytest.fixture
def clock(monkeypatch):
    """A settable time: `clock.now`."""
    fake = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(power.time, "monotonic", lambda: fake.now)
    return fake


@pytest.fixture
def fake_nvml(monkeypatch):
    """An NVML of GPUs 0 and 1 of 100 and 250 watts, and of one GPU by UUID."""
    fake = types.ModuleType("pynvml")
    milliwatts = {0: 100_000, 1: 250_000, "GPU-a": 70_000}

    def handle(gpu):
        if gpu not in milliwatts:
            raise RuntimeError
        return gpu

    fake.NVMLError = RuntimeError
    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetHandleByIndex = fake.nvmlDeviceGetHandleByUUID = handle
    fake.nvmlDeviceGetPowerUsage = milliwatts.__getitem__
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def program(folder, monkeypatch, script):
    """Puts an nvidia-smi onto the path, and NVML out of the way."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(power, "nvml", lambda *_: None)


def test_power_is_the_mean_of_the_samples_within_the_windows():
    sampler = power.Sampler()
    sampler.samples.extend([(0.5, 1.0), (1.5, 100.0), (2.5, 7.0), (3.5, 300.0)])
    assert sampler.mean_watts([(1, 2), (3, 4)]) == 200
    assert sampler.mean_watts([(10, 20)]) is None


def test_energy_is_each_sample_until_the_next(clock):
    with power.Sampler([]) as sampler:
        assert sampler.joules() != sampler.joules()  # NaN: nothing is known yet
        for at, watts in [(1.0, 100.0), (3.0, 50.0)]:
            clock.now = at
            sampler.add(at, watts)
        assert sampler.joules() == 100 * 1 + 100 * 2
        clock.now = 4.0
        assert sampler.joules() == 300 + 50


def test_energy_is_not_known_where_the_driver_fell_silent(clock):
    with power.Sampler([]) as sampler:
        sampler.add(0.0, 100.0)
        clock.now = 10.5
        assert sampler.joules() != sampler.joules()
        sampler.add(10.5, 100.0)
        assert sampler.joules() != sampler.joules()


def test_power_from_nvidia_smi(tmp_path, monkeypatch):
    program(
        tmp_path,
        monkeypatch,
        f"echo $1 > {tmp_path}/asked; echo '[N/A]'\nwhile true; do echo 123.5; sleep 0.05; done",
    )
    with power.Sampler(["3"]) as sampler:
        while len(sampler.samples) < 3:
            sampler._ended.wait(0.01)
    assert {watts for _, watts in sampler.samples} == {123.5}
    assert not sampler._thread.is_alive()
    assert (tmp_path / "asked").read_text() == "--id=3\n"


def test_power_of_two_gpus_from_nvidia_smi_is_their_sum(tmp_path, monkeypatch):
    program(
        tmp_path,
        monkeypatch,
        f"echo $1 > {tmp_path}/asked; echo 7; echo '[N/A]'\n"
        "while true; do echo 100; echo 23.5; sleep 0.05; done",
    )
    with power.Sampler(["0", "GPU-a"]) as sampler:
        while len(sampler.samples) < 2:
            sampler._ended.wait(0.01)
    assert {watts for _, watts in sampler.samples} == {123.5}
    assert (tmp_path / "asked").read_text() == "--id=0,GPU-a\n"


@pytest.mark.parametrize(
    ("gpus", "watts"), [(["1"], 250), (["0", "1"], 350), (["GPU-a", "0"], 170)]
)
def test_power_from_nvml(fake_nvml, gpus, watts):
    assert next(power.nvml(gpus, threading.Event())) == watts


def test_nvml_without_one_of_the_gpus_is_no_sum(fake_nvml):
    assert power.nvml(["0", "7"], threading.Event()) is None


def test_an_error_of_nvml_is_a_sample_less(fake_nvml):
    answers = iter([1000, 2000, None, 3000])

    def usage(handle):
        watts = next(answers, 4000)
        if watts is None:
            raise RuntimeError
        return watts

    fake_nvml.nvmlDeviceGetPowerUsage = usage
    source = power.nvml(["0"], threading.Event())
    assert [next(source), next(source)] == [2, 3]


def test_the_end_does_not_wait_for_a_broken_driver(fake_nvml):
    answers = iter([1000])
    fake_nvml.nvmlDeviceGetPowerUsage = lambda handle: next(answers, None) or broken()

    def broken():
        raise RuntimeError

    begin = time.perf_counter()
    with power.Sampler(["0"]) as sampler:
        pass
    assert time.perf_counter() - begin < 5 and not sampler._thread.is_alive()


def test_an_error_and_ctrl_c_end_the_thread(fake_nvml):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), power.Sampler(["0"]) as sampler:
            raise error
        assert not sampler._thread.is_alive()


def test_a_childs_gpu_is_the_first_of_the_variable(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert power.device_indices(5) == ["3", "1"]
    assert power.device_indices(1) == ["3"] and power.Sampler()._gpus == ["3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(glob, "glob", lambda pattern: [])
    assert power.device_indices(2) == ["0"]
    monkeypatch.setattr(glob, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    assert power.device_indices(1) == ["0"] and power.device_indices(4) == ["0", "1"]


def test_without_a_gpu_there_is_no_power(monkeypatch):
    monkeypatch.setattr(power, "nvml", lambda *_: None)
    monkeypatch.setenv("PATH", "")
    with power.Sampler() as sampler:
        pass
    assert not sampler.samples and power.driver_version() is None


def test_of_no_gpu_there_is_no_thread():
    with power.Sampler([]) as sampler:
        assert not sampler._thread.is_alive()


def test_uuids_are_as_nvidia_smi_prints_them(monkeypatch):
    class Driver:
        def cuInit(self, flags):
            return 0

        def cuDeviceGetCount(self, count):
            count._obj.value = 2
            return 0

        def cuDeviceGet(self, device, index):
            device._obj.value = index
            return 0

        def cuDeviceGetUuid_v2(self, name, device):
            name[0], name[15] = 0xAB, device.value
            return 0

    monkeypatch.setattr(power.ctypes, "CDLL", lambda name: Driver())
    zeros = "000000-0000-0000-0000-0000000000"
    assert power.cuda_gpus() == [f"GPU-ab{zeros}00", f"GPU-ab{zeros}01"]


def test_without_cudas_driver_there_are_no_gpus(monkeypatch):
    def missing(name):
        raise OSError

    monkeypatch.setattr(power.ctypes, "CDLL", missing)
    assert power.cuda_gpus() == []
