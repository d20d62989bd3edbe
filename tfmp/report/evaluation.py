"""What a report says of an evaluation: evaluation.json."""

import re

from tfmp.report import confusions
from tfmp.report.blocks import Card, Cards, Chip, Note, Reliability, Section, Strip, Table
from tfmp.report.names import measure
from tfmp.report.numbers import between

# Of more classes the worst are shown first.
MOST_ROWS = 30
CALIBRATION = ("nll", "brier", "ece", "adaptive_ece")


def title(source):
    """What was evaluated, in a few words."""
    data, policy = ", ".join(source.branch("accuracy")), source.text("made_with", "policy")
    return f"{source.text('made_with', 'model').rstrip('/').rpartition('/')[2]} on {data}, {policy}"


def summary(source, _):
    """The outcome of each data set in a sentence, and what spoils it."""
    found = []
    for data in source.branch("accuracy"):
        worst = source.at("worst_class", data, "name")
        parts = (
            "Of ",
            source.count("examples", data),
            f" images of {data} ",
            source.share("accuracy", data),
            " are classified right",
            *_in_brackets(interval(source, "accuracy", data)),
            *(
                (
                    f"; of the class {worst}, the worst, ",
                    source.share("worst_class", data, "accuracy"),
                )
                if worst is not None
                else ()
            ),
            ".",
        )
        found += [*alerts(source, data), Note(parts)]
    return found


def alerts(source, data):
    """What must be seen first: logits that are not finite, under any policy."""
    counts = {"": source.count("non_finite", data)}
    own = source.at("made_with", "policy")
    for policy in source.branch("policies"):
        if policy != own:
            place = ("policies", policy, "non_finite", data)
            counts[f" under {policy}"] = source.count(*place)
    return [
        Note(
            (
                "Logits are not finite",
                f"{where} for ",
                count,
                f" images of {data}: they count as wrong, and what averages probabilities is "
                "unknown.",
            ),
            "bad",
        )
        for where, count in counts.items()
        if count and count.value
    ]


def headlines(source):
    """What is compared with other runs: (name, number) by a key that only the same has."""
    found = {}
    for metric, data in _metrics(source):
        if metric == "examples":
            continue
        examples = source.at("examples", data)
        shown = measure(metric)
        number = source.number(metric, data, unit=shown.unit)
        found[metric, data, examples] = f"{shown.name}, {data}", number
    return found


def sections(source, _):
    """All of it, by data set."""
    found = []
    for data in source.branch("accuracy"):
        parts = [
            Section("Calibration", tuple(_calibration(source, data))),
            Section("Classes and groups", tuple(_parts(source, data))),
            Section("Confusions", tuple(confusions.blocks(source, data))),
            Section("The same weights under other policies", tuple(_policies(source, data))),
        ]
        kept = tuple(part for part in parts if part.blocks)
        blocks = (*alerts(source, data), _cards(source, data), _table(source, data))
        found.append(Section(f"Evaluation on {data}", blocks, kept))
    return found


def interval(source, *place, unit="share"):
    """A 95 % interval; None where there is none."""
    return between(*(source.number("intervals", *place, end, unit=unit) for end in (0, 1)))


def _in_brackets(ends):
    return (" (95 % interval ", *ends, ")") if ends else ()


def _metrics(source):
    """(metric, data set) of whatever is a number there, known or not."""
    for metric in source.content:
        for data in source.branch(metric):
            single = source.number(metric, data) is not None or source.at(metric, data) is None
            if single and not metric.endswith(("_if_calibrated", "_missing")):
                yield metric, data


def _cards(source, data):
    cards = []
    for metric in ("accuracy", "top5_accuracy", "ece", "nll"):
        if metric in source.content:
            shown = measure(metric)
            ends = interval(source, metric, data, unit=shown.unit)
            number = source.number(metric, data, unit=shown.unit)
            cards.append(Card(shown.name, number, ends or ""))
    for kind in ("class", "group"):
        place = (f"worst_{kind}", data)
        if source.branch(*place):
            worst = source.share(*place, "accuracy")
            images = source.count(*place, "examples")
            note = (f"{source.text(*place, 'name')}, ", images, " images")
            cards.append(Card(f"Worst {kind}", worst, note))
    return Cards(tuple(cards))


