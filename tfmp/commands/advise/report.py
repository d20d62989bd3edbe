"""The advice as text: short lines under headings, the verdict last."""

import textwrap

from tfmp import hardware
from tfmp.commands.advise import predict, verdict
from tfmp.commands.benchmark import rows

MOST_LAYERS = 6
SPELLED = {"tf32": "TF32", "float8": "FP8 (which Keras does not train in)"}


def section(title, lines):
    """Prints a heading and lines, wrapped."""
    print(f"\n{title}", flush=True)
    for line in lines:
        print(textwrap.fill(line, 98, initial_indent="  ", subsequent_indent="    "))


def device_lines(device):
    """What the device is good at."""
    kind = {"gpu": "GPU", "cpu": "CPU", "tpu": "TPU"}[device.kind]
    memory = f", {device.memory_bytes / 2**30:.1f} GiB of memory" if device.memory_bytes else ""
    capability = ""
    if device.compute_capability:
        capability = " of compute capability {}.{}".format(*device.compute_capability)
    yield f"{device.name}: a {kind}{capability}{memory}"
    types = hardware.tensor_core_types(device)
    if types:
        yield f"tensor cores for {_and([SPELLED.get(name, name) for name in types])}"
    elif device.kind == "gpu" and not device.compute_capability:
        yield "whether it has tensor cores is unknown"
    elif device.kind != "tpu":
        yield "no tensor cores, which are what computes half precision fast"
    peaks = [
        f"{peak:g} TFLOP/s in {SPELLED.get(name, name)}"
        for name in ("float16", "tf32", "float32")
        if (peak := hardware.peak_tflops(device.name, name))
    ]
    bandwidth = hardware.bandwidth_tbs(device.name)
    if peaks:
        yield f"by its datasheet {', '.join(peaks)}" + (
            f"; {bandwidth:g} TB/s of memory" if bandwidth else ""
        )


def policy_lines(facts):
    """The policy that the device is made for, or that was asked for, and why."""
    policy = facts["policy"]
    yield f"{policy['name']}: {policy['reason']}"
    if facts["compared"] != policy["name"]:
        yield f"compared with {facts['compared']}, to see what that would gain"


def model_lines(facts, device):
    """The model, and its sizes that tensor cores dislike."""
    work, settings = facts["work"], facts["settings"]
    pixels = f", {settings['image_size']} px" if settings["image_size"] else ""
    adds = work["multiply_adds"]
    name = settings["model"] or settings["target"]
    yield (
        f"{name}{pixels}: {adds / 1e9:.3g} G multiply-adds an example, "
        f"{work['parameters'] / 1e6:.3g} M parameters"
    )
    if work["uncounted"]:
        yield f"not counted in that: the work of {', '.join(work['uncounted'])}"
    half = predict.HALF[facts["compared"]]
    if half and half in work["output_dtypes"]:
        yield f'its output is {half}: give the last layer dtype="float32"'
    if half and not any(call["dtype"] == half for call in work["calls"]):
        yield f"no layer computes in {half} under {facts['compared']}: its dtypes are its own"
    layers = _grouped(predict.misaligned(work))
    unit = "16 bytes: 8 half values, 4 of TF32"
    if not layers:
        yield f"all sizes suit tensor cores (multiples of {unit})"
    else:
        where = "" if hardware.tensor_core_types(device) else "; this device has none"
        yield f"sizes that tensor cores dislike (no multiples of {unit}{where}), most work first:"
        yield from map(_layer_line, layers[:MOST_LAYERS])
    if more := layers[MOST_LAYERS:]:
        yield f"- and {len(more)} more kinds: {sum(one['share'] for one in more):.1%} of the work"
    for size in predict.misaligned_batches(work, settings["batch_sizes"]):
        yield (
            f"- batch size {size}, a size of the dense layers' products: take "
            f"{predict.round_up(size, 8)}"
        )


def _grouped(layers):
    """Layers of one type and the same sizes as one: the shares added up, the others counted."""
    groups: dict[tuple, dict] = {}
    for layer in layers:
        key = layer["type"], *(tuple(size.values()) for size in layer["sizes"])
        group = groups.setdefault(key, layer | {"share": 0.0, "others": -1})
        group["share"] += layer["share"]
        group["others"] += 1
    return sorted(groups.values(), key=lambda group: -group["share"])


def _layer_line(layer):
    sizes = ", ".join(f"{x['of']} {x['size']} ({_remedy(x)})" for x in layer["sizes"])
    name = layer["name"] + (f" and {layer['others']} like it" if layer["others"] else "")
    return f"- {name} ({layer['type']}, {layer['share']:.1%} of the work): {sizes}"


def _remedy(size):
    if not size["fixed"]:
        return f"round up to {size['better']}"
    if size["of"] in ("filters", "units"):
        return f"the classes or targets: pad to {size['better']}, the new ones unused"
    return "the data's own: leave it"


def prediction_lines(predicted, compared):
    """The predicted gain, at each batch size."""
    if predicted["reason"]:
        yield f"none: {predicted['reason']}"
    for one in predicted["steps"]:
        bound = "memory traffic" if one["bytes_share"] > 0.5 else "arithmetic"
        yield (
            f"batch {one['batch_size']}: float32 {one['float32_ms']:.3g} ms a step, {compared} "
            f"{one['policy_ms']:.3g} ms, mostly {bound}: {one['gain']:.2f}x"
        )
    if predicted["steps"]:
        yield "by datasheet rates, so rather too fast than too slow"


def probe_line(row):
    """What was measured of a policy at a batch size."""
    if row["status"] == "failed":
        return f"failed: {row['reason']}"
    memory = row["peak_memory_bytes"]
    tokens = row.get("tokens_per_second")
    text = f"{rows.speed(row):,.0f} examples/s, "
    text += f"{tokens:,.0f} tokens/s, " if tokens else ""
    text += f"{row['ms_per_step']['median']:.3g} ms a step"
    text += f", peak {memory / 2**30:.2f} GiB" if memory else ""
    return text + (f" (doubtful: {row['reason']})" if row["reason"] else "")


def gain_lines(measured, compared):
    """The measured gain, at each batch size."""
    for one in verdict.gains(measured, compared):
        doubt = " (doubtful)" if one["doubt"] else ""
        yield f"batch {one['batch_size']}: {compared} has {one['gain']:.2f}x the speed{doubt}"


def advice_lines(found, largest):
    """The verdict and the batch size."""
    yield found["text"]
    if found["batch_size"]:
        xla = "with XLA" if found["jit_compile"] else "without XLA"
        yield f"Batch size {found['batch_size']}, {xla}: the fastest measured in {found['use']}."
    if largest is not None:
        yield f"Up to about {largest} would fit in 90 % of the memory, by the two peaks measured."


def _and(words):
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
