"""Where the lines and bars of a picture lie: coordinates of SVG, y downwards."""

import dataclasses
import math

from tfmp.report.numbers import UNITS

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 18.0, 10.0, 38.0
# Colors and dashes tell so many apart.
MOST_SERIES = 6
MOST_DOTS = 25
STRIP = (120.0, 16.0)
EXPONENTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A picture's coordinates.

    Attributes:
        paths: `d` of an SVG path, one a line.
        dots: Lists of (x, y), one a line.
        bars: List of (x, y, width, height).
        x_ticks: List of (x, text).
        y_ticks: List of (y, text).
    """

    paths: list[str]
    dots: list[list[tuple[float, float]]]
    bars: list[tuple[float, float, float, float]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def lines(block) -> Drawing:
    """The coordinates of a `Lines`."""
    drawn = block.series[:MOST_SERIES]
    numbers = [x for one in drawn for x in one.values if x and (x.value > 0 or not block.log)]
    unit = numbers[0].unit if numbers else "number"
    height = math.log2 if block.log else float
    y_ticks = ticks([height(x.value) for x in numbers], powers=block.log)
    x_ticks = ticks(block.places, whole=all(float(x).is_integer() for x in block.places))
    first, last = min(block.places, default=0.0), max(block.places, default=1.0)
    if first < last:  # no room on either side
        x_ticks = [tick for tick in x_ticks if first <= tick <= last]
    else:
        first, last = x_ticks[0], x_ticks[-1]
    xs, ys = Scale([first, last], LEFT, WIDTH - RIGHT), Scale(y_ticks, HEIGHT - BOTTOM, TOP)
    dots = [
        [
            (xs(place), ys(height(x.value)))
            if x and (x.value > 0 or not block.log)
            else (math.nan, math.nan)
            for place, x in zip(block.places, one.values, strict=True)
        ]
        for one in drawn
    ]
    few = len(block.places) <= MOST_DOTS
    return Drawing(
        [_path(line) for line in dots],
        [[dot for dot in line if not math.isnan(dot[0])] if few else [] for line in dots],
        [],
        [(xs(tick), f"{tick:g}") for tick in x_ticks],
        [(ys(tick), label(tick, unit, y_ticks, powers=block.log)) for tick in y_ticks],
    )


def reliability(block) -> Drawing:
    """The coordinates of a `Reliability`: the diagonal, bars, and dots at the mean confidence."""
    fifths = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    xs, ys = Scale(fifths, LEFT, WIDTH - RIGHT), Scale(fifths, HEIGHT - BOTTOM, TOP)
    bars, dots = [], []
    for low, high, _, confidence, accuracy in block.bins:
        if low and high and confidence and accuracy:
            top = ys(accuracy.value)
            bars.append((xs(low.value), top, xs(high.value) - xs(low.value), ys(0.0) - top))
            dots.append((xs(confidence.value), top))
    diagonal = _path([(xs(0.0), ys(0.0)), (xs(1.0), ys(1.0))])
    x_ticks = [(xs(x), f"{100 * x:g} %") for x in fifths]
    return Drawing([diagonal], [dots], bars, x_ticks, [(ys(y), f"{100 * y:g} %") for y in fifths])


def strip(block) -> dict[str, float]:
    """Where the interval, the point, the margin's band and 0 of a `Strip` lie."""
    low, high = block.span
    at = Scale([low, high if high > low else low + 1.0], 4.0, STRIP[0] - 4.0)
    found = {"low": at(block.low), "point": at(block.point), "high": at(block.high)}
    if block.margin is not None:
        ends = max(low, -block.margin), min(high, block.margin)
        found |= {"band": at(ends[0]), "band_width": at(ends[1]) - at(ends[0]), "zero": at(0.0)}
    return found


class Scale:
    """From values to coordinates, linearly."""

    def __init__(self, ticks, begin, end):
        self._low, self._high, self._begin, self._end = ticks[0], ticks[-1], begin, end

    def __call__(self, value):
        """The coordinate of a value, to a tenth."""
        share = (value - self._low) / (self._high - self._low)
        return round(self._begin + share * (self._end - self._begin), 1)


def ticks(values, *, whole=False, powers=False):
    """Round numbers, equally far apart, from below the lowest value to above the highest.

    Args:
        values: Finite numbers.
        whole: Whether only whole numbers make sense.
        powers: Whether these are exponents: whole numbers, and more room.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-12 * max(abs(high), 1e-300):
        room = 1.0 if whole or powers else abs(high) / 2 or 1.0
        low, high = low - room / 2, high + room / 2
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(x * unit for x in (1, 2, 5, 10) if x * unit >= rough)
    step = max(round(step), 1) if whole or powers else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def label(tick, unit, all_ticks, *, powers=False):
    """A tick's text, short."""
    if powers:
        return "2" + f"{tick:g}".translate(EXPONENTS)
    if unit == "share":
        return f"{round(100 * tick, 6):g} %"
    step = all_ticks[1] - all_ticks[0]
    tick = 0.0 if abs(tick) < step / 1e6 else tick
    return f"{tick:.4g}" if unit in ("decimal", "number", "count") else UNITS[unit](tick)


def _path(points):
    """`d` of a path that is broken where a point is missing."""
    parts, pen = [], "M"
    for x, y in points:
        if math.isnan(x):
            pen = "M"
        else:
            parts.append(f"{pen}{x:g} {y:g}")
            pen = "L"
    return " ".join(parts)
