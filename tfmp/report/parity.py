"""What a report says of a comparison of two kinds of runs: parity.json."""

from tfmp.report.blocks import Card, Cards, Chip, Note, Section, Strip, Table
from tfmp.report.leaves import leaves
from tfmp.report.names import measure
from tfmp.report.numbers import AMOUNTS, between, difference

TONES = {"equivalent": "good", "different": "bad", "open": "warn", "not enough runs": "warn"}
ANSWERS = {
    "equivalent": "trains models as good as",
    "different": "trains models that differ from those of",
}
MOST_TESTS = 25
COSTS = {
    "training_seconds": ("Training", "seconds"),
    "seconds_to_target": ("Training steps to the target accuracy", "seconds"),
    "examples_per_second": ("Speed", "examples/s"),
    "peak_memory_bytes": ("Peak memory", "bytes"),
    "joules": ("Energy", "joules"),
    "final_loss_scale": ("Loss scale at the end", "count"),
    "skipped_steps": ("Skipped steps", "count"),
}
KNOWN = {"kinds", "verdict", "reason", "alpha", "runs", "examples", "tests", "also", "paired"}
KNOWN |= {"flips", "non_finite", "costs", "made_with"}


def title(source):
    """What was compared, in a few words."""
    one, other = kinds(source)
    return f"{other} against {one} on {source.text('made_with', 'runs', 0, 0, 'data', 'name')}"


def kinds(source):
    """Names of the reference's kind and the other's."""
    return source.text("kinds", 0), source.text("kinds", 1)


def summary(source, _):
    """The verdict in a sentence, with its reason, and how little could have been seen."""
    one, other = kinds(source)
    verdict, reason = source.text("verdict"), source.text("reason")
    if answer := ANSWERS.get(verdict):
        said = f" {other} {answer} {one}: {reason}."
    else:
        said = f" Whether {other} {ANSWERS['equivalent']} {one} stays open: {reason}."
    chip = Chip(verdict, TONES.get(verdict, "plain"))
    return [Note((chip, said)), *_visible(source), *alerts(source)]


def _visible(source):
    index = _first(source, "accuracy")
    if index is None:
        return []
    runs = [source.count("runs", kind) for kind in (0, 1)]
    return [
        Note(
            (
                "The smallest difference of accuracy that ",
                runs[0],
                " and ",
                runs[1],
                " runs could have seen, in four of five such comparisons, is ",
                source.number("tests", index, "smallest_visible", unit="distance"),
                ".",
            )
        )
    ]


def alerts(source):
    """Logits that are not finite."""
    found = []
    for index, name in enumerate(kinds(source)):
        for run, _ in enumerate(source.items("non_finite", index)):
            count = source.count("non_finite", index, run)
            if count and count.value:
                text = ("Logits are not finite for ", count, f" images in run {run} of {name}.")
                found.append(Note(text, "bad"))
    return found


def headlines(source):
    """What is compared with other comparisons: (name, number) by a key that only the same has."""
    found = {}
    data = source.text("made_with", "runs", 0, 0, "data", "name")
    for index, row in enumerate(source.items("tests")):
        if not row["metric"].endswith("_accuracy"):
            unit = difference(measure(row["metric"]).unit)
            number = source.number("tests", index, "difference", unit=unit)
            key = ("parity", row["metric"], row.get("name"), data)
            found[key] = f"Difference on {data}: {_name(row)}", number
    return found


def sections(source, _):
    """All of it."""
    rest = [key for key in source.content if key not in KNOWN]
    parts = [
        Section("Tests", tuple(_tests(source))),
        Section("Predictions that flip", (_flips(source),)),
        Section("What training took", tuple(_costs(source))),
        Section("The runs", tuple(_runs(source))),
        *(
            Section(measure(key).name, (Table("Numbers", ("What", "Value"), tuple(found)),))
            for key in rest
            if (found := list(leaves(source, key)))
        ),
    ]
    blocks = (*alerts(source), _cards(source))
    return [Section("Parity", blocks, tuple(parts))]


def _first(source, metric):
    """Index of the test of a metric of all images."""
    rows = enumerate(source.items("tests"))
    return next((i for i, x in rows if x.get("metric") == metric and not x.get("name")), None)


def _cards(source):
    cards = []
    for metric in ("accuracy", "ece"):
        index = _first(source, metric)
        if index is not None:
            shown, place = measure(metric), ("tests", index)
            means = [source.number(*place, "means", kind, unit=shown.unit) for kind in (0, 1)]
            one, other = kinds(source)
            cards += [
                Card(
                    f"{shown.name}: difference",
                    source.number(*place, "difference", unit="points"),
                    (means[1], f" with {other}, ", means[0], f" with {one}"),
                ),
            ]
    index = _first(source, "accuracy")
    if index is not None:
        visible = source.number("tests", index, "smallest_visible", unit="distance")
        cards.append(Card("Could have been seen", visible, "in four of five such comparisons"))
    flips = source.share("flips", "between_kinds")
    cards.append(Card("Predictions that flip", flips, "between two runs of different kinds"))
    return Cards(tuple(cards))


