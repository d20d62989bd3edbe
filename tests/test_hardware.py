"""Facts about devices; GPUs are played by stand-ins for TensorFlow's answers."""

import types

import pytest
import tensorflow as tf

from tfmp import hardware

ON_GPU = bool(tf.config.list_physical_devices("GPU"))


def play(monkeypatch, *details, logical=()):
    """Makes TensorFlow report GPUs of these details and logical memory limits, in MiB."""
    gpus = [types.SimpleNamespace(name=f"/physical_device:GPU:{i}") for i in range(len(details))]
    configured = [types.SimpleNamespace(memory_limit=limit) for limit in logical]
    config = tf.config
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(
        config.experimental, "get_device_details", lambda gpu: details[gpus.index(gpu)]
    )
    monkeypatch.setattr(config, "get_logical_device_configuration", lambda gpu: configured)
    monkeypatch.setattr(hardware, "_card_memory", lambda gpu: 16 * 2**30)


T4 = {"device_name": "Tesla T4", "compute_capability": (7, 5)}
A100 = {"device_name": "A100", "compute_capability": (8, 0)}


@pytest.mark.skipif(ON_GPU, reason="describes a CPU")
def test_cpu():
    device = hardware.describe()
    assert (device.kind, device.count, device.compute_capability) == ("cpu", 1, None)
    assert device.name
    assert device.memory_bytes is None or device.memory_bytes > 2**28
    assert hardware.memory_limit_bytes() == device.memory_bytes
    hardware.reset_peak_memory()
    assert hardware.peak_memory_bytes() is None


def test_several_gpus_are_their_least(monkeypatch):
    play(monkeypatch, A100, T4)
    assert hardware.describe() == hardware.Device("gpu", "A100 + Tesla T4", 2, (7, 5), 16 * 2**30)
    play(monkeypatch, A100, A100, logical=(1024, 2048))
    assert hardware.describe() == hardware.Device("gpu", "A100", 2, (8, 0), 2**30)
    play(monkeypatch, A100, {"device_name": "another maker's"})
    assert hardware.describe().compute_capability is None


def test_memory_is_that_of_this_process_where_tensorflow_lists_all_workers_gpus(monkeypatch):
    peaks = {"GPU:0": 3, "GPU:1": 5}
    everyones = [f"/job:worker/replica:0/task:{i // 2}/device:GPU:{i % 2}" for i in range(4)]
    play(monkeypatch, A100, A100)
    monkeypatch.setattr(tf.config, "get_visible_devices", tf.config.list_physical_devices)
    monkeypatch.setattr(
        tf.config,
        "list_logical_devices",
        lambda kind: [tf.config.LogicalDevice(name, kind) for name in everyones],
    )
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", lambda gpu: {"peak": peaks[gpu]})
    monkeypatch.setattr(tf.config.experimental, "reset_memory_stats", peaks.pop)
    assert hardware.peak_memory_bytes() == 5
    hardware.reset_peak_memory()
    assert not peaks


def test_tpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind] * 8)
    assert hardware.describe() == hardware.Device("tpu", "TPU", 8)


@pytest.mark.parametrize(("details", "has"), [((), False), ((T4,), False), ((T4, A100), True)])
def test_tf32_needs_hardware_that_has_it(monkeypatch, details, has):
    play(monkeypatch, *details)
    try:
        hardware.set_tf32(True)
        assert hardware.tf32_in_force() is has
        hardware.set_tf32(False)
        assert hardware.tf32_in_force() is False
    finally:
        hardware.set_tf32(False)


def test_without_proc(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(hardware.Path, "read_text", missing)
    assert hardware._cpu_name()
    assert hardware._machine_memory() is None


def test_import_leaves_the_runtime_alone(run_fresh):
    code = (
        "import tensorflow as tf, tfmp.hardware, tfmp.policies\n"
        "from tensorflow.python.eager import context\n"
        "assert not context.context()._initialized"
    )
    run_fresh("-c", code)


@pytest.mark.gpu
def test_gpu_memory():
    device = hardware.describe()
    assert device.kind == "gpu"
    assert device.memory_bytes is not None
    assert device.memory_bytes > 2**30
    hardware.reset_peak_memory()
    before = hardware.peak_memory_bytes() or 0
    with tf.device("GPU:0"):
        tf.zeros(2**24, tf.uint8)
    assert (hardware.peak_memory_bytes() or 0) >= before + 2**24


@pytest.mark.parametrize(
    ("name", "arithmetic", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "float16", 989.4),
        ("NVIDIA H100 PCIe", "tf32", 378.0),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A10", "float16", 125.0),
        ("NVIDIA A10G", "float16", None),
        ("NVIDIA H200", "float16", 989.4),
        ("NVIDIA H200 NVL", "float16", None),
        ("NVIDIA A100 80GB PCIe", "float16", 312.0),
        ("NVIDIA GeForce RTX 3090 Ti", "float16", None),
        ("NVIDIA L40S", "float32", 91.6),
        ("NVIDIA L4", "float32", 30.3),
        ("Tesla V100-SXM2-16GB", "float16", 125.0),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("Tesla T4", "tf32", None),
        ("AMD EPYC", "float32", None),
    ],
)
def test_peaks_of_cards(name, arithmetic, peak):
    assert hardware.peak_tflops(name, arithmetic) == peak


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35),
        ("NVIDIA A100-SXM4-80GB", 2.039),
        ("NVIDIA A100-SXM4-40GB", 1.555),
        ("NVIDIA A100 80GB PCIe", 1.935),
        ("Tesla V100-SXM2-16GB", 0.9),
        ("NVIDIA H200 NVL", None),
        ("AMD EPYC", None),
    ],
)
def test_bandwidths_of_cards(name, bandwidth):
    assert hardware.bandwidth_tbs(name) == bandwidth


def test_each_card_has_both_figures():
    assert all(hardware.peak_tflops(card, "float16") for card in hardware.BANDWIDTH_TBS)


@pytest.mark.parametrize(
    ("name", "capability", "types"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), ("float16", "bfloat16", "tf32", "float8")),
        ("NVIDIA L4", (8, 9), ("float16", "bfloat16", "tf32", "float8")),
        ("NVIDIA A100-SXM4-80GB", (8, 0), ("float16", "bfloat16", "tf32")),
        ("Tesla T4", (7, 5), ("float16",)),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5), ()),
        ("NVIDIA GeForce GTX 1080", (6, 1), ()),
        ("unknown GPU", None, ()),
    ],
)
def test_tensor_cores(name, capability, types):
    assert hardware.tensor_core_types(hardware.Device("gpu", name, 1, capability)) == types
    assert hardware.tensor_core_types(hardware.Device("cpu", name, 1)) == ()
