"""Facts about the device that TensorFlow sees: what it is, its memory, and TF32.

Nothing here runs when the module is imported: TensorFlow's runtime starts with the first call
that needs it, so that virtual devices can still be configured before.
"""

import ctypes
import dataclasses
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tensorflow as tf
from tensorflow.python.client import device_lib
from tensorflow.python.eager import context  # no public way to ask whether TensorFlow has started

# Ampere was the first architecture with TensorFloat-32 units.
TF32_CAPABILITY = (8, 0)
# CUDA's CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
CAPABILITY_ATTRIBUTES = (75, 76)

# Peak TFLOP/s of dense matrix products, at boost clock, from NVIDIA's datasheets and, for the two
# GeForce cards, the appendices of the whitepapers of their architectures (products summed in
# float32, as in training). A datasheet's figures "with sparsity" are halved. By the device's
# name, without what follows a hyphen.
_HOPPER_SXM = {"float16": 989.4, "bfloat16": 989.4, "tf32": 494.7, "float32": 66.9}
_A100 = {"float16": 312.0, "bfloat16": 312.0, "tf32": 156.0, "float32": 19.5}
PEAK_TFLOPS = {
    "NVIDIA H100 PCIe": {"float16": 756.0, "bfloat16": 756.0, "tf32": 378.0, "float32": 51.0},
    "NVIDIA H100 80GB HBM3": _HOPPER_SXM,
    "NVIDIA H200": _HOPPER_SXM,
    "NVIDIA A100": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L40S": {"float16": 362.05, "bfloat16": 362.05, "tf32": 183.0, "float32": 91.6},
    "NVIDIA L4": {"float16": 121.0, "bfloat16": 121.0, "tf32": 60.0, "float32": 30.3},
    "NVIDIA A10": {"float16": 125.0, "bfloat16": 125.0, "tf32": 62.5, "float32": 31.2},
    "NVIDIA GeForce RTX 4090": {
        "float16": 165.2,
        "bfloat16": 165.2,
        "tf32": 82.6,
        "float32": 82.6,
    },
    "NVIDIA GeForce RTX 3090": {"float16": 71.0, "bfloat16": 71.0, "tf32": 35.6, "float32": 35.6},
    "Tesla V100-SXM2": {"float16": 125.0, "float32": 15.7},
    "Tesla V100-PCIE": {"float16": 112.0, "float32": 14.0},
    "Tesla T4": {"float16": 65.0, "float32": 8.1},
}

# Bandwidth of the cards' own memory in TB/s, from the same datasheets.
BANDWIDTH_TBS = {
    "NVIDIA H100 PCIe": 2.0,
    "NVIDIA H100 80GB HBM3": 3.35,
    "NVIDIA H200": 4.8,
    "NVIDIA A100-SXM4-40GB": 1.555,
    "NVIDIA A100-PCIE-40GB": 1.555,
    "NVIDIA A100-SXM4-80GB": 2.039,
    "NVIDIA A100 80GB PCIe": 1.935,
    "NVIDIA L40S": 0.864,
    "NVIDIA L4": 0.3,
    "NVIDIA A10": 0.6,
    "NVIDIA GeForce RTX 4090": 1.008,
    "NVIDIA GeForce RTX 3090": 0.936,
    "Tesla V100-SXM2": 0.9,
    "Tesla V100-PCIE": 0.9,
    "Tesla T4": 0.32,
}

# The first compute capability whose tensor cores multiply a type: NVIDIA's CUDA C++ Programming
# Guide, appendix "Compute Capabilities", table of the types that tensor cores take.
TENSOR_CORES = {"float16": (7, 0), "bfloat16": (8, 0), "tf32": (8, 0), "float8": (8, 9)}
# Cards of capability 7.5 without tensor cores, by their specifications.
WITHOUT_TENSOR_CORES = "NVIDIA GeForce GTX 16"


