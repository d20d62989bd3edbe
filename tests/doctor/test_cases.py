"""Each bad model breaks, is found, and is mended; each look-alike passes."""

import importlib

import numpy as np
import pytest

from tfmp import doctor
from tfmp.doctor.finding import SEVERITIES
from tfmp.doctor.rules import RULES

FAMILIES = (
    "outputs", "constants", "scaling", "variables", "states", "steps", "ids", "lossy",
    "preprocessing", "xla",
)  # fmt: skip
MODULES = {name: importlib.import_module(f"cases.{name}") for name in FAMILIES}
BAD = [(f, name) for f, module in MODULES.items() for name in module.BAD]
CLEAN = [(f, name) for f, module in MODULES.items() for name in module.CLEAN]


# numpy says so of every constant that it makes infinite.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")


def serious(findings):
    return [(x.rule, x.layer, x.message) for x in findings if x.severity != "info"]


@pytest.mark.parametrize(("family", "name"), BAD)
def test_a_bad_model_is_damaged_found_and_mended(family, name):
    case = MODULES[family].BAD[name]
    model = case.build()
    assert case.damaged(model)
    findings = doctor.diagnose(model, *case.batch)
    allowed = SEVERITIES[: SEVERITIES.index(case.severity) + 1]
    found = [(x.rule, x.layer) for x in findings if x.severity in allowed]
    assert (case.rule, case.layer) in found, findings
    mended = case.mended() if case.mended else doctor.fix(model, findings)
    assert not case.damaged(mended)
    assert (case.rule, case.layer) not in [
        (x.rule, x.layer) for x in doctor.diagnose(mended, *case.batch)
    ]


def test_every_rule_of_structure_has_a_model_that_breaks():
    shown = {module.BAD[name].rule for module in MODULES.values() for name in module.BAD}
    # What probing finds has cases of its own; a model that can't be traced is in test_diagnose.py.
    probed = {f"tfmp.doctor.rules.{name}" for name in ("forward", "backward", "probed")}
    rules = {name for name, rule in RULES.items() if rule.__module__ not in probed}
    assert rules - shown == {"not_traced"}


@pytest.mark.parametrize(("family", "name"), CLEAN)
def test_a_look_alike_gets_no_warning(family, name):
    assert not serious(doctor.diagnose(MODULES[family].CLEAN[name]()))


def test_a_subclass_that_is_given_float_ids_is_found():
    model = MODULES["ids"].subclassed()
    ids = np.array([[29998.0, 29999.0]], "float32")
    assert MODULES["ids"].confuses(model)
    found = [(x.rule, x.layer, x.severity) for x in doctor.diagnose(model, ids)]
    assert ("rounded_ids", None, "error") in found
    assert not serious(doctor.diagnose(model, ids.astype("int32")))
