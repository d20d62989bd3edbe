"""`python -m tfmp audit`: what it says of saved models, held against what loading does."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import tfmp
from tfmp import cli, errors, policies
from tfmp.commands import audit
from tfmp.commands.audit import contents, judge, loaded
from tfmp.commands.benchmark import children

HALF = "mixed_float16"
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype("float32")
Y = RNG.normal(size=(32, 1)).astype("float32")
STEPS = 4

# A fresh process: what Keras alone makes of a file; then tfmp's loading, and training goes on.
FRESH = """
import json, sys, warnings
import keras, numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    plain = keras.saving.load_model(sys.argv[1])
facts = {
    "scaled": isinstance(plain.optimizer, keras.optimizers.LossScaleOptimizer),
    "iterations": int(plain.optimizer.iterations),
    "skipped": any("Skipping variable loading" in str(x.message) for x in caught),
    "policies": {x.name: x.dtype_policy.name for x in plain.layers},
}
import tfmp
data = np.load(sys.argv[2])
losses = []
for path in sys.argv[3:]:
    model = tfmp.load(path)
    model.run_eagerly = True
    for x, y in zip(data["x"], data["y"]):
        losses.append(model.train_on_batch(x, y))
print(json.dumps(facts | {"losses": [float(x) for x in losses]}))
"""


def network(*middle):
    keras.utils.set_random_seed(0)
    with policies.scope(HALF):
        head = keras.layers.Dense(1, dtype="float32", name="head")
        body = keras.layers.Dense(5, "tanh", name="body")
        return keras.Sequential([keras.Input((4,)), body, *middle, head])


def trained(model):
    for x, y in zip(X.reshape(8, 4, 4)[:STEPS], Y.reshape(8, 4, 1)[:STEPS], strict=True):
        model.train_on_batch(x, y)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saved models by what they are."""
    folder = tmp_path_factory.mktemp("saved")
    with policies.scope(HALF):
        model = network()
        model.compile("adam", "mse", run_eagerly=True, jit_compile=False)
    scaled = keras.optimizers.LossScaleOptimizer
    assert isinstance(model.optimizer, scaled)
    # Or its first steps overflow, and are skipped.
    model.optimizer.initial_scale = 1024.0
    trained(model).save(folder / "keras.keras")
    model.save_weights(folder / "keras.weights.h5")
    own = network()
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.AdamW(0.01), initial_scale=1024.0)
    tfmp.compile(own, optimizer, loss="mse", run_eagerly=True, jit_compile=False)
    trained(own).save(folder / "ours.keras")
    network().save(folder / "uncompiled.keras")
    dropout = tfmp.compile(network(keras.layers.Dropout(0.5)), "sgd", loss="mse", jit_compile=False)
    trained(dropout).save(folder / "dropout.keras")
    np.savez(folder / "data.npz", x=X.reshape(8, 4, 4)[STEPS:], y=Y.reshape(8, 4, 1)[STEPS:])
    return folder, own


