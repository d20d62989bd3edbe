"""What a report says of a training: results.json and metrics.csv."""

import math

from tfmp.report.blocks import Card, Cards, Lines, Note, Section, Series, Table
from tfmp.report.names import measure, within


def title(source):
    """What was trained, in a few words."""
    return f"{source.text('name')} on {source.text('data', 'name')}, {source.text('policy')}"


def summary(source, _):
    """The outcome in a sentence."""
    seconds = source.number("cost", "seconds", unit="seconds")
    outcome = [(within(name), " ", number) for name, number in _outcomes(source) if number][:1]
    parts = (
        f"Trained {source.text('name')} on {source.text('data', 'name')} in "
        f"{source.text('policy')}",
        *((" in ", seconds) if seconds else ()),
        ": ",
        *(outcome[0] if outcome else ("nothing but losses",)),
        " after ",
        source.count("epochs"),
        " epochs.",
    )
    return [Note(parts)]


def _outcomes(source, prefix="test_"):
    """(name, number) of each measure on the test examples; without any, on the validation examples.

    First what the run went by in choosing its best epoch. The loss is none of them.
    """
    final = source.branch("final")
    keys = [key for key in final if key.startswith(prefix) and key != f"{prefix}loss"]
    if not keys:
        return _outcomes(source, "val_") if prefix == "test_" else []
    chosen = {prefix + key.removeprefix("val_") for key in source.branch("best")}
    keys.sort(key=lambda key: key not in chosen)
    return [(measure(key).name, _final(source, key)) for key in keys]


def _final(source, key):
    return source.number("final", key, unit=measure(key).unit)


def headlines(source):
    """What is compared with other runs: (name, number) by a key that only the same has."""
    data = source.text("data", "name")
    keys = [key for key in source.branch("final") if key.startswith(("test_", "val_"))]
    keys.sort(key=lambda key: (key.startswith("val_"), key.endswith("_loss")))
    found: dict = {
        ("final", key, data, str(source.at("data", "sizes"))): (
            measure(key).name,
            _final(source, key),
        )
        for key in keys
    }
    for place, (name, unit) in (AMOUNTS | SPEEDS).items():
        found[place] = name, source.number(*place, unit=unit)
    return found


# Of the cost card.
AMOUNTS = {
    ("cost", "seconds_per_epoch"): ("Training steps of an epoch", "seconds"),
    ("cost", "joules_per_epoch"): ("Energy of an epoch's steps", "joules"),
    ("cost", "seconds"): ("Training, all of it", "seconds"),
    ("cost", "joules"): ("Energy, all of it", "joules"),
    ("cost", "device_hours"): ("Device hours", "hours"),
    ("cost", "price"): ("Price of training", "price"),
}
SPEEDS = {
    ("examples_per_second",): ("Speed of training", "examples/s"),
    ("peak_memory_bytes",): ("Peak memory", "bytes"),
    ("loss_scale", "skipped_steps"): ("Skipped steps", "count"),
}


def sections(source, others):
    """All of it.

    Args:
        source: The `Source` of results.json.
        others: The subject's sources by kind; "curves" among them.
    """
    curves = others.get("curves")
    parts = [Section("Cost card", tuple(_cost(source)))]
    if curves:
        parts.insert(0, Section("Training curves", tuple(_curves(curves))))
        parts.insert(1, Section("Loss scale", tuple(_loss_scale(source, curves))))
    parts.append(Section("Settings in force", (_in_force(source),)))
    return [Section("Training", (_cards(source),), tuple(parts))]


def _cards(source):
    skipped = source.count("loss_scale", "skipped_steps")
    memory = source.number("peak_memory_bytes", unit="bytes")
    best = [key for key in source.branch("best") if key.startswith("val_")]
    cards = [
        *(Card(name, number) for name, number in _outcomes(source) if number),
        *(
            Card(
                f"Best {within(measure(key).name)}",
                source.number("best", key, unit=measure(key).unit),
                ("in epoch ", source.count("best", "epoch")),
            )
            for key in best
        ),
        Card(
            "Training took",
            source.number("cost", "seconds", unit="seconds"),
            (source.number("seconds", "compile", unit="seconds"), " to the first step"),
        ),
        Card(
            "Speed",
            source.number("examples_per_second", unit="examples/s"),
            "compile time apart",
        ),
        Card("Peak memory", memory, "" if memory else "not measured on this device"),
        Card("Skipped steps", skipped, ("of ", source.count("steps"))),
        *(
            Card(f"Skipped steps of the {name}", source.count("loss_scale", name, "skipped_steps"))
            for name, further in source.branch("loss_scale").items()
            if isinstance(further, dict)
        ),
    ]
    return Cards(tuple(card for card in cards if card))


