"""Power of GPUs while a program uses them, by NVML: nvidia-ml-py if installed, else nvidia-smi.

A driver's figure is a mean over the time just before it, up to a second on some GPUs: it fits
spans of seconds, and means over many shorter ones.
"""

import collections
import contextlib
import ctypes
import glob
import math
import os
import shutil
import subprocess
import threading
import time
import uuid

from tfmp import hardware

PERIOD_S = 0.1
# A driver that has told nothing for so long has stopped: the energy is no longer known.
SILENCE_S = 10.0
KEPT = 100_000  # samples, the last three hours


class Sampler:
    """Reads the power of some GPUs, summed, in a thread from `with` to its end.

    Where neither nvidia-ml-py nor nvidia-smi finds the GPUs, there are no samples.

    Args:
        gpus: Indices or UUIDs, as nvidia-smi takes them; none: no thread and no samples. By
            default the first one of CUDA_VISIBLE_DEVICES.

    Attributes:
        samples: The last (seconds by `time.monotonic()`, watts of all GPUs together).
    """

    def __init__(self, gpus=None):
        self.samples: collections.deque[tuple[float, float]] = collections.deque(maxlen=KEPT)
        self._gpus = device_indices(1) if gpus is None else list(gpus)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._begin = math.nan
        # Replaced as one, so that no reader sees half of it: time, watts and joules until then.
        self._last = (math.nan, math.nan, math.nan)

    def __enter__(self):
        """Starts the thread."""
        self._begin = time.monotonic()
        if self._gpus:
            self._thread.start()
        return self

    def __exit__(self, *_):
        """Ends the thread, and nvidia-smi with it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def mean_watts(self, spans):
        """Mean of the samples within spans of time, or None where there are none.

        Args:
            spans: List of (begin, end) in seconds by `time.monotonic()`.
        """
        # The first sample of a span may be from before it: see above.
        samples = self.samples.copy()
        inside = [w for at, w in samples for begin, end in spans if begin <= at <= end]
        return sum(inside) / len(inside) if inside else None

    def joules(self):
        """Energy since `with` began; NaN where there is no sample, or none for `SILENCE_S`."""
        at, watts, joules = self._last
        silence = time.monotonic() - at
        return joules + watts * silence if silence <= SILENCE_S else math.nan

    def add(self, at, watts):
        """Takes a sample: each counts until the next, the first one from the begin on.

        Args:
            at: Seconds by `time.monotonic()`.
            watts: Watts of all GPUs together.
        """
        before, former, joules = self._last
        if math.isnan(before):
            before, former, joules = self._begin, watts, 0.0
        gap = at - before
        self._last = (at, watts, joules + former * gap if gap <= SILENCE_S else math.nan)
        self.samples.append((at, watts))

    def _run(self):
        source = nvml(self._gpus, self._ended) or smi(self._gpus, self._ended)
        for watts in source or ():
            self.add(time.monotonic(), watts)
            if self._ended.is_set():
                break


def device_indices(count):
    """The GPUs that a child will use: indices or UUIDs, one at least and `count` at most.

    They are the first of CUDA_VISIBLE_DEVICES, or without that, of the machine.
    """
    named = [x.strip() for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    there = [x for x in named if x] or [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]
    return there[:count] or ["0"]


def cuda_gpus():
    """UUIDs of the GPUs that CUDA sees in this process, in its order, as nvidia-smi prints them.

    NVML numbers all GPUs of the machine by their place on the bus; CUDA those of
    CUDA_VISIBLE_DEVICES, and by their speed. Starts CUDA's driver, as TensorFlow does. Empty
    without a GPU or its driver.
    """
    return hardware.of_cuda_devices(_uuid)


def _uuid(cuda, device):
    name = (ctypes.c_ubyte * 16)()
    if cuda.cuDeviceGetUuid_v2(name, device):
        return None
    return f"GPU-{uuid.UUID(bytes=bytes(name))}"


def nvml(gpus, ended):
    """A generator of watts from NVML; None without nvidia-ml-py or where it lacks a GPU.

    Args:
        gpus: Indices or UUIDs; their watts are summed.
        ended: `threading.Event` that ends it.
    """
    try:
        import pynvml
    except ImportError:
        return None

    def watts():
        return sum(pynvml.nvmlDeviceGetPowerUsage(handle) for handle in handles) / 1e3

    try:
        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(int(gpu))
            if gpu.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(gpu)
            for gpu in gpus
        ]
        watts()
    except pynvml.NVMLError:
        return None

    def read():
        while True:
            with contextlib.suppress(pynvml.NVMLError):
                yield watts()
            if ended.wait(PERIOD_S):
                return

    return read()


def smi(gpus, ended):
    """A generator of watts from nvidia-smi; None without that program.

    Args:
        gpus: Indices or UUIDs; their watts are summed.
        ended: `threading.Event` that ends it.
    """
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", f"--id={','.join(gpus)}", "--query-gpu=power.draw"]
    command += ["--format=csv,noheader,nounits", f"--loop-ms={int(1e3 * PERIOD_S)}"]
    # In a session of its own: Ctrl-C is for us, who still count while the run is saved.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def end():
        ended.wait()
        process.kill()

    def read():
        with process:
            watts = []
            for line in process.stdout or ():
                try:
                    watts.append(float(line))
                except ValueError:  # "[N/A]": a sum would lack it
                    watts.append(math.nan)
                if len(watts) == len(gpus):
                    if not math.isnan(sum(watts)):
                        yield sum(watts)
                    watts = []

    # Whoever waits for a line would not see the event: this ends the program, and so the wait.
    threading.Thread(target=end, daemon=True).start()
    return read()


def driver_version():
    """Version of NVIDIA's driver, or None."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return found.stdout.strip().splitlines()[0] if found.returncode == 0 else None