@pytest.fixture(scope="module")
def fresh(folder):
    """What a fresh process finds, and its losses after `tfmp.load`."""
    place, _ = folder
    words = [str(place / name) for name in ("keras.keras", "data.npz", "ours.keras")]
    ended = subprocess.run([sys.executable, "-c", FRESH, *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_loaded_model_goes_on_with_the_losses_of_the_uninterrupted_one(folder, fresh):
    _, model = folder
    pairs = zip(X.reshape(8, 4, 4)[STEPS:], Y.reshape(8, 4, 1)[STEPS:], strict=True)
    uninterrupted = [float(model.train_on_batch(x, y)) for x, y in pairs]
    assert fresh["losses"] == uninterrupted and len(set(uninterrupted)) == len(uninterrupted)


def run(*words):
    return audit.run(cli.parse(audit.Config, [str(word) for word in words]))


def by_name(found):
    return {part["name"]: (part["keras"], part["tfmp"]) for part in found["parts"]}


def test_a_mixed_model_of_keras_own(folder, fresh, capsys):
    """Keras loses scale and optimizer state, as a fresh process shows; `tfmp.load` doesn't."""
    place, _ = folder
    found = run(place / "keras.keras", f"--output={place / 'audit.json'}")
    assert by_name(found) == {
        "float32 weights": ("restored", "restored"),
        "policy": ("restored", "restored"),
        "optimizer": ("lost", "restored"),
        "loss scale": ("lost", "restored"),
        "random state": ("none needed", "none needed"),
    }
    assert fresh["scaled"] is False and fresh["iterations"] == 0 and fresh["skipped"]
    assert fresh["policies"] == found["policies"] == {"body": HALF, "head": "float32"}
    assert (found["optimizer"], found["iterations"], found["loss_scale"]) == ("Adam", STEPS, 1024.0)
    assert any("Skipping variable loading" in x for x in found["keras_warnings"])
    assert json.loads((place / "audit.json").read_text())["parts"] == found["parts"]
    out = capsys.readouterr().out
    assert "Adam, 10 arrays, 4 updates" in out and "1024" in out


@pytest.fixture
def in_process(monkeypatch):
    """Loads without another process, which is no fresh one then: all classes are known."""

    def run(command, environment, limit_s):
        return json.loads(json.dumps(loaded.load(json.loads(command[-1]))))

    monkeypatch.setattr(children, "run", run)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("ours.keras", None),
        ("uncompiled.keras", "optimizer, loss scale"),
        ("dropout.keras", "random state"),
    ],
)
def test_what_is_missing_is_said(folder, in_process, capsys, name, lacking):
    if lacking is None:
        assert {part["tfmp"] for part in run(folder[0] / name)["parts"][:4]} == {"restored"}
        return
    with pytest.raises(errors.DifferentError, match=f"{name}: {lacking}: missing") as raised:
        run(folder[0] / name)
    assert raised.value.exit_status == 10


def test_weights_alone(folder, capsys):
    with pytest.raises(errors.DifferentError, match="takes no file of weights alone"):
        run(folder[0] / "keras.weights.h5")
    out = capsys.readouterr().out
    assert "4 arrays: float32" in out and "unnamed, 10 arrays, 4 updates" in out


def test_a_run(trained_run, in_process, tmp_path):
    """All of its state is in its checkpoints, of dropout too; its model.keras has weights only."""
    found = run(trained_run / "checkpoints", "--output", tmp_path / "audit.json")
    assert found["kind"] == "run"
    assert {part["tfmp"] for part in found["parts"]} == {"restored"}
    keras_alone = {name: status for name, (status, _) in by_name(found).items()}
    assert keras_alone["optimizer"] == keras_alone["loss scale"] == "lost"
    assert keras_alone["policy"] == "restored"


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """The folder of a run with dropout, in float16."""
    from tfmp.recipes import tabular

    place = tmp_path_factory.mktemp("run") / "run"
    words = ["--epochs=1", "--dropout=0.2", "--measure_inference=false", "--jit_compile=false"]
    tabular.run(cli.parse(tabular.Config, [*words, "--policy=mixed_float16", f"--workdir={place}"]))
    return place


def test_half_weights_are_no_master_weights(tmp_path, in_process):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype="float16")])
    model.save(tmp_path / "half.keras")
    with pytest.raises(errors.DifferentError, match="float32 weights, optimizer, loss scale"):
        run(tmp_path / "half.keras")


