"""`python -m tfmp fallback`: the file it writes, costs, mistakes; the recipes need no float32."""

import contextlib
import json
import pathlib

import pytest

from tfmp import __main__, cli, errors, hardware, policies
from tfmp.commands import fallback
from tfmp.commands.fallback import costs, session
from tfmp.recipes import resnet

MODELS = """
import keras
import numpy as np
from keras import layers

class Overflows(layers.Layer):
    def call(self, x):
        return x * 2.0**20 / 2.0**20

def network(*middle):
    inputs = x = keras.Input((8,))
    for layer in [layers.Dense(8, name="first"), *middle]:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="head")(x))

def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 8)), rng.normal(size=(32, 1))

def planted():
    model = network(layers.Dense(8, name="second"), Overflows(name="bad"))
    model.compile("sgd", "mse")
    return model, data()

def hopeless():
    model = network()
    model.compile("sgd", lambda y, z: keras.ops.mean(z) * float("inf"))
    return model, data()

def not_compiled():
    return network(), data()

def fails():
    raise RuntimeError("their bug")
"""
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "searched.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(*words):
    return fallback.run(cli.parse(fallback.Config, words))


def test_the_planted_layer_is_written_with_its_costs(here, capsys):
    words = ["--details=details.json", "--jit_compile=false", "--cost_steps=2", "--batch_size=4"]
    found = run("searched:planted", *words)
    assert found["float32"] == ["bad"]
    content = json.loads((here / "float32_layers.json").read_text())
    assert content == {"policy": "mixed_float16", "float32": ["bad"]}
    assert list(policies.load("float32_layers.json", "mixed_float16")) == ["bad"]
    measured = found["costs"]
    assert all(measured[name]["step_ms"] > 0 for name in ("found", "nothing", "float32"))
    assert measured["found"]["peak_memory_bytes"] is None
    assert set(measured["layers"]) == set(measured["without"]) == {"bad"}
    written = json.loads(pathlib.Path("details.json").read_text())
    assert written["float32"] == ["bad"] and len(written["trials"]) == len(found["trials"])
    out = capsys.readouterr().out
    assert "Must stay float32 under mixed_float16 (of 3 layers" in out and "bad adds" in out
    assert "this device doesn't say how much" in out


def test_what_the_device_says_of_memory_is_shown(monkeypatch):
    """By numbers in place of a GPU's."""
    peaks = iter([3 * 2**20, 2**20, 2**20, 4 * 2**20])
    monkeypatch.setattr(hardware, "peak_memory_bytes", lambda: next(peaks))
    monkeypatch.setattr(costs, "_step", lambda *_: measured())

    def measured():
        return {"step_ms": 2.0, "spread_ms": 0.5, "peak_memory_bytes": hardware.peak_memory_bytes()}

    model = type("Model", (), {"get_weights": list, "set_weights": lambda *_: None})()
    monkeypatch.setattr(costs, "under", lambda *_: contextlib.nullcontext())
    found = costs.measure(
        model, (), model, {"a": "a"}, "mixed_float16", jit_compile="false", steps=1
    )
    assert found["layers"]["a"] == {
        "step_ms": 0.0,
        "peak_memory_bytes": 2 * 2**20,
        "spread_ms": 0.5,
    }
    assert "a adds                +0.00 ms (windows differ by 0.50), +2.0 MiB" in session.table(
        found
    )


def test_a_recipe_takes_the_file(here, capsys):
    """Its layers are those of its model: none has to stay float32, and a named one does."""
    found = run("resnet", "--costs=false", "--batch_size=4")
    assert found["float32"] == [] and len(found["trials"]) == 1
    assert "No layer has to stay float32" in capsys.readouterr().out
    content = json.loads(pathlib.Path("float32_layers.json").read_text())
    assert content == {"policy": "mixed_float16", "float32": []}
    layer = found["candidates"][1]
    pathlib.Path("float32_layers.json").write_text(json.dumps(content | {"float32": [layer]}))
    words = ["--float32_layers=float32_layers.json", "--policy=mixed_float16", "--workdir=run"]
    learner = resnet.prepare(cli.parse(resnet.Config, words))[2]
    assert learner.model.get_layer(layer).compute_dtype == "float32"
    assert not pathlib.Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ([], errors.UserError, "Expected MODULE:FUNCTION or a recipe"),
        (["nothing"], errors.UserError, "Expected a recipe out of"),
        (["searched:nothing"], errors.UserError, "'nothing', which is not there"),
        (["searched:not_compiled"], errors.UserError, "one that is not compiled"),
        (["searched:fails"], errors.UserError, "RuntimeError: their bug"),
        (["searched:hopeless"], errors.NonFiniteError, "In float32, too"),
        (["searched:planted", "--recipe_flags=--x=1"], errors.UserError, "are for recipes"),
        (["resnet", "--recipe_flags=--policy=float32"], errors.UserError, "without --policy"),
        (["resnet", "--steps=0"], errors.UserError, "--steps above 0"),
        (["resnet", "--tolerance=nan"], errors.UserError, "--tolerance above 0"),
        (["resnet", "--seed=-1"], errors.UserError, "--seed of 0 or more"),
    ],
)
def test_mistakes(here, words, error, said):
    with pytest.raises(error, match=said):
        run(*words)


def test_the_program_ends_with_one_line(here, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["fallback", "searched:hopeless"])
    assert ended.value.code == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: In float32, too")
