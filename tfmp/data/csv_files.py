"""CSV files: names of columns in the first line, then a value of each in every row."""

import csv
import dataclasses
import hashlib
import io
from pathlib import Path

from tfmp.data.base import DataError

# Characters of a value; the module's own limit is 131,072, and a C long has 32 bits on Windows.
LONGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file as it was read.

    Attributes:
        names: Of the columns, all different, without blanks around.
        rows: [rows][columns] texts, as they are in the file.
        lines: [rows], the line of the file in which each begins, counted from 1.
        sha256: The file's, in hexadecimal.
        notes: What was found, each a sentence for the user.
    """

    names: list[str]
    rows: list[list[str]]
    lines: list[int]
    sha256: str
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> list[str]:
        """Texts of the column of that name, without blanks around."""
        index = self.names.index(name)
        return [row[index].strip() for row in self.rows]


def read(file: Path) -> Table:
    """Reads a CSV file; empty lines and a first column without a name are left out.

    Args:
        file: Its path.

    Raises:
        DataError: It is not in UTF-8, has another separator, a quote is not closed, a row has more
            or fewer values than the columns have names, two columns have one name, or there are no
            rows.
        OSError: It can't be read.
    """
    content = file.read_bytes()
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"Expected text in UTF-8. Received: {file}, line {line}: {error.reason}. Save it in "
            "UTF-8."
        ) from None
    names, rows, lines = _parse(file, decoded)
    notes = []
    if len(names) > 1 and not names[0]:  # pandas' index
        names, rows = names[1:], [row[1:] for row in rows]
        notes.append("the first column has no name, and is left out")
    if "" in names or len(set(names)) < len(names) or not names:
        raise DataError(
            f"Expected different names of columns in the first line of {file}, separated by "
            f"commas. Received: {', '.join(map(repr, names))[:200] or 'nothing'}."
        )
    if not rows:
        raise DataError(f"Expected rows in {file}. Received: its first line alone.")
    return Table(names, rows, lines, hashlib.sha256(content).hexdigest(), tuple(notes))


def _parse(file: Path, content: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Names of the columns, the rows, and the line in which each begins."""
    names: list[str] = []
    rows, lines, begin = [], [], 1
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    former = csv.field_size_limit(LONGEST)
    try:
        for row in reader:
            if not names:
                blank = not "".join(row).strip() and len(row) < 2
                names = [] if blank else [name.strip() for name in row]
                other = [mark for mark in ";\t|" if len(row) == 1 and mark in row[0].strip()]
                if other:
                    raise DataError(
                        f"Expected values separated by commas. Received: {file}, whose first line "
                        f"has {other[0]!r} in their place."
                    )
            elif row and len(row) != len(names):
                hint = " A value with a comma needs double quotes." if row[len(names) :] else ""
                raise DataError(
                    f"Expected {len(names)} values in line {begin} of {file}, as its first line "
                    f"has names. Received: {len(row)}.{hint}"
                )
            elif row:
                rows.append(row)
                lines.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            "Expected values separated by commas, those with quotes within double quotes. "
            f"Received: {file}, in the row that begins in line {begin}: {error}."
        ) from error
    finally:
        csv.field_size_limit(former)
    return names, rows, lines
