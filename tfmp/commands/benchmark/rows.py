"""From the measurements of a case to a row: medians, spread, and whether to believe them."""

import dataclasses
import math
import statistics

from tfmp.commands.benchmark import kernels

# A GPU that takes so much longer than others for the same kernels is not as it should be.
SLOW = 1.1

# Forward pass, gradients of the inputs and gradients of the weights cost about the same; a
# multiply-add is two operations.
OPERATIONS = 3 * 2


@dataclasses.dataclass(frozen=True)
class Case:
    """One point of what is compared.

    Attributes:
        policy: Name of the dtype policy.
        jit_compile: Whether XLA compiles the step; of the peer, torch.compile.
        batch_size: Examples a step, of all replicas.
        input: "device" or "host".
        loss_scale: "recipe" or "none".
        remat: Whether activations are computed once more instead of kept.
        replicas: Number of replicas.
        steps_per_execution: Training steps that one call from the host runs.
    """

    policy: str
    jit_compile: bool
    batch_size: int
    input: str
    loss_scale: str
    remat: bool = False
    replicas: int = 1
    steps_per_execution: int = 1

    @property
    def is_ours_alone(self):
        """Whether no peer does it."""
        return self.remat or self.replicas > 1 or self.steps_per_execution > 1

    def __str__(self):
        """In words, for the screen."""
        compiled = "compiled" if self.jit_compile else "not compiled"
        scale = "" if self.loss_scale == "recipe" else ", no loss scale"
        remat = ", remat" if self.remat else ""
        batch = f"batch {self.batch_size}"
        replicas = f", {self.replicas} replicas" if self.replicas > 1 else ""
        steps = f", {self.steps_per_execution} steps a call" if self.steps_per_execution > 1 else ""
        return f"{self.policy}, {compiled}, {batch}, {self.input}{scale}{remat}{replicas}{steps}"


def summarize(program, case, repeats, ours=None):
    """The row of a program in a case.

    Args:
        program: "tfmp" or "torch".
        case: A `Case`.
        repeats: List of what each child gave: the dict of `timing.measure` and more, or
            {"error": why there is none}.
        ours: What a child of tfmp gave in this case, for the model's work, the card's peak and
            the device; or None.

    Returns:
        A dict that JSON can write. `status` is "ok", "failed" (a child gave nothing) or "invalid"
        (it gave what can't be believed), and `reason` says why. Median, lowest and highest are
        those of the repeats, each taken at its median window.
    """
    row = {"program": program, **dataclasses.asdict(case)}
    measured = [repeat for repeat in repeats if "error" not in repeat]
    failed = [repeat["error"] for repeat in repeats if "error" in repeat]
    problems = [problem for repeat in measured for problem in repeat["problems"]]
    if measured:
        row |= _figures(case, measured, ours or {})
        if (row["share_of_peak"] or 0) > 1:
            problems.append(f"{row['tflops']:.0f} TFLOP/s are more than the card can do")
        if ours and not _same_device(measured[0]["device"], ours["device"]):
            problems.append(f"it ran on {measured[0]['device']}, tfmp on {ours['device']['name']}")
    reasons = list(dict.fromkeys(failed + problems))
    row["status"] = "failed" if failed else "invalid" if problems else "ok"
    row["reason"] = "; ".join(reasons) or None
    row["repeats"] = repeats
    return row


def _same_device(one, other):
    """CPUs are named differently by different programs."""
    return one["kind"] == other["kind"] and (one["kind"] == "cpu" or one["name"] == other["name"])