@dataclasses.dataclass(frozen=True)
class Device:
    """The accelerators of this process, or its CPU.

    Attributes:
        kind: "gpu", "tpu" or "cpu".
        name: The maker's name, as "Tesla T4"; of several kinds of GPU, joined by " + ".
        count: Number of such devices, as TensorFlow sees them.
        compute_capability: (major, minor) of the GPUs, the lowest of several; None elsewhere.
        memory_bytes: Memory of one device, the smallest of several; None where it isn't known.
            On a CPU, the machine's memory.
    """

    kind: Literal["gpu", "tpu", "cpu"]
    name: str
    count: int
    compute_capability: tuple[int, int] | None = None
    memory_bytes: int | None = None


def describe() -> Device:
    """Describes the devices that TensorFlow would use: GPUs, else TPUs, else the CPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        names = [str(d.get("device_name", "unknown GPU")) for d in details]
        known = [tuple(d["compute_capability"]) for d in details if "compute_capability" in d]
        return Device(
            kind="gpu",
            name=" + ".join(dict.fromkeys(names)),
            count=len(gpus),
            # A GPU of unknown capability may be the lowest of all.
            compute_capability=min(known) if len(known) == len(gpus) else None,
            memory_bytes=memory_limit_bytes(),
        )
    # A TPU shows as a logical device only, once the TPU system is initialized.
    tpus = tf.config.list_logical_devices("TPU")
    if tpus:
        return Device(kind="tpu", name="TPU", count=len(tpus))
    return Device(
        kind="cpu",
        name=_cpu_name(),
        count=len(tf.config.list_physical_devices("CPU")),
        memory_bytes=memory_limit_bytes(),
    )


def started() -> bool:
    """Whether TensorFlow has looked for devices: from then on it reads no more environment."""
    return context.context()._physical_devices is not None


def cuda_devices() -> list[str]:
    """Each GPU that CUDA sees, as "NVIDIA H100 80GB HBM3 9.0", asked without starting TensorFlow.

    Empty without a GPU or its driver. CUDA's driver is started, as TensorFlow will anyway;
    CUDA_VISIBLE_DEVICES counts.
    """
    return of_cuda_devices(_name_and_capability)


def of_cuda_devices(read: Callable) -> list:
    """What a function gives of each GPU that CUDA sees, in CUDA's order.

    Starts CUDA's driver, as TensorFlow does. Empty without a GPU or its driver, or where the
    function gives None of one.

    Args:
        read: Function of the driver's library, by ctypes, and of a device's handle.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, device, found = ctypes.c_int(), ctypes.c_int(), []
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    for index in range(count.value):
        if cuda.cuDeviceGet(ctypes.byref(device), index):
            return []
        found.append(read(cuda, device))
    return [] if None in found else found


def cuda_memory_bytes() -> list[int]:
    """Memory of each GPU that CUDA sees, in bytes, asked without starting TensorFlow."""
    return of_cuda_devices(_memory)


def _memory(cuda, device):
    size = ctypes.c_size_t()
    return None if cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device) else size.value


def _name_and_capability(cuda, device):
    name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    failed = cuda.cuDeviceGetName(name, len(name), device)
    for value, attribute in zip((major, minor), CAPABILITY_ATTRIBUTES, strict=True):
        failed = failed or cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return None if failed else f"{name.value.decode()} {major.value}.{minor.value}"


def cpu_features() -> str:
    """The CPU's name and instruction sets, as Linux lists them; "" of them where it doesn't."""
    flags = _cpu_info("flags") or _cpu_info("Features")  # x86 and Arm
    return f"{_cpu_name()}: {flags}"


def set_tf32(enabled: bool) -> None:
    """Allows or forbids TF32: float32 products of 10 bits of mantissa, on GPUs that have them."""
    tf.config.experimental.enable_tensor_float_32_execution(enabled)


def tf32_in_force() -> bool:
    """Whether float32 products really run in TF32: allowed, and some GPU has it."""
    if not tf.config.experimental.tensor_float_32_execution_enabled():
        return False
    details = (
        tf.config.experimental.get_device_details(gpu)
        for gpu in tf.config.list_physical_devices("GPU")
    )
    return any(tuple(d.get("compute_capability", (0, 0))) >= TF32_CAPABILITY for d in details)


