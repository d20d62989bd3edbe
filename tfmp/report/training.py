"""What a report says of a training: results.json and metrics.csv."""

import math

from tfmp.report.blocks import Card, Cards, Lines, Note, Section, Series, Table
from tfmp.report.names import measure

CURVES = {
    "Accuracy": ("accuracy", "val_accuracy"),
    "Loss": ("loss", "val_loss"),
    "Learning rate": ("learning_rate",),
    "Loss scale": ("loss_scale",),
}


def title(source):
    """What was trained, in a few words."""
    return f"{source.text('name')} on {source.text('data', 'name')}, {source.text('policy')}"


def summary(source, _):
    """The outcome in a sentence."""
    final, seconds = source.branch("final"), source.number("cost", "seconds", unit="seconds")
    name = next((x for x in ("test_accuracy", "val_accuracy") if x in final), None)
    parts = (
        f"Trained {source.text('name')} on {source.text('data', 'name')} in "
        f"{source.text('policy')}",
        *((" in ", seconds) if seconds else ()),
        ": ",
        *(
            (measure(name).name.lower(), " ", source.share("final", name))
            if name
            else ("without an accuracy",)
        ),
        " after ",
        source.count("epochs"),
        " epochs.",
    )
    return [Note(parts)]


def headlines(source):
    """What is compared with other runs: (name, number) by a key that only the same has."""
    data = source.text("data", "name")
    found: dict = {}
    for key in ("test_accuracy", "test_loss", "val_accuracy", "val_loss"):
        shown = measure(key)
        found["final", key, data, str(source.at("data", "sizes"))] = (
            shown.name,
            source.number("final", key, unit=shown.unit),
        )
    for place, (name, unit) in (AMOUNTS | SPEEDS).items():
        found[place] = name, source.number(*place, unit=unit)
    return found


# Of the cost card.
AMOUNTS = {
    ("cost", "seconds_per_epoch"): ("Training steps of an epoch", "seconds"),
    ("cost", "joules_per_epoch"): ("Energy of an epoch's steps", "joules"),
    ("cost", "seconds"): ("Training, to the final accuracy", "seconds"),
    ("cost", "joules"): ("Energy, to the final accuracy", "joules"),
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
    test = source.share("final", "test_accuracy")
    best = source.share("best", "val_accuracy")
    memory = source.number("peak_memory_bytes", unit="bytes")
    cards = [
        Card("Test accuracy", test) if test else None,
        Card(
            "Best validation accuracy",
            best,
            ("in epoch ", source.count("best", "epoch")),
        )
        if best
        else None,
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
    for name, keys in CURVES.items():
        series = [
            Series(
                "validation" if key.startswith("val_") else "training",
                tuple(log.number(i, key, unit=measure(key).unit) for i in range(len(epochs))),
            )
            for key in keys
        ]
        series = [one for one in series if any(one.values)]
        # A scale that never moves is said in words.
        moves = len({x and x.value for one in series for x in one.values}) > 1
        if series and (moves or name != "Loss scale"):
            yield Lines(name, "epoch", epochs, tuple(series), log=name == "Loss scale")


def _epoch(row, index):
    """The number of a row's epoch, from 1; of a damaged row that of the row."""
    epoch = row.get("epoch", index)
    return (epoch if math.isfinite(epoch) else index) + 1


def _loss_scale(source, log):
    """The epochs in which it moved or steps were skipped."""
    final = source.count("loss_scale", "final")
    rows, before = [], {"loss_scale": source.at("loss_scale", "initial"), "skipped_steps": 0}
    for index, row in enumerate(log.content):
        now = {key: row.get(key) for key in before}
        if None not in now.values() and now != before:
            numbers = [log.count(index, key) for key in before]
            rows.append((f"{_epoch(row, index):.0f}", *numbers))
            before = now
    if rows:
        columns = ("Epoch", "Loss scale at its end", "Skipped steps so far")
        yield Table("Epochs in which the loss scale moved", columns, tuple(rows), shown=20)
    elif source.at("loss_scale", "initial") == 1.0:
        yield Note("No loss scale was in force.")
    else:
        yield Note(("The loss scale stayed at ", final, ", and no step was skipped."))


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
