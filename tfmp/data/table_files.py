"""Tables as they are read, and those of CSV files: which columns they have, and of which kind."""

import collections
import dataclasses
import difflib
import math
import re
from pathlib import Path

import numpy as np

from tfmp.data import csv_files
from tfmp.data.base import DataError

# In lower case; what pandas and scikit-learn's examples write, and the `?` of UCI's files.
MISSING = ("", "?", "na", "n/a", "null", "none", "<na>")
# Also as C writes it: `-nan`, `nan(0x8000000000000)`, `-nan(ind)`.
NAN = re.compile(r"[+-]?nan(\(\w*\))?", re.IGNORECASE)
LONGEST_SHOWN = 60  # characters


@dataclasses.dataclass(frozen=True)
class Source:
    """A table as it was read.

    Attributes:
        columns: By name [rows] float64, NaN where a value is missing, or of str, "" where it is.
        target: [rows] of str, "" where it is missing.
        target_name: Name of the target.
        lines: [rows], the line of the file in which each begins; empty where there is no file.
        test: [rows] bool, those of the set's own test part; None where it has none.
        origin: Rows and SHA-256 of the file, or version of the set; empty of an embedded one.
        notes: What was found, each a sentence for the user.
    """

    columns: dict[str, np.ndarray]
    target: np.ndarray
    target_name: str
    lines: list[int] = dataclasses.field(default_factory=list)
    test: np.ndarray | None = None
    origin: str = ""
    notes: tuple[str, ...] = ()


def read(
    file: str, target: str | None, categorical: tuple[str, ...], drop: tuple[str, ...]
) -> Source:
    """Reads a CSV file as `tfmp.data.csv_files` does.

    Args:
        file: Its path.
        target: Name of the column to predict.
        categorical: Names of columns of numbers to take for categories.
        drop: Names of columns to leave out.

    Raises:
        DataError: The file is no such table, or has no such columns.
        OSError: It can't be read.
    """
    table = csv_files.read(Path(file).expanduser())
    names, lines = table.names, table.lines
    if target is None:
        raise DataError(f"--dataset=csv:{file} needs --target, one of {listed(names)}.")
    check_columns(file, names, target, categorical, drop)
    notes = list(table.notes)
    columns = {}
    for name in names:
        if name == target or name in drop:
            continue
        texts = known(table.column(name))
        column = None if name in categorical else numbers(texts)
        if column is None and name not in categorical and (row := stranger(texts)) is not None:
            notes.append(
                f"column {name!r} is categorical, since {shown(texts[row])} in line {lines[row]} "
                "is no number"
            )
        columns[name] = texts if column is None else column
        if column is not None and np.isinf(column).any():
            first = int(np.isinf(column).argmax())
            raise DataError(
                f"Expected finite numbers in the column {name!r} of {file}. Received: "
                f"{texts[first]!r} in line {lines[first]}."
            )
    there = table.column(target)
    texts = known(there)
    notes += _left_out(target, there, texts)
    origin = f"{len(lines):,} rows, SHA-256 {table.sha256}"
    return Source(columns, texts, target, lines, origin=origin, notes=tuple(notes))


def check_columns(table, names, target, categorical, drop):
    """Sees that flags name columns of a table, and none the target twice.

    Raises:
        DataError: They don't.
    """
    for flag, asked in {"target": (target,), "categorical": categorical, "drop": drop}.items():
        for name in asked:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise DataError(
                    f"--{flag}: expected a column of {table}, one of {listed(names)}. Received: "
                    f"{name!r}.{hint}"
                )
            if flag != "target" and name == target:
                raise DataError(f"--{flag}: expected other columns than the target {target!r}.")


def number(text: str) -> float | None:
    """A text as a number, None where it is none; `1_1`, which is 11 in Python, is none."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def numbers(texts: np.ndarray) -> np.ndarray | None:
    """Texts as float64, NaN for ""; None where any is no number, or none is there."""
    found = [number(text) if text else math.nan for text in texts.tolist()]
    return None if None in found or not any(texts) else np.array(found, np.float64)


def stranger(texts: np.ndarray) -> int | None:
    """The first row with a text that is no number, where most are numbers; else None."""
    wrong = [row for row, text in enumerate(texts.tolist()) if text and number(text) is None]
    return wrong[0] if 0 < len(wrong) * 2 < np.sum(texts != "") else None


def shown(text: str) -> str:
    """A cell in a sentence."""
    return repr(str(text) if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "...")


def in_line(lines: list[int], row: int) -> str:
    """Where a row is, in a sentence; empty where there is no file."""
    return f" in line {lines[row]}" if lines else ""


def known(column: list[str]) -> np.ndarray:
    """[rows] of str, "" where a value is missing."""
    # Of dtype str each row would take the room of the longest.
    missing = [text.lower() in MISSING or NAN.fullmatch(text) for text in column]
    return np.array(["" if x else text for x, text in zip(missing, column, strict=True)], object)


def _left_out(target, there, texts):
    """Says which rows have no target.

    Raises:
        DataError: Among words comes more than once what may be a word, or say that there is none.
    """
    left_out = without_target(there, texts)
    unclear = {x: n for x, n in left_out.items() if x and n > 1 and not NAN.fullmatch(x)}
    if unclear and numbers(texts) is None and stranger(texts) is None:
        text, count = max(unclear.items(), key=lambda item: item[1])
        raise DataError(
            f"Expected classes, or empty cells where there is none, in the target {target!r}. "
            f"Received: {text!r} in {count} rows, which may mean that it is missing, or be a "
            "class. Empty these cells, which leaves their rows out, or rename the class."
        )
    yield from left_out_notes(target, left_out)


def without_target(there, texts) -> collections.Counter:
    """In how many rows what stands for a missing target, of [rows] cells and `known` of them."""
    return collections.Counter(x for x, text in zip(there, texts, strict=True) if not text)


def left_out_notes(target, left_out):
    """The sentence for the user, where there is any, of what `without_target` has counted."""
    if left_out:
        listed = ", ".join(f"{x!r} in {n}" if x else f"nothing in {n}" for x, n in left_out.items())
        yield f"{left_out.total()} rows have no {target} ({listed}), and are left out"


def listed(names: list[str]) -> str:
    """Names of columns in a sentence."""
    shown = ", ".join(names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
