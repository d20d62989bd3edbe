"""CSV files: which columns they have, and of which kind."""

import csv
import dataclasses
import difflib
from pathlib import Path

import numpy as np

from tfmp.data.base import DataError

# In lower case; what pandas and scikit-learn's examples write, and the `?` of UCI's files.
MISSING = ("", "?", "na", "n/a", "nan", "null", "none", "<na>")


@dataclasses.dataclass(frozen=True)
class Source:
    """A table as it was read.

    Attributes:
        columns: By name [rows] float64, NaN where a value is missing, or str, "" where it is.
        target: [rows] str, "" where it is missing.
        target_name: Name of the target.
        notes: What was found, each a sentence for the user.
    """

    columns: dict[str, np.ndarray]
    target: np.ndarray
    target_name: str
    notes: tuple[str, ...] = ()


def read(
    file: str, target: str | None, categorical: tuple[str, ...], drop: tuple[str, ...]
) -> Source:
    """Reads a CSV file whose first line names the columns.

    Args:
        file: Its path.
        target: Name of the column to predict.
        categorical: Names of columns of numbers to take for categories.
        drop: Names of columns to leave out.

    Raises:
        DataError: The file is no such table, or has no such columns.
        OSError: It can't be read.
    """
    names, rows, lines = _rows(Path(file).expanduser())
    if target is None:
        raise DataError(f"--dataset=csv:{file} needs --target, one of {_listed(names)}.")
    for flag, asked in {"target": (target,), "categorical": categorical, "drop": drop}.items():
        for name in asked:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise DataError(
                    f"--{flag}: expected a column of {file}, one of {_listed(names)}. Received: "
                    f"{name!r}.{hint}"
                )
            if flag != "target" and name == target:
                raise DataError(f"--{flag}: expected other columns than the target {target!r}.")
    notes: list[str] = []
    columns = {}
    for index, name in enumerate(names):
        if name == target or name in drop:
            continue
        texts = np.array([_text(row[index]) for row in rows], dtype=str)
        column = None if name in categorical else numbers(texts)
        if column is None and name not in categorical:
            notes += _strangers(name, texts, lines)
        columns[name] = texts if column is None else column
        if column is not None and np.isinf(column).any():
            first = int(np.isinf(column).argmax())
            raise DataError(
                f"Expected finite numbers in the column {name!r} of {file}. Received: "
                f"{str(texts[first])!r} in line {lines[first]}."
            )
    index = names.index(target)
    texts = np.array([_text(row[index]) for row in rows], dtype=str)
    return Source(columns, texts, target, tuple(notes))


def numbers(texts: np.ndarray) -> np.ndarray | None:
    """Texts as float64, NaN for ""; None where any is no number, or none is there."""
    try:
        found = [float(text) if text else np.nan for text in texts.tolist()]
    except ValueError:
        return None
    return np.array(found) if any(texts) else None


def _rows(file: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Names of the columns, the rows' texts, and the line in which each row ends."""
    rows, lines = [], []
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            for row in reader:
                if row and len(row) != len(names):
                    raise DataError(
                        f"Expected {len(names)} values in line {reader.line_num} of {file}, as its "
                        f"first line has names. Received: {len(row)}."
                    )
                rows += [row] if row else []
                lines += [reader.line_num] if row else []
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"Expected values separated by commas, in UTF-8. Received: {file}, line "
                f"{reader.line_num + 1}: {error}."
            ) from error
    if "" in names or len(set(names)) < len(names) or not names:
        raise DataError(
            f"Expected different names of columns in the first line of {file}, separated by "
            f"commas. Received: {', '.join(map(repr, names))[:200] or 'nothing'}."
        )
    if not rows:
        raise DataError(f"Expected rows in {file}. Received: its first line alone.")
    return names, rows, lines


def _text(value: str) -> str:
    value = value.strip()
    return "" if value.lower() in MISSING else value


def _strangers(name, texts, lines):
    """Says why a column that is mostly numbers is none."""
    wrong = [
        i for i, text in enumerate(texts.tolist()) if text and numbers(np.array([text])) is None
    ]
    if len(wrong) * 2 < np.sum(texts != ""):
        first = wrong[0]
        yield (
            f"column {name!r} is categorical, since {str(texts[first])!r} in line {lines[first]} "
            "is no number"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