def peak_tflops(device_name: str, arithmetic: str) -> float | None:
    """The most that a card can compute, in TFLOP/s; None where no datasheet is at hand.

    Args:
        device_name: The maker's name, as in `Device.name`.
        arithmetic: "float16", "bfloat16", "tf32" or "float32".
    """
    return _of_card(PEAK_TFLOPS, device_name, {}).get(arithmetic)


def bandwidth_tbs(device_name: str) -> float | None:
    """The most that a card's memory can read and write, in TB/s; None without a datasheet.

    Args:
        device_name: The maker's name, as in `Device.name`.
    """
    return _of_card(BANDWIDTH_TBS, device_name, None)


def tensor_core_types(device: Device) -> tuple[str, ...]:
    """What the device's tensor cores multiply, out of the keys of `TENSOR_CORES`.

    Empty on CPUs, TPUs, GPUs without tensor cores and GPUs of unknown capability.
    """
    capability = device.compute_capability
    if device.kind != "gpu" or not capability or WITHOUT_TENSOR_CORES in device.name:
        return ()
    return tuple(name for name, first in TENSOR_CORES.items() if capability >= first)


def _of_card(table, device_name, default):
    for card, found in table.items():
        # Size and form may follow ("-SXM4-80GB"); "NVIDIA A10G" and "RTX 3090 Ti" are other cards.
        if device_name == card or device_name.startswith(f"{card}-"):
            return found
    return default


def reset_peak_memory() -> None:
    """Starts a new measurement of `peak_memory_bytes` on every GPU; nothing on a CPU."""
    for gpu in _own_gpus():
        tf.config.experimental.reset_memory_stats(gpu)


def peak_memory_bytes() -> int | None:
    """Most memory in use at once on any GPU, in bytes, since start or `reset_peak_memory`.

    This is what TensorFlow's allocator handed out; CUDA's own context comes on top of it. None on
    a CPU or a TPU, where TensorFlow keeps no such count.
    """
    peaks = [tf.config.experimental.get_memory_info(gpu)["peak"] for gpu in _own_gpus()]
    return max(peaks) if peaks else None


def memory_limit_bytes() -> int | None:
    """Memory that one device can use, in bytes, the least of several.

    A GPU's limit is that of its logical devices where one was configured, else what TensorFlow
    can take of the card. That starts TensorFlow's runtime.
    On a CPU it is the machine's memory. None where it isn't known.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return _machine_memory()
    limits: list[int | None] = []
    for gpu in gpus:
        logical = tf.config.get_logical_device_configuration(gpu) or []
        megabytes = [c.memory_limit for c in logical if c.memory_limit]
        limits.extend([int(mb) * 2**20 for mb in megabytes] or [_card_memory(gpu)])
    known = [limit for limit in limits if limit is not None]
    return min(known) if len(known) == len(limits) else None


def _card_memory(gpu) -> int | None:
    """Memory that TensorFlow can take of a physical GPU, in bytes."""
    # The first listing starts the runtime with the process's own settings, which the second one,
    # the only place where TensorFlow tells the limit, then finds in force.
    tf.config.list_logical_devices("GPU")
    index = gpu.name.rsplit(":", 1)[1]
    for device in device_lib.list_local_devices():
        if device.device_type == "GPU" and device.name.endswith(f":{index}"):
            return int(device.memory_limit)
    return None


def _own_gpus() -> list[str]:
    """This process' logical GPUs, as `GPU:0`; of several workers TensorFlow lists everyone's."""
    parts = [
        tf.config.get_logical_device_configuration(gpu) or [None]
        for gpu in tf.config.get_visible_devices("GPU")
    ]
    return [f"GPU:{index}" for index in range(sum(map(len, parts)))]


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine() or "unknown CPU"


def _cpu_info(name) -> str:
    """A line of /proc/cpuinfo, of the first core; "" if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _machine_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None