def _tests(source):
    one, other = kinds(source)
    columns = ("Test", "Verdict", "Difference", "", "95 % interval", "Margin", one, other)
    order = sorted(
        range(len(source.items("tests"))), key=lambda index: _rank(source.at("tests", index))
    )
    more = ("p equivalent", "p different", "p corrected", "Could be seen", "Runs that do")
    rows = tuple(_test(source, "tests", index) for index in order)
    yield Table("Differences, with 95 % intervals", (*columns, *more), rows, shown=MOST_TESTS)
    yield Note(
        (
            "Equivalent: two one-sided tests put the difference inside of its margin. Different: a "
            "test finds it, at ",
            source.number("alpha"),
            " for all tests together. Else open. The bands in the pictures are the margins.",
        )
    )
    if source.items("also"):
        rows = tuple(_test(source, "also", i) for i in range(len(source.items("also"))))
        yield Table("Also, without a test", (*columns[:1], *columns[2:5], *columns[6:]), rows)


def _rank(row):
    """Whole test sets first, then parts that are not settled, and what lost most."""
    verdicts = ("different", "open", "equivalent")
    verdict = row.get("verdict")
    rank = verdicts.index(verdict) if verdict in verdicts else len(verdicts)
    return (True, rank, row.get("difference") or 0.0) if row.get("name") else (False, 0, 0.0)


def _test(source, kind, index):
    row = source.at(kind, index)
    place, metric = (kind, index), row.get("metric", "unknown")
    unit = measure(metric).unit
    change, apart = difference(unit), "distance" if unit == "share" else unit
    ends = between(*(source.number(*place, "interval", end, unit=change) for end in (0, 1)))
    moved = source.number(*place, "difference", unit=change)
    means = [source.number(*place, "means", kind, unit=unit) for kind in (0, 1)]
    verdict = row.get("verdict")
    strip = _strip(source, kind, row, TONES.get(verdict, "plain"))
    if kind == "also":
        return _name(row), moved, strip, ends, *means
    kinds_of_p = ("p_equivalent", "p_different", "p_corrected")
    needed = source.count(*place, "runs_needed")
    few = "too few images" if verdict == "open" else ""
    return (
        _name(row),
        Chip(source.text(*place, "verdict"), TONES.get(verdict, "plain")),
        moved,
        strip,
        ends,
        source.number(*place, "margin", unit=apart),
        *means,
        *(source.number(*place, key, unit="p") for key in kinds_of_p),
        source.number(*place, "smallest_visible", unit=apart),
        needed or few,
    )


def _name(row):
    """A test in words."""
    metric, name = row["metric"], row.get("name")
    if name is None:
        return measure(metric).name
    part = metric.removesuffix("_accuracy")
    return f"{measure(metric).name}, {name}" if part == metric else f"Accuracy of {part} {name}"


def _strip(source, kind, row, tone):
    """On a scale that is common to the tests of one metric."""
    same = [x for x in source.items(kind) if x.get("metric") == row.get("metric")]
    ends = [[*x.get("interval", []), x.get("margin") or 0.0] for x in same]
    known = [abs(x) for end in ends for x in end if isinstance(x, (int, float))]
    interval, widest = row.get("interval") or [None], max(known, default=0.0)
    if None in interval or row.get("difference") is None or not widest:
        return ""
    span = (-widest, widest)
    return Strip(interval[0], row["difference"], interval[1], span, row.get("margin"), tone)


def _flips(source):
    which = "of one seed" if source.at("paired") else "of any seeds"
    one, other = kinds(source)
    rows = {
        f"Between the kinds, {which}": "between_kinds",
        f"Among runs of {one}": "among_reference",
        f"Among runs of {other}": "among_other",
        f"Right with {one}, wrong with {other}": "became_wrong",
    }
    return Table(
        "Share of the images whose predicted class differs between two runs",
        ("Two runs", "Share"),
        tuple((name, source.share("flips", key)) for name, key in rows.items()),
    )


def _costs(source):
    one, other = kinds(source)
    rows = []
    for key, (name, unit) in COSTS.items():
        values = [source.number("costs", key, kind, unit=unit) for kind in (0, 1)]
        ratio = values[1].against(values[0], one) if values[1] and unit in AMOUNTS else None
        rows.append((name, *values, ratio or ""))
    yield Table("Medians of the runs", ("What", one, other, f"{other} to {one}"), tuple(rows))
    if target := source.share("costs", "target_accuracy"):
        yield Note(("The target is a validation accuracy of ", target, "."))


def _runs(source):
    rows = []
    for kind, name in enumerate(kinds(source)):
        for index in range(len(source.items("made_with", "runs", kind))):
            place = ("made_with", "runs", kind, index)
            seed = source.text(*place, "run", "seed")
            rows.append(
                (
                    f"{name}, seed {seed}",
                    source.text(*place, "policy"),
                    source.share(*place, "run", "final", "test_accuracy"),
                    source.number(*place, "run", "final", "test_loss", unit="decimal"),
                    source.text(*place, "device", "name"),
                    source.text(*place, "model"),
                )
            )
    columns = ("Run", "Policy", "Test accuracy", "Test loss", "Device", "Model")
    yield Table("As their training measured them", columns, tuple(rows), shown=MOST_TESTS)
