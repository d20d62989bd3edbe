"""Where a training step spends a GPU's time, by TensorFlow's profiler."""

import pathlib
import re
import tempfile

import tensorflow as tf

# The files that the profiler writes; there is no public reader.
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfmp.commands.benchmark import kernels
from tfmp.errors import UserError


def check():
    """Refuses a machine without a GPU, before anything is measured.

    Raises:
        UserError: TensorFlow sees none.
    """
    if not tf.config.list_physical_devices("GPU"):
        raise UserError("Expected a GPU for --profile. Received: none that TensorFlow sees.")


def profile(work):
    """Runs some more steps under the profiler.

    Args:
        work: A `timing.Work` whose step is compiled.

    Returns:
        A list of the dicts of `kernels.summary`, one for each GPU.

    Raises:
        UserError: The profiler saw no GPU's kernels.
    """
    work.step()
    work.count()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(kernels.CALLS):
            work.step()
        work.count()
        tf.profiler.experimental.stop()
        spaces = [
            xplane_pb2.XSpace.FromString(file.read_bytes())
            for file in pathlib.Path(folder).rglob("*.xplane.pb")
        ]
    planes = {plane.name: plane for space in spaces for plane in space.planes}
    steps = kernels.CALLS * work.steps_per_call
    found = [
        kernels.summary(int(name.rpartition(":")[2]), of_plane(plane), steps)
        for name, plane in sorted(planes.items())
        if re.fullmatch(r"/device:GPU:\d+", name)
    ]
    found = [gpu for gpu in found if gpu["kernels"]]
    if not found:
        raise UserError(
            "Expected a GPU's kernels in --profile. Received none: CUPTI, by which TensorFlow sees "
            "them, is missing or not permitted."
        )
    return found


def of_plane(plane):
    """The `kernels.Kernel`s of an `XPlane` of the profiler: a generator."""
    stats = {key: entry.name for key, entry in plane.stat_metadata.items()}
    for line in plane.lines:
        if not line.name.startswith("Stream"):
            continue
        for event in line.events:
            yield kernels.Kernel(
                plane.event_metadata[event.metadata_id].name,
                line.timestamp_ns / 1e6 + event.offset_ps / 1e9,
                event.duration_ps / 1e9,
                _host_memory(event, stats, plane),
            )


def _host_memory(event, stats, plane):
    """Kind of the host's memory that a copy reads, such as "pinned"; None of all else."""
    for stat in event.stats:
        if stats[stat.metadata_id] == "memcpy_details":
            said = stat.str_value or plane.stat_metadata[stat.ref_value].name
            found = re.search(r"kind_src:(\S+) kind_dst:device", said)
            return found[1] if found and found[1] != "device" else None
    return None
