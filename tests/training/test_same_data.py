"""A run goes on with its own data only, and says what differs."""

import dataclasses
import json

import pytest

from tfmp import errors
from tfmp.training import same_data


def changed(data, **changes):
    return dataclasses.replace(data, **changes)


@pytest.fixture
def data(digits):
    return changed(digits, origin="Python 3.12.1, 9 texts, SHA-256 ab12")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"class_names": (*"012345678", "nine")},
            "the classes from number 10 on were '9' and are 'nine'. Bring the former data back",
        ),
        (
            {"class_names": tuple("01")},
            "from number 3 on were '2', '3', '4', '5', '6' and 3 more and are none",
        ),
        (
            {"sizes": {"train": 1294, "validation": 142, "test": 361}},
            "the number of training examples was 1295 and is 1294; the number of test examples was",
        ),
        ({"origin": "9 texts, SHA-256 cd34"}, "SHA-256 ab12 and is 9 texts, SHA-256 cd34. Bring"),
        (
            {"origin": ""},
            "digits was Python 3.12.1, 9 texts, SHA-256 ab12 and is of unknown origin",
        ),
    ],
)
def test_other_data_are_refused_by_what_differs(data, tmp_path, changes, said):
    same_data.describe(data, tmp_path)
    same_data.check(data, tmp_path)
    with pytest.raises(errors.UserError) as refused:
        same_data.check(changed(data, **changes), tmp_path)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert "choose another --workdir" in str(refused.value)


def test_the_same_texts_of_another_python_are_the_same(data, tmp_path):
    same_data.describe(data, tmp_path)
    same_data.check(changed(data, origin="Python 3.12.2, 9 texts, SHA-256 ab12"), tmp_path)


def test_what_a_run_has_not_told_is_not_asked_for(data, tmp_path):
    same_data.check(data, tmp_path)
    for former in ({}, {"name": "digits", "origin": ""}, {"sizes": {"train": data.sizes["train"]}}):
        (tmp_path / same_data.DESCRIPTION).write_text(json.dumps(former))
        same_data.check(data, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(data, tmp_path, content):
    (tmp_path / same_data.DESCRIPTION).write_text(content)
    with pytest.raises(errors.UserError, match=r"data\.json"):
        same_data.check(data, tmp_path)
