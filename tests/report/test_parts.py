"""Numbers, files and the coordinates of pictures."""

import math

import pytest
import samples

from tfmp import errors, report
from tfmp.report import charts
from tfmp.report.blocks import Lines, Reliability, Series, Strip
from tfmp.report.numbers import Number, between
from tfmp.report.page import as_html

MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.97654, "share", "97.65 %"),
        (-0.0123, "points", "~1.23 points"),
        (0.00001, "points", "0.00 points"),
        (0.0123, "distance", "1.23 points"),
        (0.23677, "decimal", "0.2368"),
        (-3, "change", "~3"),
        (32768.0, "count", "32,768"),
        (2.5, "count", "2.5"),
        (1.2e-7, "p", "1.2e~07"),
        (21.94, "seconds", "21.9 s"),
        (7199, "seconds", "7,199 s"),
        (7200, "seconds", "2.00 h"),
        (999, "joules", "999 J"),
        (1500, "joules", "1.5 kJ"),
        (7.2e6, "joules", "2 kWh"),
        (2**29, "bytes", "512.00 MiB"),
        (0.25, "ratio", "0.25 \N{MULTIPLICATION SIGN}"),
    ],
)
def test_how_numbers_are_printed(value, unit, text):
    assert Number("k", value, unit).text == text.replace(" ", SPACE).replace("~", MINUS)


def test_a_number_next_to_the_same_of_another():
    def against(unit, value, first):
        found = Number("b", value, unit).against(Number("a", first, unit), "one")
        return found and (found.key, round(found.value, 6), found.unit)

    assert against("share", 0.75, 0.5) == ("against/one/b", 0.25, "points")
    assert against("seconds", 3.0, 2.0) == ("against/one/b", 1.5, "ratio")
    assert against("seconds", 3.0, 0.0) is None
    assert Number("b", 1.0, "share").against(None, "one") is None
    assert Number("b", 1.0, "share").against(Number("a", 1.0, "p"), "one") is None
    low, words, high = between(Number("l", 0.1, "share"), Number("h", 0.2, "share"))
    assert (low.text, words, high.text) == ("10.00", " to ", f"20.00{SPACE}%")
    assert between(None, high) is None


# --- files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Can't read"),
        ("[" * 100_000, "Can't read"),
        ("[1]", "holds none"),
        ('{"accuracy": {}}', "without 'examples'"),
        ('{"examples": [], "accuracy": {}, "made_with": {}}', "without 'examples'"),
    ],
)
def test_a_file_that_is_something_else(content, said, folder):
    place = folder("a", evaluation=content)
    with pytest.raises(errors.UserError, match=said) as raised:
        report.read([str(place)])
    assert "a/evaluation.json" in str(raised.value)


def test_a_file_that_is_wrong_deep_inside(folder):
    place = folder("a", robustness=samples.examined(input={"uint8": 5}))
    with pytest.raises(errors.UserError, match=r"robustness.json is not as tfmp writes it: Type"):
        report.build(report.read([str(place)]))


def test_a_log_that_is_damaged(folder):
    place = folder("a", results=samples.trained(), metrics=samples.CURVES + "inf,0.9\n,0.95\n")
    page = report.build(report.read([str(place)]))
    assert "nan" not in as_html(page)
    (place / "metrics.csv").write_text('epoch,loss\n0,"' + "1" * 200_000)
    with pytest.raises(errors.UserError, match=r"Can't read .*metrics\.csv"):
        report.read([str(place)])


def test_what_is_not_there(folder, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    for words, said in {
        ("nothing",): "no such",
        ("a" * 300,): "Can't read a+: .*too long",
        (str(tmp_path),): "without",
        (str(tmp_path / "other.json"),): "Received: .*other.json",
        (str(folder("a", parity=samples.compared())), str(tmp_path / "b" / ".." / "a")): "twice",
    }.items():
        with pytest.raises(errors.UserError, match=said):
            report.read(words)


# --- pictures


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0.11, 0.98], {}, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([1, 12], {"whole": True}, [0, 5, 10, 15]),
        ([1, 3], {"whole": True}, [1, 2, 3]),
        ([15.0, 24.0], {"powers": True}, [14, 16, 18, 20, 22, 24]),
        ([5.0, 5.0], {"powers": True}, [4, 5, 6]),
        ([-0.03, 0.07], {}, [-0.04, -0.02, 0.0, 0.02, 0.04, 0.06, 0.08]),
    ],
)
def test_ticks_are_round_and_span_the_values(values, options, expected):
    assert charts.ticks(values, **options) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [0.0], [1e-300, 1e-299], [7.0, 7.0], [-1e12, 1e12]])
def test_ticks_of_anything(values):
    found = charts.ticks(values)
    assert 2 <= len(found) < 12 and found == sorted(found)
    assert all(found[0] <= value <= found[-1] for value in values)


def test_lines_break_where_a_number_is_missing():
    values = [None if x is None else Number("k", x, "share") for x in (0.0, 1.0, None, 0.5)]
    block = Lines("t", "epoch", (1, 2, 3, 4), (Series("a", tuple(values)),))
    drawing = charts.lines(block)
    assert drawing.paths[0].count("M") == 2 and len(drawing.dots[0]) == 3
    (x0, y0), (x1, y1), (x3, y3) = drawing.dots[0]
    assert x0 == charts.LEFT and x3 == charts.WIDTH - charts.RIGHT
    assert y0 > y3 > y1 == charts.TOP and x0 < x1 < x3
    assert [text for _, text in drawing.y_ticks] == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
    assert [text for _, text in drawing.x_ticks] == ["1", "2", "3", "4"]


def test_a_loss_scale_is_drawn_by_its_power_of_two():
    values = tuple(Number("k", 2.0**x, "count") for x in (15, 16, 14))
    drawing = charts.lines(Lines("t", "epoch", (1, 2, 3), (Series("a", values),), log=True))
    assert [text for _, text in drawing.y_ticks] == ["2¹⁴", "2¹⁵", "2¹⁶"]
    assert [y for _, y in drawing.dots[0]] == [drawing.y_ticks[i][0] for i in (1, 2, 0)]


def test_bars_stand_on_the_axis_and_strips_keep_their_order():
    shares = [Number("k", x, "share") for x in (0.4, 0.6, 0.5, 0.3)]
    bins = ((*shares[:2], Number("k", 9, "count"), *shares[2:]), (*shares[:2], None, None, None))
    drawing = charts.reliability(Reliability("t", bins))
    ((x, y, width, height),) = drawing.bars
    assert y + height == pytest.approx(charts.HEIGHT - charts.BOTTOM)
    assert x < drawing.dots[0][0][0] < x + width
    at = charts.strip(Strip(-0.2, 0.0, 0.1, (-0.4, 0.4), margin=0.1))
    assert at["low"] < at["point"] == at["zero"] == 60.0 < at["high"]
    assert at["band"] + at["band_width"] == pytest.approx(at["high"])
    assert not math.isnan(charts.strip(Strip(1.0, 1.0, 1.0, (1.0, 1.0)))["point"])
