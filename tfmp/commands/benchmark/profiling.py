"""Where a training step spends a GPU's time, by TensorFlow's profiler."""

import collections
import pathlib
import re
import tempfile

import tensorflow as tf

# The files that the profiler writes; there is no public reader.
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfmp.errors import UserError

CALLS = 4  # of the step, in a profile
LONGEST = 12  # kernels that are named

# What kernels do, by their names: XLA's, cuDNN's, cuBLAS' and NCCL's. The first that fits counts.
KINDS = {
    "sum of replicas": "nccl",
    "attention": "sdpa|fmha|flash|dot_do_o|convert_dq",
    "convolutions": "fprop|dgrad|wgrad|convolve|implicit_gemm",
    "products": "gemm|cutlass|gemv|nvjet|matmul",
    "concatenations": "concatenate",
    "reductions": "reduce",
    "copies and fills": "^memcpy|^memset|copy",
}
OTHERS = "others"


def profile(work):
    """Runs some more steps under the profiler.

    Args:
        work: A `timing.Work` whose step is compiled.

    Returns:
        A list of the dicts of `of_plane`, one for each GPU.

    Raises:
        UserError: The profiler saw no GPU's kernels.
    """
    work.step()
    work.count()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(CALLS):
            work.step()
        work.count()
        tf.profiler.experimental.stop()
        spaces = [
            xplane_pb2.XSpace.FromString(file.read_bytes())
            for file in pathlib.Path(folder).rglob("*.xplane.pb")
        ]
    planes = {plane.name: plane for space in spaces for plane in space.planes}
    steps = CALLS * work.steps_per_call
    found = [
        of_plane(plane, steps)
        for name, plane in sorted(planes.items())
        if re.fullmatch(r"/device:GPU:\d+", name)
    ]
    found = [gpu for gpu in found if gpu["kernels"]]
    if not found:
        raise UserError(
            "Expected a GPU's kernels in --profile. Received none: there is no GPU, or CUPTI, by "
            "which TensorFlow sees them, is missing or not permitted."
        )
    return found


def of_plane(plane, steps):
    """What a GPU did, per step.

    Args:
        plane: An `XPlane` of the profiler.
        steps: Training steps that it covers.

    Returns:
        A dict: `gpu` (its number), `span_ms` (from the first kernel's start to the last one's end),
        `busy_ms` (some kernel ran), `kernels` (their number), `kinds_ms` (dict by `KINDS`; kernels
        that run at the same time count twice), `from_host_ms` (dict: copies from the host, by the
        kind of its memory) and `longest` (list of [name, ms, number]).
    """
    stats = {key: entry.name for key, entry in plane.stat_metadata.items()}
    kinds: collections.Counter[str] = collections.Counter()
    from_host: collections.Counter[str] = collections.Counter()
    names: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    spans = []
    for line in plane.lines:
        if not line.name.startswith("Stream"):
            continue
        for event in line.events:
            name = plane.event_metadata[event.metadata_id].name
            ms = event.duration_ps / 1e9
            begin = line.timestamp_ns / 1e6 + event.offset_ps / 1e9
            kinds[kind_of(name)] += ms
            if name.lower().startswith("memcpy"):
                if source := _host_memory(event, stats, plane):
                    from_host[source] += ms
                continue
            spans.append((begin, begin + ms))
            names[name] += ms
            counts[name] += 1
    return {
        "gpu": int(plane.name.rpartition(":")[2]),
        "span_ms": (max(e for _, e in spans) - min(b for b, _ in spans)) / steps if spans else 0.0,
        "busy_ms": _union(spans) / steps,
        "kernels": len(spans) / steps,
        "kinds_ms": {kind: kinds[kind] / steps for kind in (*KINDS, OTHERS)},
        "from_host_ms": {kind: ms / steps for kind, ms in sorted(from_host.items())},
        "longest": [
            [name, ms / steps, counts[name] / steps] for name, ms in names.most_common(LONGEST)
        ],
    }


def kind_of(name):
    """A kernel's kind, by its name."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return OTHERS


def _host_memory(event, stats, plane):
    """Kind of the host's memory that a copy reads, such as "pinned"; None of other copies."""
    for stat in event.stats:
        if stats[stat.metadata_id] == "memcpy_details":
            said = stat.str_value or plane.stat_metadata[stat.ref_value].name
            found = re.search(r"kind_src:(\S+) kind_dst:device", said)
            return found[1] if found and found[1] != "device" else None
    return None


def _union(spans):
    """Length of what the spans cover."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