def _in_force(source):
    rows = {
        "Policy": f"{source.text('policy')} ({source.text('policy_reason')})",
        "Layers by what they compute in": ", ".join(
            f"{number} in {dtype}" for dtype, number in source.branch("compute_dtypes").items()
        )
        or None,
        "XLA": source.text("jit_compile"),
        "Fused layers": source.text("fused_layers"),
        "TensorFloat-32": source.text("tf32"),
        "Deterministic": source.text("deterministic"),
        "Replicas": source.text("replicas"),
        "Device": f"{source.text('device', 'name')} ({source.text('device', 'kind')})",
        "Model": source.text("model", "name"),
        "Seed": source.text("seed"),
    }
    return Table("As the run took them", ("Setting", "Value"), tuple(rows.items()))


def _curves(log):
    epochs = tuple(_epoch(row, index) for index, row in enumerate(log.content))
    known = log.content[0] if log.content else {}
    validated = [key.removeprefix("val_") for key in known if key.startswith("val_")]
    losses = [key for key in known if key.endswith("_loss") and not key.startswith("val_")]
    scales = tuple(key for key in known if key.endswith("loss_scale"))
    curves: dict[str, tuple[str, ...]] = {
        **{measure(key).name: (key, f"val_{key}") for key in validated if key != "loss"},
        "Loss": ("loss", "val_loss"),
        **{measure(key).name: (key,) for key in losses},
        "Learning rate": ("learning_rate",),
        "Loss scale": scales,
    }
    for name, keys in curves.items():
        series = [
            Series(
                _label(key),
                tuple(log.number(i, key, unit=measure(key).unit) for i in range(len(epochs))),
            )
            for key in keys
        ]
        series = [one for one in series if any(one.values)]
        # A scale that never moves is said in words.
        moves = any(len({x and x.value for x in one.values}) > 1 for one in series)
        if series and (moves or name != "Loss scale"):
            yield Lines(name, "epoch", epochs, tuple(series), log=name == "Loss scale")


def _label(key):
    """What a curve is of: a part of the data, or an optimizer where there are several."""
    if key.endswith("_loss_scale"):
        return key.removesuffix("_loss_scale")
    return "validation" if key.startswith("val_") else "training"


def _epoch(row, index):
    """The number of a row's epoch, from 1; of a damaged row that of the row."""
    epoch = row.get("epoch", index)
    return (epoch if math.isfinite(epoch) else index) + 1


def _loss_scale(source, log):
    """The epochs in which it moved or steps were skipped, of each optimizer."""
    known = log.content[0] if log.content else {}
    for scale in [key for key in known if key.endswith("loss_scale")] or ["loss_scale"]:
        yield _one_loss_scale(source, log, scale.removesuffix("loss_scale"))


def _one_loss_scale(source, log, prefix):
    """The block of the optimizer whose columns begin with `prefix`; of a single one "" does."""
    scale, skipped = f"{prefix}loss_scale", f"{prefix}skipped_steps"
    rows, before = [], {scale: source.at("loss_scale", "initial"), skipped: 0}
    for index, row in enumerate(log.content):
        now = {key: row.get(key) for key in before}
        if None not in now.values() and now != before:
            numbers = [log.count(index, key) for key in before]
            rows.append((f"{_epoch(row, index):.0f}", *numbers))
            before = now
    whose = f" of the {prefix.strip('_')}" if prefix else ""
    if rows:
        columns = ("Epoch", "Loss scale at its end", "Skipped steps so far")
        title = f"Epochs in which the loss scale{whose} moved"
        return Table(title, columns, tuple(rows), shown=20)
    if source.at("loss_scale", "initial") == 1.0:
        return Note(f"No loss scale{whose} was in force.")
    final = (
        log.count(len(log.content) - 1, scale) if prefix else source.count("loss_scale", "final")
    )
    return Note((f"The loss scale{whose} stayed at ", final, ", and no step was skipped."))


def _cost(source):
    if not source.branch("cost"):
        yield Note("This file has no cost card: it was written by an earlier version.")
        return
    rows = [(name, source.number(*place, unit=unit)) for place, (name, unit) in AMOUNTS.items()]
    price = source.number("cost", "price_per_hour", unit="price")
    rows.insert(5, ("Price of a device for an hour", price or "none: no --price_per_hour"))
    for place, words in {"joules": "in energy", "device_time": "in device time"}.items():
        even = source.count("cost", "break_even_inferences", place)
        rows.append((f"Predictions after which training was the smaller share, {words}", even))
    yield Table("What training took", ("What", "Amount"), tuple(rows))
    predictions = [
        (
            (name, " (", source.count(*place, "batch_size"), ")"),
            source.number(*place, "examples_per_second", unit="examples/s"),
            source.number(*place, "joules_per_example", unit="joules"),
            source.number(*place, "price_per_million", unit="price"),
        )
        for name, place in {
            "Batch of one": ("cost", "inference", "batch_1"),
            "Best batch": ("cost", "inference", "best"),
        }.items()
        if source.branch(*place)
    ]
    if predictions:
        columns = ("Predictions", "Speed", "Energy of one", "Price of a million")
        yield Table("What predictions take", columns, tuple(predictions))
    if missing := source.at("cost", "joules_missing"):
        yield Note(f"Energy was not measured: {missing}.")
    if missing := source.at("cost", "inference_missing"):
        yield Note(f"Predictions were not all measured: {missing}.")
