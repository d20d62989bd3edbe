"""`python -m tfmp doctor`: what it takes, what it says, and its exit status."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from tfmp import cli, errors
from tfmp.commands import doctor

MODELS = """
import keras
import numpy as np
from keras import layers

def right():
    x = keras.Input((8,))
    return keras.Model(x, layers.Dense(1, dtype="float32", name="head")(layers.Dense(8)(x)))

def wrong():
    return keras.Sequential([keras.Input((8,)), layers.Dense(3, "softmax", name="head")])

def with_data():
    return wrong(), None

def batch():
    return np.zeros((2, 8), "float32"), np.zeros((2, 1), "float32")

def number():
    return 3

def fails():
    raise RuntimeError("their bug")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "doctored.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(*words):
    return doctor.run(cli.parse(doctor.Config, words))


def test_a_right_model_ends_with_status_0(here, capsys):
    found = run("doctored:right", "--data=doctored:batch")
    assert [x for x in found["findings"] if x["severity"] != "info"] == []
    assert found["model"]["policy"] == "mixed_float16"
    run("doctored:wrong", "--policy=float32", "--infos=false")
    assert "Nothing found." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["wrong", "with_data"])
def test_a_wrong_model_ends_with_status_10_and_a_file(here, capsys, name):
    with pytest.raises(errors.DifferentError, match="1 errors and 0 warnings") as raised:
        run(f"doctored:{name}", "--output=found.json")
    assert raised.value.exit_status == 10
    written = json.loads((here / "found.json").read_text())
    (found,) = [x for x in written["findings"] if x["severity"] == "error"]
    assert (found["rule"], found["layer"], found["float32"]) == ("half_output", "head", ["head"])
    out = capsys.readouterr().out
    assert "error  half_output  head" in out and 'dtype="float32"' in out


def test_a_saved_model_is_put_under_the_policy(here):
    x = keras.Input((8,))
    scaled = layers.Rescaling(1 / 65535, name="scale")(x)
    model = keras.Model(x, layers.Dense(1)(layers.Dense(8, name="first")(scaled)))
    model.save("float32.keras")
    # set_policy leaves raw values and the output in float32.
    assert run("float32.keras")["model"]["policy"] == "mixed_float16"
    wrong = keras.Sequential([keras.Input((8,)), layers.Dense(2, "softmax", dtype="mixed_float16")])
    wrong.save("half.keras")
    with pytest.raises(errors.DifferentError, match="1 errors and 0 warnings"):
        run("half.keras")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Expected a .keras file or MODULE:FUNCTION"),
        (["missing.keras"], "Can't load"),
        (["doctored:nothing"], "Expected a function in doctored"),
        (["doctored:number"], "to return a Keras model.*int"),
        (["doctored:fails"], "RuntimeError: their bug"),
        (["doctored:right", "--data=x.csv"], "an .npz file or MODULE:FUNCTION"),
        (["doctored:right", "--data=x.npz"], "Can't read x.npz"),
        (["doctored:right", "--data=other.npz"], "to hold an array x. Received: z"),
    ],
)
def test_a_mistake_is_one_line(here, words, message):
    np.savez("other.npz", z=np.zeros(3))
    with pytest.raises(errors.UserError, match=message):
        run(*words)


def test_a_rule_is_explained_without_the_documentation_at_hand(capsys):
    assert run("--explain=unscaled_loss") is None
    said = capsys.readouterr().out
    assert said.startswith("## unscaled_loss") and "```python" in said and "**Mend.**" in said
    with pytest.raises(errors.UserError, match="such as unscaled_loss"):
        run("--explain=unscaled_los")
