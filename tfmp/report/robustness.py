"""What a report says of an examination on other inputs: robustness.json."""

from tfmp.report import evaluation
from tfmp.report.axes import attacks, corruptions, inputs, ood
from tfmp.report.blocks import Card, Cards, Section, Table
from tfmp.report.leaves import leaves
from tfmp.report.names import measure

AXES = {"input": inputs, "corruptions": corruptions, "ood": ood, "adversarial": attacks}
NO_AXES = ("examples", "accuracy", "non_finite", "made_with")
title, alerts = evaluation.title, evaluation.alerts


def summary(source, _):
    """What was found on each axis, in a sentence each."""
    found = []
    for data in source.branch("accuracy"):
        found += alerts(source, data)
        for axis, module in AXES.items():
            if source.branch(axis, data):
                found += module.say(source, axis, data)
    return found


def headlines(source):
    """What is compared with other runs: (name, number) by a key that only the same has."""
    found: dict = {}
    for data in source.branch("accuracy"):
        for axis, module in AXES.items():
            if source.branch(axis, data):
                of = ("robustness", source.at("examples", data))
                pairs = module.headlines(source, axis, data)
                found |= {(*of, *key): value for key, value in pairs}
    return found


def sections(source, _):
    """All of it, by data set and axis; of an axis unknown here, its numbers."""
    found = []
    for data in source.branch("accuracy"):
        parts = []
        for axis in source.content:
            if axis not in NO_AXES and source.branch(axis, data):
                module = AXES.get(axis)
                name = module.TITLE if module else measure(axis).name
                blocks = module.blocks if module else _unknown
                parts.append(Section(name, tuple(blocks(source, axis, data))))
        cards = (
            Card("Accuracy as they are", source.share("accuracy", data)),
            Card("Images", source.count("examples", data)),
        )
        above = (*alerts(source, data), Cards(cards))
        found.append(Section(f"Robustness on {data}", above, tuple(parts)))
    return found


def _unknown(source, axis, data):
    rows = tuple(leaves(source, axis, data))
    yield Table("All of its numbers", ("What", "Value"), rows, shown=evaluation.MOST_ROWS)
