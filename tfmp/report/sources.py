"""The files that a report is made of: found, checked, and put to the model that they are about."""

import csv
import dataclasses
import json
import math
import pathlib
import typing

from tfmp import files
from tfmp.errors import UserError
from tfmp.report.numbers import Number

# What each file is, and some of what it must hold.
FILES: dict[str, tuple[str, dict[str, type]]] = {
    "results.json": ("training", {"config": dict, "final": dict, "data": dict}),
    "evaluation.json": ("evaluation", {"examples": dict, "accuracy": dict, "made_with": dict}),
    "robustness.json": ("robustness", {"examples": dict, "accuracy": dict, "made_with": dict}),
    "parity.json": ("parity", {"verdict": str, "kinds": list, "tests": list, "made_with": dict}),
}
BENCHMARK: dict[str, type] = {"rows": list, "config": dict, "environment": dict}


@dataclasses.dataclass(frozen=True)
class Source:
    """A file's content.

    Attributes:
        kind: "training", "curves", "evaluation", "robustness", "parity" or "benchmark".
        label: The subject's name and the file's: the beginning of its numbers' keys.
        path: Of the file, as the user named it.
        content: What it holds.
        sha256: Of the file.
    """

    kind: str
    label: str
    path: pathlib.Path
    content: typing.Any
    sha256: str

    def at(self, *place):
        """What is there; None if nothing is."""
        found = self.content
        for name in place:
            if isinstance(found, dict):
                found = found.get(name)
            elif isinstance(found, list) and isinstance(name, int) and name < len(found):
                found = found[name]
            else:
                return None
        return found

    def branch(self, *place) -> dict:
        """The dict that is there; an empty one if none is."""
        found = self.at(*place)
        return found if isinstance(found, dict) else {}

    def items(self, *place) -> list:
        """The list that is there; an empty one if none is."""
        found = self.at(*place)
        return found if isinstance(found, list) else []

    def number(self, *place, unit="number") -> Number | None:
        """The finite number that is there, as a number of the report; None if none is."""
        found = self.at(*place)
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            return None
        if not math.isfinite(found):
            return None
        pointer = "".join("/" + str(x).replace("~", "~0").replace("/", "~1") for x in place)
        return Number(f"{self.label}#{pointer}", found, unit)

    def share(self, *place) -> Number | None:
        """Likewise, of 0-1 and printed in percent."""
        return self.number(*place, unit="share")

    def count(self, *place) -> Number | None:
        """Likewise, of things."""
        return self.number(*place, unit="count")

    def text(self, *place) -> str:
        """What is there in words; "unknown" if nothing is."""
        found = self.at(*place)
        return "unknown" if found is None else in_words(found)

    def made_with(self) -> dict:
        """What the file says of its origin."""
        if self.kind == "training":
            names = ("config", "policy_reason", "strategy", "device", "seed", "versions")
            return {x: self.at(x) for x in (*names, "git_commit", "finished")}
        if self.kind == "benchmark":
            return {x: self.at(x) for x in ("config", "environment", "written")}
        # The runs of a comparison have a table of their own.
        return {k: v for k, v in self.branch("made_with").items() if k != "runs"}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, a comparison or a benchmark, and the files about it.

    Attributes:
        name: Unique in the report.
        folder: Where the first of its files lies.
        sources: `Source` by kind.
    """

    name: str
    folder: pathlib.Path
    sources: dict[str, Source]


def in_words(value) -> str:
    """A setting as a person writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def read(words) -> list[Subject]:
    """The subjects that folders and files are about.

    Files of the same model, by its SHA-256, are of one subject, as far as they are of different
    kinds: a run, its evaluation and its robustness, whose folders the user named one by one.

    Args:
        words: Folders that hold one of `FILES` or more, or such files, or a benchmark's.

    Raises:
        UserError: Something is not there, can't be read or is something else, or comes twice.
    """
    subjects: list[Subject] = []
    models: list[set] = []
    places: list[pathlib.Path] = []
    for word in words:
        path = pathlib.Path(word).expanduser()
        if path.resolve() in places:
            raise UserError(f"Expected each RUN once. Received: {word} twice.")
        places.append(path.resolve())
        try:
            found = _found(path)
        except OSError as error:  # a name too long, or a folder that may not be opened
            raise UserError(f"Can't read {word}: {error}.") from None
        about = _models(path, found) if len(words) > 1 else set()
        same = [
            index
            for index, subject in enumerate(subjects)
            if models[index] & about and not subject.sources.keys() & found.keys()
        ]
        if same:
            subject = subjects[same[0]]
            subject.sources.update(_labeled(subject.name, found))
        else:
            name = _unique(path, [subject.name for subject in subjects])
            subjects.append(Subject(name, path, _labeled(name, found)))
            models.append(about)
    return subjects


def _found(path) -> dict:
    """(path, content) by kind."""
    if not path.exists():
        raise UserError(f"Expected a folder or a file of results. Received: {path}: no such.")
    if not path.is_dir():
        kind, content = _one(path)
        return {kind: (path, content)}
    inside = [path / name for name in FILES if (path / name).exists()]
    if not inside:
        *names, last = FILES
        raise UserError(
            f"Expected a folder with {', '.join(names)} or {last}. Received: {path}, without."
        )
    found = {}
    for file in inside:
        kind, content = _one(file)
        found[kind] = file, content
    log = path / "metrics.csv"
    if "training" in found and log.exists():
        found["curves"] = log, _log(log)
    return found


def _one(file):
    """(kind, content) of a file."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Can't read {file}: {error}.") from None
    kind, wanted = FILES.get(file.name, ("", {}))
    if not isinstance(content, dict):
        raise UserError(f"Expected a file of tfmp's results. Received: {file}, which holds none.")
    if str(content.get("format", "")).startswith("tfmp benchmark"):
        kind, wanted = "benchmark", BENCHMARK
    if not kind:
        raise UserError(
            f"Expected {', '.join(FILES)} or a file of `python -m tfmp benchmark`. Received: "
            f"{file}."
        )
    wrong = [name for name, sort in wanted.items() if not isinstance(content.get(name), sort)]
    if wrong:
        raise UserError(
            f"Expected {kind} results of tfmp in {file}. Received: a file without {wrong[0]!r}."
        )
    return kind, content


def _log(file):
    try:
        return files.read_metrics(file)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"Can't read {file}: {error}.") from None


def _models(path, found):
    """SHA-256 of the models that files are about."""
    about = {
        content["made_with"].get("model_sha256")
        for kind, (_, content) in found.items()
        if kind in ("evaluation", "robustness")
    }
    model = path / "model.keras"
    if "training" in found and model.is_file():
        about.add(files.sha256(model))
    return about - {None}


def _labeled(name, found):
    return {
        kind: Source(kind, f"{name}/{file.name}", file, content, files.sha256(file))
        for kind, (file, content) in found.items()
    }


def _unique(path, taken):
    name = path.stem if path.is_file() else path.resolve().name
    tries = (name, *(f"{name} ({number})" for number in range(2, len(taken) + 3)))
    return next(x for x in tries if x not in taken)
