"""What a GPU did in a training step, by kind of kernel.

Standard library only, and no import of ours: the peer's process, which has no tfmp, runs this very
file, so that both sides are counted by the same lines.
"""

import collections
import re
from typing import NamedTuple

CALLS = 4  # of the step, in a profile
LONGEST = 12  # kernels that are named
LAUNCH_MS = 0.01  # Gaps up to this are those between one kernel and the next one in the queue.

# What kernels do, by their names: XLA's, PyTorch's, cuDNN's, cuBLAS' and NCCL's. The first that
# fits counts.
SUMS = "sum of replicas"
KINDS = {
    SUMS: "nccl",
    "attention": "sdpa|fmha|flash|dot_do_o|convert_dq",
    "convolutions": "fprop|dgrad|wgrad|convolve|implicit_gemm",
    "products": "gemm|cutlass|gemv|nvjet|matmul|splitk",
    "concatenations": "concatenate",
    "reductions": "reduce",
    "copies and fills": "^memcpy|^memset|copy|fillfunctor",
}
OTHERS = "others"
# Of torch.compile, whose kernels have all in their names that was put into them.
INDUCTOR = {"tem": "products", "red": "reductions", "per": "reductions", "poi": OTHERS}


class Kernel(NamedTuple):
    """Something that a GPU did.

    Attributes:
        name: A kernel's, or one that begins with "Memcpy".
        begin_ms: When it began, by any clock.
        ms: How long it took.
        from_host: Of a copy from the host the kind of its memory, such as "pinned".
    """

    name: str
    begin_ms: float
    ms: float
    from_host: str | None = None


def summary(gpu, kernels, steps):
    """What a GPU did, per step.

    Args:
        gpu: Its number.
        kernels: `Kernel`s.
        steps: Training steps that they cover.

    Returns:
        A dict: `gpu`, `span_ms` (from the first kernel's start to the last one's end), of which
        `busy_ms` (some kernel ran), `short_gaps_ms` (no longer than `LAUNCH_MS` each) and
        `long_gaps_ms`, `kernels` (their number), `kinds_ms` (dict by `KINDS`; kernels that run at
        the same time count twice), `from_host_ms` (dict: copies from the host, by the kind of its
        memory) and `longest` (list of [name, ms, number]). Copies count in the dicts alone.
    """
    kinds: collections.Counter[str] = collections.Counter()
    from_host: collections.Counter[str] = collections.Counter()
    names: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    spans = []
    for kernel in kernels:
        kinds[kind_of(kernel.name)] += kernel.ms
        if kernel.from_host:
            from_host[kernel.from_host] += kernel.ms
        if kernel.name.lower().startswith("memcpy"):
            continue
        spans.append((kernel.begin_ms, kernel.begin_ms + kernel.ms))
        names[kernel.name] += kernel.ms
        counts[kernel.name] += 1
    busy, gaps = _busy_and_gaps(spans)
    short = [gap for gap in gaps if gap <= LAUNCH_MS]
    return {
        "gpu": gpu,
        "span_ms": (busy + sum(gaps)) / steps,
        "busy_ms": busy / steps,
        "short_gaps_ms": sum(short) / steps,
        "long_gaps_ms": (sum(gaps) - sum(short)) / steps,
        "kernels": len(spans) / steps,
        "kinds_ms": {kind: kinds[kind] / steps for kind in (*KINDS, OTHERS)},
        "from_host_ms": {kind: ms / steps for kind, ms in sorted(from_host.items())},
        "longest": [
            [name, ms / steps, counts[name] / steps] for name, ms in names.most_common(LONGEST)
        ],
    }


def kind_of(name):
    """A kernel's kind, by its name."""
    if made := re.match(r"triton_([a-z]+)_", name):
        return INDUCTOR.get(made[1], OTHERS)
    for kind, pattern in KINDS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return OTHERS


def _busy_and_gaps(spans):
    """Length of what the spans cover, and those of the gaps between them."""
    busy, gaps, until = 0.0, [], None
    for begin, end in sorted(spans):
        until = begin if until is None else until
        gaps.append(max(0.0, begin - until))
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return busy, gaps
