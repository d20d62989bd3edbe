"""Numbers with their place in a file and their unit, and how they are printed."""

import dataclasses
from collections.abc import Callable

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
SPACE = "\N{NO-BREAK SPACE}"


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of a report.

    Attributes:
        key: Subject, file and place; see `tfmp.report`.
        value: Finite.
        unit: One of `UNITS`.
        bare: Whether the unit is printed behind another number.
    """

    form = "number"

    key: str
    value: float
    unit: str = "number"
    bare: bool = False

    @property
    def text(self) -> str:
        """As the page prints it."""
        text = UNITS[self.unit](self.value).replace("-", MINUS)
        return text.partition(SPACE)[0] if self.bare else text

    def against(self, first, subject):
        """What it is next to the same number of the first subject.

        Args:
            first: A `Number`, or None.
            subject: The first subject's name.

        Returns:
            A `Number`: the ratio of amounts such as seconds, the difference of anything else. None
            where there is none.
        """
        if first is None or first.unit != self.unit:
            return None
        key = f"against/{subject}/{self.key}"
        if self.unit in AMOUNTS:
            return Number(key, self.value / first.value, "ratio") if first.value else None
        return Number(key, self.value - first.value, difference(self.unit))


def difference(unit):
    """The unit of a difference of two numbers in a unit."""
    return {"share": "points", "decimal": "signed"}.get(unit, "change")


def between(low, high):
    """An interval from one `Number` to another, with the unit once; None where there is none."""
    if low is None or high is None:
        return None
    return dataclasses.replace(low, bare=low.unit not in SCALED), " to ", high


def _plain(value):
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _signed(value, digits):
    """With a sign, unless it is printed as 0."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def _few(value):
    """Three digits, without an exponent where whole ones will do."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e15 else f"{value:.3g}"


def _seconds(value):
    return f"{value / 3600:.2f}{SPACE}h" if value >= 7200 else f"{_few(value)}{SPACE}s"


def _joules(value):
    size, unit = (1, "J") if value < 1e3 else (1e3, "kJ") if value < 3.6e6 else (3.6e6, "kWh")
    return f"{value / size:.4g}{SPACE}{unit}"


def _bytes(value):
    size, unit = (2**30, "GiB") if value >= 2**30 else (2**20, "MiB")
    return f"{value / size:.2f}{SPACE}{unit}"


# Each unit, as a value in it is printed. Shares are of 1, and so are their differences and
# distances, which are printed in points of a hundred.
UNITS: dict[str, Callable[[float], str]] = {
    "share": lambda value: f"{100 * value:.2f}{SPACE}%",
    "points": lambda value: f"{_signed(100 * value, 2)}{SPACE}points",
    "decimal": lambda value: f"{value:.4f}",
    "distance": lambda value: f"{100 * value:.2f}{SPACE}points",
    "signed": lambda value: _signed(value, 4),
    "change": lambda value: ("+" if value > 0 else "") + _plain(value),
    "ratio": lambda value: f"{_few(value)}{SPACE}{TIMES}",
    "count": _plain,
    "number": _plain,
    "p": lambda value: f"{value:.2g}",
    "seconds": _seconds,
    "joules": _joules,
    "bytes": _bytes,
    "hours": lambda value: f"{_few(value)}{SPACE}h",
    "price": _few,
    "images/s": lambda value: f"{_few(value)}{SPACE}images/s",
    "examples/s": lambda value: f"{_few(value)}{SPACE}examples/s",
    "ms": lambda value: f"{value:,.2f}{SPACE}ms",
    "watts": lambda value: f"{value:,.0f}{SPACE}W",
}
# What is printed in a unit that depends on its size.
SCALED = ("seconds", "joules", "bytes")
# What is compared by its ratio.
AMOUNTS = ("seconds", "joules", "bytes", "hours", "price", "images/s", "examples/s", "ms", "watts")