def _figures(case, measured, ours):
    step_s = [statistics.median(repeat["window_s"]) / repeat["steps"] for repeat in measured]
    images = _spread([case.batch_size / seconds for seconds in step_s])
    watts = _median(repeat.get("watts") for repeat in measured)
    memory = [repeat["peak_memory_bytes"] for repeat in measured if repeat["peak_memory_bytes"]]
    adds, peak = ours.get("multiply_adds"), ours.get("peak_tflops")
    peak = peak and peak * measured[0].get("cards", 1)
    tflops = OPERATIONS * adds * images["median"] / 1e12 if adds else None
    # The peer's are the same, and it doesn't say so.
    known = {name: measured[0].get(name) or ours.get(name) for name in ("example", "tokens")}
    return {
        **known,
        "images_per_second": images,
        "tokens_per_second": known["tokens"] and images["median"] * known["tokens"],
        "ms_per_step": _spread([1e3 * seconds for seconds in step_s]),
        "first_step_s": [repeat["first_step_s"] for repeat in measured],
        "to_first_step_s": [repeat["to_first_step_s"] for repeat in measured],
        "peak_memory_bytes": max(memory) if memory else None,
        "cpu_cores": _cpu_cores(measured),
        "cards": measured[0].get("cards", 1),
        "profile": next((repeat["profile"] for repeat in measured if repeat.get("profile")), None),
        "all_reduce_ms": _median(repeat.get("all_reduce_ms") for repeat in measured),
        "watts": watts,
        "joules_per_image": watts / images["median"] if watts else None,
        "tflops": tflops,
        "peak_tflops": peak,
        "share_of_peak": tflops / peak if tflops and peak else None,
    }


def _cpu_cores(measured):
    """Cores that the process kept busy in its windows; None where that is not known."""
    busy = [second for repeat in measured for second in repeat.get("cpu_s") or []]
    return sum(busy) / sum(sum(repeat["window_s"]) for repeat in measured) if busy else None


def _median(values):
    known = [value for value in values if value]
    return statistics.median(known) if known else None


def _spread(values):
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "n": len(values),
    }


