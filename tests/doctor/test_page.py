"""docs/hazards.md is what the rules say, and what they show runs."""

import pathlib

import pytest

from tfmp.doctor import page
from tfmp.doctor.rules import RULES

ROOT = pathlib.Path(__file__).parents[2]


def test_the_page_is_made_of_the_rules():
    text = (ROOT / "docs" / "hazards.md").read_text()
    assert text == page.page(), "run python scripts/hazards.py"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_what_why_and_what_to_do(name):
    headings = [line for line in RULES[name].__doc__.splitlines() if line.strip() in page.SECTIONS]
    assert [line.strip() for line in headings] == list(page.SECTIONS)
    compile(page.example(name), name, "exec")
