"""The axis `ood`: whether scores tell the test images from those of other data sets."""

from tfmp.report.blocks import Note, Table
from tfmp.report.names import measure

TITLE = "Other data sets"
NAMES = {"max_softmax": "largest softmax", "energy": "energy", "max_logit": "largest logit"}
COLUMNS = {
    "auroc": "AUROC",
    "aupr": "AUPR",
    "aupr_out": "AUPR, outside",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
}


def blocks(source, axis, data):
    """A row for each data set and score, and what chance would give."""
    rows = []
    for other in source.branch(axis, data, "against"):
        place = (axis, data, "against", other)
        images, inside = source.count(*place, "examples"), None
        for score, words in _scores(source, *place):
            values = [source.share(*place, score, key) for key in COLUMNS]
            rows.append(((other, ", ", words), images, *values))
            inside = source.share(*place, score, "share_inside")
        rows.append(((other, ", by chance"), images, "50 %", inside, "rest of 100 %", "95 %"))
        count = source.count(*place, "non_finite")
        if count and count.value:
            yield Note(("Logits are not finite for ", count, f" images of {other}."), "bad")
    columns = ("Data set and score", "Images", *COLUMNS.values())
    yield Table("Told from images of other data sets", columns, tuple(rows))


def say(source, axis, data):
    """The best score against each data set."""
    found = []
    for other in source.branch(axis, data, "against"):
        place = (axis, data, "against", other)
        known = [
            (number, words)
            for score, words in _scores(source, *place)
            if (number := source.share(*place, score, "auroc"))
        ]
        if known:
            best, by = max(known, key=lambda x: x[0].value)
            text = (f"It tells {data} from {other} with an AUROC of ", best, f", by the {by}.")
            found.append(Note(text))
    return found


def headlines(source, axis, data):
    """Each score's AUROC against each data set."""
    for other in source.branch(axis, data, "against"):
        place = (axis, data, "against", other)
        for score, words in _scores(source, *place):
            name = f"AUROC by {words}, {data} against {other}"
            examples = source.at(*place, "examples")
            yield (*place, score, examples), (name, source.share(*place, score, "auroc"))


def _scores(source, *place):
    """(key, name) of each score that is there."""
    for key, values in source.branch(*place).items():
        if isinstance(values, dict):
            yield key, NAMES.get(key, measure(key).name)