def _table(source, data):
    rows = []
    for metric, of in _metrics(source):
        if of == data:
            shown = measure(metric)
            ends = interval(source, metric, data, unit=shown.unit)
            number = source.number(metric, data, unit=shown.unit)
            rows.append((shown.name, number, ends or "", shown.text))
    return Table("All measures", ("Measure", "Value", "95 % interval", "Meaning"), tuple(rows))


def _calibration(source, data):
    if bins := _bins(source, data):
        yield Reliability("Accuracy over confidence", bins)
    scaled = source.branch("temperature_scaled")
    rows = []
    for metric in CALIBRATION:
        unit = measure(metric).unit
        by_chance = source.number(f"{metric}_if_calibrated", data, unit=unit)
        row: tuple = (
            measure(metric).name,
            source.number(metric, data, unit=unit),
            interval(source, metric, data, unit=unit) or "none",
            by_chance or "",
        )
        if scaled:
            row += (source.number("temperature_scaled", metric, data, unit=unit),)
        rows.append(row)
    columns = ("Measure", "Value", "95 % interval", "If calibrated")
    yield Table(
        "How far confidence is from accuracy",
        (*columns, "With temperature") if scaled else columns,
        tuple(rows),
    )
    if why := source.at("temperature_missing", data):
        yield Note(f"There is no temperature: {why}")
    elif temperature := source.number("temperature", data, unit="decimal"):
        yield Note(("The temperature, fitted on the validation images, is ", temperature, "."))


def _bins(source, data):
    """Tuples of edges, examples, confidence and accuracy; () where the file has none."""
    place = ("reliability", data)
    return tuple(
        (
            source.share(*place, "edges", index),
            source.share(*place, "edges", index + 1),
            source.count(*place, "examples", index),
            source.share(*place, "confidence", index),
            source.share(*place, "accuracy", index),
        )
        for index in range(len(source.items(*place, "examples")))
    )


def _parts(source, data):
    """Accuracy of each class, group, or whatever else the test set was divided by."""
    for metric in source.content:
        matched = re.fullmatch(r"per_(\w+)_accuracy", metric)
        found = source.branch(metric, data)
        if not matched or not found:
            continue
        kind = matched[1]
        names = list(found)
        if len(names) > MOST_ROWS:
            names.sort(key=lambda name: found[name] if found[name] is not None else 2.0)
        ends = [source.items("intervals", metric, data, name) or (found[name],) for name in names]
        lowest = min((x for end in ends for x in end if isinstance(x, float)), default=0.0)
        rows = tuple(_part(source, metric, data, name, lowest) for name in names)
        order = ", the worst first" if len(names) > MOST_ROWS else ""
        columns = (kind.capitalize(), "Accuracy", "", "95 % interval")
        yield Table(f"Accuracy by {kind}{order}", columns, rows, shown=MOST_ROWS)


def _part(source, metric, data, name, lowest):
    accuracy = source.share(metric, data, name)
    ends = interval(source, metric, data, name)
    if accuracy is None or ends is None:
        return name, accuracy or "no images", "", "none"
    strip = Strip(ends[0].value, accuracy.value, ends[-1].value, (lowest, 1.0))
    return name, accuracy, strip, ends


def _policies(source, data):
    found = source.branch("policies")
    if len(found) < 2:
        return
    rows = []
    for policy in sorted(found, key=lambda x: any(y.startswith("against_") for y in found[x])):
        place = ("policies", policy)
        against = next((x for x in found[policy] if x.startswith("against_")), None)
        row = [
            source.number(*place, metric, data, unit=measure(metric).unit)
            for metric in ("accuracy", "ece", "non_finite")
        ]
        if against is None:
            rows.append(((policy, " ", Chip("reference")), *row, "", "", "", "", ""))
            continue
        at = (*place, against, data)
        rows.append(
            (
                policy,
                *row,
                *(source.count(*at, key) for key in ("flips", "became_wrong", "became_right")),
                source.number(*at, "largest_logit_difference"),
                source.share(*at, "relative_logit_difference"),
            )
        )
    columns = ("Policy", "Accuracy", "Calibration error", "Not finite", "Flips", "Became wrong")
    moved = ("Became right", "Largest logit difference", "Of their spread")
    yield Table("Predictions against the reference's", (*columns, *moved), tuple(rows))
