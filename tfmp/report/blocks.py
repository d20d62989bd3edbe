"""What a page is made of, before it is HTML: frozen values without any layout."""

import dataclasses
import typing

from tfmp.report.numbers import Number

# A cell of a table or a piece of a sentence: text, a number, a chip, a picture; a tuple of them; or
# None for what is not known.
Cell = typing.Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """A verdict in a word.

    Attributes:
        text: The word.
        tone: "good", "warn", "bad" or "plain".
    """

    form = "chip"

    text: str
    tone: str = "plain"


@dataclasses.dataclass(frozen=True)
class Strip:
    """An interval on a common scale, as a small picture; its numbers stand in other cells.

    Attributes:
        low: Its lower end.
        point: The value.
        high: Its upper end.
        span: Both ends of the scale.
        margin: Half the width of a band around 0, or None.
        tone: As of a `Chip`.
    """

    form = "strip"

    low: float
    point: float
    high: float
    span: tuple[float, float]
    margin: float | None = None
    tone: str = "plain"


@dataclasses.dataclass(frozen=True)
class Shade:
    """A number on a ground as dark as a share of 0-1."""

    form = "shade"

    number: Number
    share: float


@dataclasses.dataclass(frozen=True)
class Card:
    """A key figure: what it is, the number, and a line below."""

    label: str
    number: Cell
    note: Cell = ""


@dataclasses.dataclass(frozen=True)
class Cards:
    """Key figures beside one another."""

    form = "cards"

    cards: tuple[Card, ...]


@dataclasses.dataclass(frozen=True)
class Note:
    """A sentence; one of another tone than "plain" stands out."""

    form = "note"

    text: Cell
    tone: str = "plain"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with a name each, which is their first cell.

    Attributes:
        title: What it shows; a caption.
        columns: Their headings, that of the names first.
        rows: Tuples of cells.
        shown: How many rows are not folded away; None: all.
        matrix: Whether cells are shown as a dense grid.
    """

    form = "table"

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown: int | None = None
    matrix: bool = False

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column, whether it holds numbers, and words in place of some at most."""
        columns = zip(*self.rows, strict=True) if self.rows else ()
        return tuple(
            any(isinstance(x, Number) for x in column)
            and all(x is None or isinstance(x, (str, Number)) for x in column)
            for column in columns
        )


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a picture: its name, and a `Number` or None at each place."""

    name: str
    values: tuple[Number | None, ...]


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines over common places; the same numbers stand below as a table.

    Attributes:
        title: What it shows.
        x: Name of the places.
        places: Numbers, ascending.
        series: At most `MOST_SERIES` are drawn.
        log: Whether the values are shown by their logarithm to base 2.
    """

    form = "lines"

    title: str
    x: str
    places: tuple[float, ...]
    series: tuple[Series, ...]
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Accuracy over confidence, by bins; the same numbers stand below as a table.

    Attributes:
        title: What it shows.
        bins: Tuples of `Number`: lower and upper edge, examples, mean confidence, accuracy; the
            last two None in an empty bin.
    """

    form = "reliability"

    title: str
    bins: tuple[tuple[Number | None, ...], ...]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as it lies beside the results."""

    form = "picture"

    title: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Folded:
    """Blocks that are shown when asked for."""

    form = "folded"

    title: str
    blocks: tuple[typing.Any, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, what stands below it, and smaller sections."""

    title: str
    blocks: tuple[typing.Any, ...] = ()
    sections: tuple["Section", ...] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: What was examined.
        summary: Sentences as `Note`, verdicts first.
        sections: All of it.
        subjects: What it was made of, as `report.json` has it.
        written: When, with time zone.
        version: Of tfmp.
    """

    title: str
    summary: tuple[Note, ...]
    sections: tuple[Section, ...]
    subjects: list
    written: str
    version: str


def numbers(part):
    """All of the `Number`s in a page or a part of it, in order."""
    if isinstance(part, Number):
        yield part
    elif isinstance(part, (tuple, list)):
        for item in part:
            yield from numbers(item)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from numbers(getattr(part, field.name))


def words(cell) -> str:
    """A sentence as plain text."""
    if isinstance(cell, tuple):
        return "".join(map(words, cell))
    if isinstance(cell, Chip):
        return f"{cell.text}:"
    return "unknown" if cell is None else cell if isinstance(cell, str) else cell.text
