"""The axis `corruptions`: errors under each corruption and severity, and their means."""

from tfmp.report.blocks import Card, Cards, Folded, Note, Shade, Table
from tfmp.report.leaves import leaves
from tfmp.report.numbers import between

TITLE = "Corruptions"
MEANS = {
    ("mean_error",): "Mean corruption error",
    ("extra_mean_error",): "Mean error of the extra corruptions",
    ("baseline", "mce"): "mCE",
    ("baseline", "relative_mce"): "Relative mCE",
}
KNOWN = {"examples", "corruptions", "non_finite", "clean_error", "mean_errors", "errors"}
KNOWN |= {"mean_error", "extra_mean_error", "intervals", "baseline"}


def blocks(source, axis, data):
    """The means, the heat map of errors, and what the corruptions were made with."""
    place = (axis, data)
    yield Cards(tuple(_means(source, place)))
    count = source.count(*place, "non_finite")
    if count and count.value:
        yield Note(
            ("Logits are not finite for ", count, " corrupted images: they are wrong."), "bad"
        )
    yield _errors(source, place)
    if source.branch(*place, "baseline"):
        name = source.text(*place, "baseline", "name")
        yield Note(
            f"CE is a corruption's error by that of {name} under the same corruption, and mCE its "
            "mean; relative CE counts what either loses."
        )
    else:
        yield Note("There is no mCE: it needs a --baseline.")
    more = [key for key in source.branch(*place) if key not in KNOWN]
    rows = tuple(row for key in more for row in leaves(source, *place, key))
    if rows:
        yield Folded("How they were made", (Table("Constants", ("What", "Value"), rows),))


def say(source, axis, data):
    """The means in a sentence."""
    mean = source.share(axis, data, "mean_error")
    mean = mean or source.share(axis, data, "extra_mean_error")
    clean = source.share(axis, data, "clean_error")
    mce = source.share(axis, data, "baseline", "mce")
    parts: tuple = ("Under corruptions ", mean, f" of {data} are wrong, in place of ", clean)
    if mce:
        name = source.text(axis, data, "baseline", "name")
        parts += (", and the mCE is ", mce, f" of {name}")
    return [Note((*parts, "."))]


def headlines(source, axis, data):
    """The means and the error of each corruption."""
    examples = source.at(axis, data, "examples")
    # Means are of the same only over the same corruptions, severities and baseline.
    errors = source.branch(axis, data, "errors")
    over = tuple((name, *source.branch(axis, data, "errors", name)) for name in errors)
    theirs = str(source.at(axis, data, "baseline", "mean_errors"))
    for key, name in MEANS.items():
        found = source.share(axis, data, *key)
        of = (*over, theirs) if key[0] == "baseline" else over
        yield (axis, data, *key, examples, of), (f"{name}, {data}", found)
    for corruption in source.branch(axis, data, "mean_errors"):
        found = source.share(axis, data, "mean_errors", corruption)
        yield (
            (axis, data, corruption, examples, *errors.get(corruption, ())),
            (f"Error under {_words(corruption)}, {data}", found),
        )


def _means(source, place):
    yield Card(
        "Error as they are",
        source.share(*place, "clean_error"),
        ("of ", source.count(*place, "examples"), " images"),
    )
    for key, name in MEANS.items():
        number = source.share(*place, *key)
        if number:
            ends = (source.share(*place, "intervals", key[-1], end) for end in (0, 1))
            yield Card(name, number, between(*ends) or "")


def _errors(source, place):
    """Corruptions by severities, each on a ground as dark as its error."""
    errors = source.branch(*place, "errors")
    severities = list(next(iter(errors.values()), {}))
    ratios = {"CE": ("baseline", "ce"), "Relative CE": ("baseline", "relative_ce")}
    ratios = {heading: key for heading, key in ratios.items() if source.branch(*place, *key)}
    rows = []
    for name in errors:
        cells = [source.share(*place, "errors", name, x) for x in severities]
        ends = (source.share(*place, "intervals", "mean_errors", name, e) for e in (0, 1))
        rows.append(
            (
                _words(name),
                *(cell and Shade(cell, min(max(cell.value, 0.0), 1.0)) for cell in cells),
                source.share(*place, "mean_errors", name),
                between(*ends) or "",
                # Empty where the baseline has no such corruption, unknown where it is never wrong.
                *(
                    source.share(*place, *key, name) if name in source.branch(*place, *key) else ""
                    for key in ratios.values()
                ),
            )
        )
    columns = ("Corruption", *(f"Severity {x}" for x in severities), "Mean", "95 % interval")
    return Table("Share of wrong images", (*columns, *ratios), tuple(rows))


def _words(name):
    return name.replace("_", " ")