def relate(rows):
    """Adds to rows what they are next to one another.

    `loss_scale_overhead`: the share of a step's time that the loss scale adds, next to the row
    without. `remat_speed` and `remat_memory`: images/s and peak memory as multiples of the row that
    keeps its activations. `to_peer`: images/s as a multiple of torch's. `weak_efficiency`,
    `strong_efficiency`: images/s of each card as a share of the row of one replica that has the
    same batch a replica, or the same whole batch.

    Args:
        rows: List of what `summarize` returns; changed.
    """
    known = {key(row): row for row in rows if row["status"] == "ok"}
    for row in known.values():
        bare = known.get(key(row | {"loss_scale": "none"}))
        if bare and bare is not row:
            ratio = row["ms_per_step"]["median"] / bare["ms_per_step"]["median"]
            row["loss_scale_overhead"] = ratio - 1
        kept = known.get(key(row | {"remat": False}))
        if kept and kept is not row:
            row["remat_speed"] = speed(row) / speed(kept)
            if row["peak_memory_bytes"] and kept["peak_memory_bytes"]:
                row["remat_memory"] = row["peak_memory_bytes"] / kept["peak_memory_bytes"]
        if row["replicas"] > 1:
            for name, size in (
                ("weak_efficiency", row["batch_size"] // row["replicas"]),
                ("strong_efficiency", row["batch_size"]),
            ):
                if alone := known.get(key(row | {"replicas": 1, "batch_size": size})):
                    row[name] = speed(row) / row["cards"] / speed(alone)
        peer = known.get(key(row | {"program": "torch"}))
        if peer and peer is not row:
            row["to_peer"] = speed(row) / speed(peer)


def key(row):
    """What a row is about: a tuple; what a former version's row lacks is what it was then."""
    fields = dataclasses.fields(Case)
    return (row["program"], *(row.get(field.name, field.default) for field in fields))


def speed(row):
    """Median images/s of a row; NaN where it has none."""
    return row.get("images_per_second", {}).get("median") or math.nan


def speed_in_words(row):
    """Examples/s of a row, and tokens/s where it has some."""
    tokens = row.get("tokens_per_second")
    more = f", {tokens:,.0f} tokens/s" if tokens else ""
    return f"{speed(row):,.0f} {row.get('example') or 'image'}s/s{more}"


def table(rows):
    """Rows as lines of text, columns aligned, and below them why some are not good."""
    lines = [list(_columns(row)) for row in rows]
    text = _aligned([[name for name, _ in lines[0]], *([c for _, c in line] for line in lines)])
    text += [
        f"{row['status']}: {row['program']}, {Case(*key(row)[1:])}: {row['reason']}"
        for row in rows
        if row["status"] != "ok"
    ]
    return "\n".join(text)


def profile(gpus):
    """A profile as text: each GPU's times by kind, and the first one's longest kernels."""
    spans = {"span": "span_ms", "busy": "busy_ms"}
    spans |= {"short gaps": "short_gaps_ms", "long gaps": "long_gaps_ms"}
    lines = [["ms a step", *spans, *gpus[0]["kinds_ms"], "from the host", "kernels"]]
    for gpu in gpus:
        copies = ", ".join(f"{ms:.2f} {kind}" for kind, ms in gpu["from_host_ms"].items())
        times = [*(gpu[name] for name in spans.values()), *gpu["kinds_ms"].values()]
        cells = [f"{ms:.2f}" for ms in times]
        lines.append([f"GPU {gpu['gpu']}", *cells, copies or "-", f"{gpu['kernels']:.0f}"])
    longest = [f"{ms:8.3f} ms in {n:4.4g}: {name}" for name, ms, n in gpus[0]["longest"]]
    return "\n".join([*_aligned(lines), *_slow(gpus), *longest])


def _slow(gpus):
    """A line for each GPU for which the others wait: its own work takes longer than theirs."""
    own = [sum(ms for kind, ms in x["kinds_ms"].items() if kind != kernels.SUMS) for x in gpus]
    usual = statistics.median_low(own)
    for gpu, ms in zip(gpus, own, strict=True):
        if ms > SLOW * usual:
            yield (
                f"GPU {gpu['gpu']} takes {ms / usual:.2f} times as long as the others for the same "
                "kernels, and they wait for it: `nvidia-smi -q -d PERFORMANCE,TEMPERATURE` may say "
                "why."
            )


def _aligned(lines):
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _columns(row):
    images, times = row.get("images_per_second", {}), row.get("first_step_s") or [None]
    yield "status", row["status"]
    yield "program", row["program"]
    yield "policy", row["policy"]
    yield "compiled", "yes" if row["jit_compile"] else "no"
    yield "batch", str(row["batch_size"])
    yield "input", row["input"]
    yield "loss scale", row["loss_scale"]
    yield "remat", "yes" if row["remat"] else "no"
    cards = row.get("cards", 1)
    shared = "" if cards == row["replicas"] else f" on {cards}"
    yield "replicas", f"{row['replicas']}{shared}"
    example = row.get("example") or "image"
    yield "steps a call", str(row["steps_per_execution"])
    yield f"{example}s/s", _cell(images.get("median"), ",.0f")
    ends = [f"{images[name]:,.0f}" for name in ("lowest", "highest") if images]
    yield "lowest-highest", "-".join(ends) or "-"
    yield "tokens/s", _cell(row.get("tokens_per_second"), ",.0f")
    yield "n", str(images.get("n", 0))
    yield "ms/step", _cell(row.get("ms_per_step", {}).get("median"), ".2f")
    yield "first step s, each run", ", ".join(_cell(seconds, ".1f") for seconds in times)
    yield "peak GiB", _cell(row.get("peak_memory_bytes"), ".2f", 2.0**30)
    yield "CPU cores", _cell(row.get("cpu_cores"), ".1f")
    yield "W", _cell(row.get("watts"), ".0f")
    yield f"J/{example}", _cell(row.get("joules_per_image"), ".4f")
    yield "TFLOP/s", _cell(row.get("tflops"), ".3g")
    yield "of peak", _cell(row.get("share_of_peak"), ".1%")
    yield "scale costs", _cell(row.get("loss_scale_overhead"), "+.1%")
    yield "remat speed", _cell(row.get("remat_speed"), ".3f")
    yield "remat memory", _cell(row.get("remat_memory"), ".3f")
    yield "all-reduce ms", _cell(row.get("all_reduce_ms"), ".2f")
    yield "weak", _cell(row.get("weak_efficiency"), ".3f")
    yield "strong", _cell(row.get("strong_efficiency"), ".3f")
    yield "to torch", _cell(row.get("to_peer"), ".3f")


def _cell(value, form, unit=1):
    return "-" if value is None else format(value / unit, form)
