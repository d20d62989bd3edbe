"""What a report says of a benchmark's file."""

from tfmp.report.blocks import Chip, Note, Section, Table

COLUMNS = {
    "Images/s, median": (("images_per_second", "median"), "images/s"),
    "lowest": (("images_per_second", "lowest"), "images/s"),
    "highest": (("images_per_second", "highest"), "images/s"),
    "n": (("images_per_second", "n"), "count"),
    "A step": (("ms_per_step", "median"), "ms"),
    "Peak memory": (("peak_memory_bytes",), "bytes"),
    "CPU cores": (("cpu_cores",), "number"),
    "Power": (("watts",), "watts"),
    "Energy of an image": (("joules_per_image",), "joules"),
    "TFLOP/s": (("tflops",), "number"),
    "Of the peak": (("share_of_peak",), "share"),
    "Loss scale adds": (("loss_scale_overhead",), "share"),
    "Speed with remat": (("remat_speed",), "ratio"),
    "Memory with remat": (("remat_memory",), "ratio"),
    "All-reduce": (("all_reduce_ms",), "ms"),
    "Weak efficiency": (("weak_efficiency",), "share"),
    "Strong efficiency": (("strong_efficiency",), "share"),
    "To PyTorch's": (("to_peer",), "ratio"),
}

# What all rows of a file have in common.
WORK = ("recipe", "model", "image_size", "dataset")


def title(source):
    """What was measured, in a few words."""
    device = source.text("environment", "device", "name")
    return f"Benchmark of {source.text('config', 'model')} on {device}"


def summary(source, _):
    """The fastest row in a sentence, and how many are not good."""
    rows = source.items("rows")
    good = [i for i, row in enumerate(rows) if row.get("status") == "ok" and _speed(source, i)]
    found = []
    if good:
        best = max(good, key=lambda index: _speed(source, index).value)
        found.append(Note(("The fastest is ", _speed(source, best), f": {_name(rows[best])}.")))
    if any(row.get("status") != "ok" for row in rows):
        found.append(Note("Some rows failed or are invalid.", "bad"))
    return found


def headlines(source):
    """What is compared with other benchmarks: (name, number) by a key that only the same has."""
    work = tuple(source.text("config", name) for name in WORK)
    return {
        ("benchmark", *work, _name(row)): (
            _name(row),
            _speed(source, index),
        )
        for index, row in enumerate(source.items("rows"))
        if row.get("status") == "ok"
    }


def sections(source, _):
    """All of it; columns that no row has are left out."""
    rows, present = source.items("rows"), []
    for name, (place, unit) in COLUMNS.items():
        column = [source.number("rows", i, *place, unit=unit) for i in range(len(rows))]
        if any(column):
            present.append((name, column))
    table = tuple(
        (
            _name(row),
            Chip(str(row.get("status")), "good" if row.get("status") == "ok" else "bad"),
            *(column[index] or "" for _, column in present),
        )
        for index, row in enumerate(rows)
    )
    heads = ("Work", "Status", *(name for name, _ in present))
    notes = [Note(f"{_name(row)}: {row['reason']}", "bad") for row in rows if row.get("reason")]
    return [Section("Speed of training steps", (*notes, Table("Rows", heads, table)))]


def _speed(source, index):
    return source.number("rows", index, "images_per_second", "median", unit="images/s")


def _name(row):
    compiled = "compiled" if row.get("jit_compile") else "not compiled"
    scale = "" if row.get("loss_scale") == "recipe" else ", no loss scale"
    remat = ", remat" if row.get("remat") else ""
    count, cards = row.get("replicas", 1), row.get("cards", 1)
    replicas = f", {count} replicas" if count > 1 else ""
    replicas += f" on {cards}" if cards < count else ""
    parts = f"{row.get('policy')}, {compiled}, batch {row.get('batch_size')}, {row.get('input')}"
    steps = row.get("steps_per_execution", 1)
    steps = f", {steps} steps a call" if steps > 1 else ""
    return f"{row.get('program')}: {parts}{scale}{remat}{replicas}{steps}"
