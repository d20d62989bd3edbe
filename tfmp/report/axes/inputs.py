"""The axis `input`: the same images in other dtypes, ranges and exposures."""

from tfmp.report.blocks import Chip, Note, Table

TITLE = "Other forms of the images"
TONES = {"same": "good", "changes": "plain", "worse": "warn", "breaks": "bad", "refused": "warn"}
BAD = {"breaks": "it breaks on", "worse": "it is worse on", "refused": "it refuses"}


def blocks(source, axis, data):
    """A row for each way."""
    rows = []
    for way, values in source.branch(axis, data).items():
        place = (axis, data, way)
        verdict = source.text(*place, "verdict")
        chip = Chip(verdict, TONES.get(verdict, "plain"))
        if "error" in values:
            rows.append((way, chip, "", "", "", "", source.text(*place, "error")))
            continue
        non_finite = source.count(*place, "non_finite")
        rows.append(
            (
                way,
                chip,
                source.share(*place, "accuracy"),
                source.number(*place, "accuracy_change", unit="points"),
                source.count(*place, "flips"),
                source.number(*place, "relative_logit_difference"),
                (non_finite, " not finite") if non_finite and non_finite.value else "",
            )
        )
    columns = ("Input", "Verdict", "Accuracy", "Change", "Flips", "Logits move", "Remark")
    yield Table("The same images in other forms", columns, tuple(rows))
    yield Note(
        "Worse: fewer are right than chance would make it (p < 0.001). Breaks: less than half as "
        "many, or logits are not finite. Logits move by multiples of their own spread."
    )


def say(source, axis, data):
    """What does harm."""
    ways = source.branch(axis, data)
    said = []
    for verdict, words in BAD.items():
        bad = [way for way in ways if source.at(axis, data, way, "verdict") == verdict]
        said += [f"{words} {', '.join(bad)}"] if bad else []
    text = "; ".join(said) or "none makes it worse beyond chance"
    return [Note(f"The images of {data} in other forms: {text}.")]


def headlines(source, axis, data):
    """The accuracy of each way."""
    for way in source.branch(axis, data):
        place = (axis, data, way, "accuracy")
        yield place, (f"Accuracy of {way}, {data}", source.share(*place))
