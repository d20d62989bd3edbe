"""Several subjects side by side, held against the first."""

from tfmp.report.blocks import Lines, Note, Section, Series, Table
from tfmp.report.leaves import settings
from tfmp.report.names import measure

# What the results are, where they went and what the machine had free is no setting.
FREE = {"workdir", "model_sha256", "final", "output", "finished", "written", "memory_bytes"}
# An evaluation's model is a path; a training's or a benchmark's is a setting.
OF_MODELS = ("evaluation", "robustness")
MOST_ROWS = 40
# Of the measures, in the sentence.
MOST_NAMED = 3


def summary(subjects, headlines, notes):
    """The first measures that a subject has in common with the first one, and what stands out.

    Args:
        subjects: List of `Subject`, two or more.
        headlines: For each of them (name, number) by a key.
        notes: For each of them its own sentences.
    """
    first, found = subjects[0], []
    for subject, theirs in zip(subjects[1:], headlines[1:], strict=True):
        parts: list = []
        for key, (name, number) in theirs.items():
            change = number and number.against(headlines[0].get(key, ("", None))[1], first.name)
            if change and len(parts) < 3 * MOST_NAMED:
                parts += ["; " if parts else "", f"{name} ", change]
        said = parts or ["no measure of the same data in common"]
        found.append(Note((f"{subject.name} against {first.name}: ", *said, ".")))
    for subject, own in zip(subjects, notes, strict=True):
        found += [Note((f"{subject.name}: ", x.text), x.tone) for x in own if x.tone != "plain"]
    return found


def sections(subjects, headlines):
    """What the subjects have in common, and what they were made with that differs.

    Args:
        subjects: List of `Subject`, two or more.
        headlines: For each of them (name, number) by a key.
    """
    blocks = [_table(subjects, headlines), *_curves(subjects)]
    blocks.append(
        Note(
            "Differences are of single runs, and two seeds of the same settings differ, too: "
            "python -m tfmp parity tells a difference from chance."
        )
    )
    return [
        Section("Side by side", tuple(blocks)),
        Section("What differs in how they were made", (_settings(subjects),)),
    ]


def _table(subjects, headlines):
    """Measures of the same data that two subjects or more have, then the others."""
    first, *rest = subjects
    keys = list(dict.fromkeys(key for found in headlines for key in found))
    keys.sort(key=lambda key: sum(key in found for found in headlines) < 2)
    rows = []
    for key in keys:
        name = next(found[key][0] for found in headlines if key in found)
        # Empty where a subject has no such file; unknown where the file does not know it.
        cells: list = [found[key][1] if key in found else "" for found in headlines]
        if any(cells):
            row = [name, cells[0]]
            for cell in cells[1:]:
                change = cell and cells[0] and cell.against(cells[0], first.name)
                row += [cell, change or ""]
            rows.append(tuple(row))
    columns = ["Measure", first.name]
    for subject in rest:
        columns += [subject.name, f"against {first.name}"]
    return Table("Measures of each", tuple(columns), tuple(rows), shown=MOST_ROWS)


def _curves(subjects):
    logs = {x.name: x.sources["curves"] for x in subjects if "curves" in x.sources}
    if len(logs) < 2:
        return
    epochs = max(len(log.content) for log in logs.values())
    known = [key for log in logs.values() if log.content for key in log.content[0]]
    curves = {x: measure(x).name for x in known if x.startswith("val_") and x != "val_loss"}
    for key, name in (curves | {"loss": "Training loss"}).items():
        unit = measure(key).unit
        series = tuple(
            Series(label, tuple(log.number(i, key, unit=unit) for i in range(epochs)))
            for label, log in logs.items()
        )
        if any(any(one.values) for one in series):
            yield Lines(name, "epoch", tuple(range(1, epochs + 1)), series)


def _settings(subjects):
    """Settings, versions and devices that are not the same in all, of files of one kind."""
    made = []
    for subject in subjects:
        found = {}
        for source in subject.sources.values():
            free = FREE | {"model"} if source.kind in OF_MODELS else FREE
            for name, text in settings(source.made_with()):
                if not free & set(name.split(" · ")):
                    found[f"{source.kind} · {name}"] = text
        made.append(found)
    names = list(dict.fromkeys(name for found in made for name in found))
    rows = []
    for name in names:
        texts = [found.get(name) for found in made]
        known = [text for text in texts if text is not None]
        if len(known) > 1 and len(set(known)) > 1:
            rows.append((name, *(text if text is not None else "" for text in texts)))
    columns = ("Setting", *(subject.name for subject in subjects))
    return Table("Settings, versions and devices that differ", columns, tuple(rows))
