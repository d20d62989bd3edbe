"""The target of a table: numbers, or classes and their names.

A class is a text of the file. Of whole numbers `1`, `1.` and `1.0` are one class, `1`: programs
write the point where a value is missing elsewhere. All else is told apart as it is written, `01`
and `1`, `3.1` and `3.10`, which a note says. Classes of numbers are in the order of the numbers.
"""

import collections
import dataclasses
import decimal
import itertools
import re

import numpy as np

from tfmp.data import table_files
from tfmp.data.base import DataError
from tfmp.data.table_columns import LARGEST_TARGET, Task

# Of whole numbers with more values than this the target is one to regress.
MOST_CLASSES = 20


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be predicted.

    Attributes:
        task: A `Task`.
        class_names: In the order of the labels; of a regression none.
        labels: [rows] int32 of classes, float64 of a regression.
        notes: What was found, each a sentence for the user.
    """

    task: Task
    class_names: tuple[str, ...]
    labels: np.ndarray
    notes: tuple[str, ...] = ()


def find(texts, lines, name, task) -> Target:
    """What a column of texts says of a target.

    Args:
        texts: [rows] of str, none of them "".
        lines: [rows], the line of the file in which each begins; empty where there is no file.
        name: The column's name.
        task: A `Task`, or "auto": a regression where there are numbers that are not whole, or more
            than 20 different ones.

    Raises:
        DataError: The task has no such target.
    """
    numbers = table_files.numbers(texts)
    if numbers is not None and np.isinf(numbers).any():
        row = int(np.isinf(numbers).argmax())
        raise DataError(
            f"Expected finite numbers in the target {name!r}. Received: {texts[row]!r}"
            f"{table_files.in_line(lines, row)}. Mend the cell, or empty it, which leaves its row "
            "out."
        )
    classes = texts.tolist()
    if numbers is not None:
        classes = [re.sub(r"(?<=\d)\.0*$", "", text) for text in classes]
    different = len(set(classes))
    if different < 2:
        raise DataError(f"Expected two values or more in {name!r}. Received: {different}.")
    if task == "auto":
        many = numbers is not None and different > MOST_CLASSES
        many |= numbers is not None and bool(np.any(numbers != np.round(numbers)))
        task = "regression" if many else "classification"
    if task == "regression":
        return Target(task, (), _checked(numbers, texts, lines, name))
    return _of_classes(classes, texts, lines, name)


def _of_classes(classes, texts, lines, name) -> Target:
    """The target of which each row's class is known."""
    notes = []
    if (odd := table_files.stranger(texts)) is not None:
        cell = table_files.shown(texts[odd])
        place = table_files.in_line(lines, odd)
        notes.append(f"{name!r} is of classes, since {cell}{place} is no number")
    counts = collections.Counter(classes)
    rare = min(counts, key=lambda text: counts[text])
    if counts[rare] < 3:
        advice = "take --task=regression if it is a number to predict"
        if notes:
            advice = f"mend or empty that cell: {notes[0]}"
        raise DataError(
            f"Expected three rows or more of each class of {name!r}. Received: fewer of "
            f"{table_files.shown(rare)}. Leave these rows out, or {advice}."
        )
    names = sorted(counts)
    if table_files.numbers(texts) is not None:
        names.sort(key=decimal.Decimal)
        for one, other in itertools.pairwise(names):
            if decimal.Decimal(one) == decimal.Decimal(other):
                notes.append(
                    f"classes of {name!r} are told apart by their text, also where it is the same "
                    f"number, as {one!r} and {other!r}"
                )
                break
    codes = {text: code for code, text in enumerate(names)}
    labels = np.array([codes[text] for text in classes], np.int32)
    return Target("classification", tuple(names), labels, tuple(notes))


def _checked(numbers, texts, lines, name) -> np.ndarray:
    """The numbers of a regression."""
    if numbers is None:
        row = next(i for i, text in enumerate(texts) if table_files.number(text) is None)
        advice = "Mend the cell, or empty it, which leaves its row out."
        if table_files.stranger(texts) is None:
            advice = "Mend the column, or take --task=classification."
        place = table_files.in_line(lines, row)
        raise DataError(
            f"Expected numbers, such as 1234.5, in the target {name!r} of a regression. Received: "
            f"{table_files.shown(texts[row])}{place}. {advice}"
        )
    if (largest := np.abs(numbers).max()) > LARGEST_TARGET:
        raise DataError(
            f"Expected numbers up to {LARGEST_TARGET:g} in the target {name!r} of a regression. "
            f"Received: {largest:g}."
        )
    return numbers