def test_classes_of_its_own_are_named(tmp_path, monkeypatch, in_process, twice):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    layer, source = twice
    (tmp_path / "theirs.py").write_text(source)
    inputs = keras.Input((4,))
    with policies.scope("mixed_float16"):
        model = keras.Model(inputs, keras.layers.Dense(1)(layer()(inputs)))
    tfmp.compile(model, "sgd", loss="mse").save("own.keras")
    keras.saving.get_custom_objects().pop("theirs>Twice")
    said = r"its own \(theirs>Twice\): name the modules .* --modules"
    with pytest.raises(errors.UserError, match=said) as raised:
        run("own.keras")
    assert "\n" not in str(raised.value)
    assert by_name(run("own.keras", "--modules=theirs"))["loss scale"] == ("restored", "restored")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Expected a .keras file"),
        (["none.keras"], "which is not there"),
        (["text.keras"], "Can't read text.keras: it is damaged"),
        (["cut.keras"], "Can't read cut.keras: it is damaged"),
        (["foreign.keras"], "Can't read foreign.keras"),
        (["text.weights.h5"], "Can't read text.weights.h5"),
        (["empty"], "Expected a .keras file"),
        (["run"], "and a checkpoint"),
        (["run/checkpoints/ckpt-3"], "Expected a .keras file"),
        (["x.keras", "--limit_seconds=0"], "above 0"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    for name in ("text.keras", "text.weights.h5"):
        (tmp_path / name).write_text("no model")
    whole = (folder[0] / "ours.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "foreign.keras", "w") as archive:
        archive.writestr("readme.txt", "no model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(errors.UserError, match=said) as raised:
        run(*words)
    assert "\n" not in str(raised.value)


def test_modules_that_can_not_be_imported(folder, in_process):
    with pytest.raises(errors.UserError, match="--modules: nowhere can't be imported"):
        run(folder[0] / "ours.keras", "--modules=nowhere")


def test_without_loading_the_file_is_looked_at(folder):
    found = run(folder[0] / "ours.keras", "--load=false")
    assert {part["tfmp"] for part in found["parts"][:4]} == {"not loaded"}


HELD = contents.Contents(
    kind="keras",
    path=None,
    keras_path=None,
    weights=("a", "b"),
    dtypes={"float32": 2},
    seeds=("s",),
    policies={"x": HALF, "y": "float32"},
    optimizer="Adam",
    scaled=True,
    scale=8.0,
    state=("i", "m"),
    iterations=3,
    classes=(),
)
STATE = {
    "weights": ["b", "a"],
    "seeds": ["s"],
    "policies": {"x": HALF, "y": "float32"},
    "optimizer": "Adam",
    "scaled": True,
    "scale": 8.0,
    "state": ["i", "m"],
}


@pytest.mark.parametrize(
    ("held", "state", "part", "status"),
    [
        ({}, {}, "all", "restored"),
        ({}, {"weights": ["a", "a"]}, "float32 weights", "lost"),
        ({"dtypes": {"float16": 2}}, {}, "float32 weights", "not in the file"),
        ({}, {"policies": {"x": "float32", "y": "float32"}}, "policy", "lost"),
        ({}, {"policies": {"z": "float32"}}, "policy", "lost"),
        ({}, {"optimizer": "SGD"}, "optimizer", "lost"),
        ({}, {"state": ["i", "other"]}, "optimizer", "lost"),
        ({"iterations": 0, "state": ("i",)}, {"state": []}, "optimizer", "restored"),
        ({}, {"scale": 4.0}, "loss scale", "lost"),
        ({}, {"scaled": False}, "loss scale", "lost"),
        ({"scale": None, "scaled": False}, {}, "loss scale", "not in the file"),
        ({}, {"seeds": ["other"]}, "random state", "lost"),
        ({"seeds": ()}, {}, "random state", "not in the file"),
        ({"seeds": ()}, {"seeds": []}, "random state", "none needed"),
    ],
)
def test_verdicts(held, state, part, status):
    held = dataclasses.replace(HELD, **held)
    found = {x.name: x.tfmp for x in judge.parts(held, None, STATE | state)}
    changed = {name: said for name, said in found.items() if said != "restored"}
    expected = {} if status == "restored" else {part: status}
    assert changed == expected


def test_a_float32_model_needs_no_loss_scale():
    held = dataclasses.replace(HELD, policies={"x": "float32"}, scaled=False, scale=None)
    parts = {x.name: x for x in judge.parts(held, {"error": "x"}, STATE)}
    assert parts["loss scale"].tfmp == parts["loss scale"].keras == "none needed"
    assert parts["optimizer"].keras == "not loaded"
