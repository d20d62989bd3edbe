"""docs/scaling.md is what its script computes, and that is what a person can check."""

import math
import pathlib
import runpy

import pytest

from tfmp import models

ROOT = pathlib.Path(__file__).parents[1]
SCALING = runpy.run_path(str(ROOT / "scripts" / "scaling.py"))
TABLES = SCALING["tables"]()
PAGE = (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_the_tables(name):
    assert TABLES[name] in PAGE, "run python scripts/scaling.py"


def test_by_hand():
    ring_ms, sum_ms = SCALING["ring_ms"], SCALING["sum_ms"]
    assert ring_ms(100, 10, 2) == 10  # each sends one half, twice: 100 MB at 10 MB/ms
    assert ring_ms(100, 10, 4) == 15
    assert ring_ms(100, 10, 1) == 0
    # 64 GPUs: a ring of eight in the machine, one of eight machines.
    within, between = 2 * 7 / 8 * 102 / 450, 2 * 7 / 8 * 102 / 12.5
    assert sum_ms(102, "100 Gb/s", 64) == pytest.approx(within + between)
    model = SCALING["Model"](25_000_000, 0, 100.0)
    share = SCALING["efficiency"](model, "NVLink 4", 2)
    assert share == pytest.approx(100 / (100 + 100 / 450))


def test_the_model_s_numbers_are_those_of_the_model():
    built = models.build("resnet50", classes=1000, input_shape=(224, 224, 3))
    found = SCALING["MODELS"]["ResNet-50, 256 images"]
    trainable = sum(math.prod(v.shape) for v in built.trainable_variables)
    others = sum(math.prod(v.shape) for v in built.non_trainable_variables)
    assert (found.parameters, found.statistics) == (trainable, others)


def test_float16_sums_lose_more_over_more_replicas():
    errors = [SCALING["float16_error"](n) for n in (1, 8, 64)]
    assert 2**-13 < errors[0] < 2**-11  # of one rounding
    assert errors == sorted(errors)
