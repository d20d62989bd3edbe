"""`python -m tfmp matrix`: planted faults in their cells, verdicts by hand, mistakes, the zoo."""

import contextlib
import json
import pathlib
import re

import fresh
import pytest

from tfmp import __main__, errors, recipes
from tfmp.commands import matrix
from tfmp.commands.advise import target
from tfmp.commands.benchmark import children
from tfmp.commands.matrix import cell, judge, reload, session

MODELS = pathlib.Path(__file__).with_name("matrix_models.py")
NAME = "their_matrix_models"


@pytest.fixture
def their_models(tmp_path, monkeypatch):
    """The current folder has a module of functions; gives its name."""
    (tmp_path / f"{NAME}.py").write_text(MODELS.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return NAME


def train(folder, target, policy="mixed_float16", jit_compile=False, **spec):
    """What a cell of one replica finds, in this process, and after a fresh load."""
    spec = {"steps": 4, "batch_size": 8, "flags": [], "folder": str(folder), **spec}
    spec |= {"target": target, "policy": policy, "jit_compile": jit_compile, "replicas": 1}
    found = cell.train(spec)
    if not {"error", "mistake", "reload"} & set(found):
        found |= {
            "reload": reload.compare({"target": target, "folders": [str(folder)]})[str(folder)]
        }
    return found


def judged(found, policy="mixed_float16", reference=None):
    of = session.Cell("theirs", policy, False, 1)
    return judge.reasons(of, json.loads(json.dumps(found)), reference, 0.1)


@pytest.fixture(scope="module")
def references():
    """What float32 without XLA finds, by the name of the function."""
    return {}


# Keras says no more of it than this.
@pytest.mark.filterwarnings("ignore:(.*\n)*.*Gradients do not exist for variables")
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.parametrize(
    ("function", "policy", "jit_compile", "said"),
    [
        ("good", "mixed_float16", True, None),
        ("unbuilt", "float32", False, None),
        ("unbuilt", "mixed_float16", True, None),
        ("steep", "mixed_float16", False, None),
        ("lists", "mixed_float16", False, None),
        ("noise", "mixed_float16", False, None),
        ("stateful", "mixed_float16", False, None),
        ("step_only", "mixed_float16", True, None),
        ("with_nothing", "mixed_float16", False, None),
        ("unsaved", "mixed_bfloat16", False, "the model can't be saved: NotImplementedError: "),
        ("of_float32", "mixed_float16", False, "no layer computes in float16"),
        ("of_float16", "float32", False, "layers compute in float16 by a policy of their own"),
        ("of_float16", "mixed_bfloat16", False, "layers compute in float16"),
        ("softmax_head", "float32", False, None),
        ("softmax_head", "mixed_float16", False, "outputs are float16: give the last layer"),
        ("softmax_head", "mixed_bfloat16", False, "outputs are bfloat16"),
        ("mask", "float32", True, None),
        ("mask", "mixed_float16", False, "all 19 steps were skipped"),
        ("mask", "mixed_float16", True, "all 19 steps were skipped"),
        ("mask", "mixed_bfloat16", True, None),
        ("unscaled", "mixed_float16", False, "but the optimizer has no loss scale"),
        ("unscaled", "mixed_bfloat16", False, None),
        ("static_scale", "mixed_float16", False, "the loss scale is static"),
        ("static_scale", "float32", False, None),
        ("bicubic", "float32", True, "XLA can't compile ResizeBicubic in layer larger"),
        (
            "bicubic",
            "mixed_bfloat16",
            False,
            r"conv2d\w*/kernel, .*/bias did not change, and did in",
        ),
        ("lanczos", "float32", False, None),
        ("lanczos", "mixed_float16", False, "ScaleAndTranslateGrad"),
        ("bilinear", "float32", True, None),
        (
            "bilinear",
            "mixed_float16",
            True,
            "InternalError: .*different precisions .*ResizeBilinear",
        ),
        ("bilinear", "mixed_float16", False, None),
    ],
)
def test_a_planted_fault_is_red_in_its_cells_for_its_reason(
    tmp_path, their_models, references, function, policy, jit_compile, said
):
    target = f"{their_models}:{function}"
    if function not in references:
        references[function] = train(tmp_path, target, "float32")
    found = train(tmp_path, target, policy, jit_compile)
    reasons = judged(found, policy, references[function])
    if said is None:
        assert reasons == []
        losses = [loss for loss in found["losses"] if loss is not None]
        assert len(losses) == 4 and losses[-1] < losses[0]
    else:
        assert re.search(said, reasons[0]) and "\n" not in reasons[0], reasons


def test_dropout_drops_the_same_in_each_precision(tmp_path, their_models):
    target = f"{their_models}:dropout"
    for jit_compile in (False, True):
        reference = train(tmp_path, target, "float32", jit_compile)
        for policy in ("mixed_float16", "mixed_bfloat16"):
            found = train(tmp_path, target, policy, jit_compile)
            assert judge.deviation(found, reference) < 0.02


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("forgetful", "predicts something else in a fresh process"),
        ("shifted", "can't be used in a fresh process: its outputs are not finite there"),
    ],
)
def test_a_layer_that_forgets_is_red(tmp_path, their_models, function, said):
    (reason,) = judged(train(tmp_path, f"{their_models}:{function}"))
    assert said in reason


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nothing", "'nothing', which is not there"),
        ("a_model_alone", r"to return \(compiled Keras model, data\). Received: Sequential"),
        ("not_compiled", "Received: one that is not compiled"),
        ("no_data", r"arrays \(x, y\). Received: int"),
        ("as_dicts", "Received: a dataset of dict"),
        ("nothing_left", "Received: an empty dataset"),
        ("no_examples", r"along the first axis.* Received: an array of shape \(0, 8, 8, 2\)"),
        ("one_by_one", r"dataset.batch\(32\). Received: an array of shape \(\)"),
        ("with_arguments", "called without arguments: missing a required argument: 'units'"),
    ],
)
def test_what_a_function_has_to_return(tmp_path, their_models, monkeypatch, function, said):
    found = train(tmp_path, f"{their_models}:{function}")
    monkeypatch.setattr(children, "run", lambda *_: found)
    with pytest.raises(errors.UserError, match=said):
        matrix.run(matrix.Config(targets=(f"{their_models}:{function}",)))


GOOD = {
    "losses": [2.0, 1.5, 1.0, 0.5],
    "steps": 4,
    "skipped_steps": 0,
    "last_overflow_step": 0,
    "unchanged": [],
    "changed": True,
    "weights_finite": True,
    "outputs_finite": True,
    "output_dtypes": ["float32", "int64"],
    "uses_float16": True,
    "computes": "mixed_float16",
    "loss_scale": "dynamic",
    "scale": 2.0**15,
    "reload": {"difference": 0.0},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"losses": [None, 2.0, 1.5, 1.0], "skipped_steps": 1, "last_overflow_step": 1}, None),
        (
            {"losses": [2.0, 1.5, None, None], "skipped_steps": 2, "last_overflow_step": 4},
            "2 of 4 steps were skipped, up to step 4",
        ),
        # The loss scale has come down to where the first steps are good, and once more.
        (
            {
                "losses": [None, None, None, 2.0, 1.5, None, 1.0],
                "steps": 7,
                "skipped_steps": 4,
                "last_overflow_step": 6,
            },
            None,
        ),
        ({"losses": [2.0, None, None, 0.5]}, "the loss is not finite in 2 of 4 steps"),
        ({"changed": False}, "no weight has changed"),
        ({"weights_finite": False}, "weights are not finite"),
        ({"losses": [2.6, 1.5, 1.0, 0.5]}, "the mean loss is 1.4, 12% off float32's 1.25"),
        ({"unchanged": [(3, "a"), (4, "b/kernel")]}, "b/kernel did not change, and did in float32"),
        ({"losses": [2.4, 1.5, 1.0, 0.5]}, None),
        ({"scale": 1.0}, "collapsed to 1"),
        ({"scale": 1.0, "uses_float16": False, "loss_scale": "static"}, None),
        ({"reload": {"difference": 0.5}}, "by 0.5 of the largest output"),
        ({"reload": {"difference": 0.007}}, None),
        ({"reload": {"error": "Unknown layer"}}, "in a fresh process: Unknown layer"),
        ({"reload": {}}, None),
        ({"error": "ended by SIGABRT"}, "ended by SIGABRT"),
    ],
)
def test_verdicts(change, said):
    found = {"error": change["error"]} if "error" in change else GOOD | change
    reference = GOOD | {"unchanged": [(3, "other/a")]}
    reasons = judged(found, reference=reference)
    assert reasons == [] if said is None else len(reasons) == 1 and said in reasons[0]


def test_the_program_is_red_where_a_cell_is_and_says_so(their_models, monkeypatch, capsys):
    def fork(command, environment, limit_s):  # test_readme.py starts matrix' own children
        ended = fresh.run(*command[1:], env=environment, timeout=limit_s)
        return children._result(ended.returncode, ended.stdout, ended.stderr)

    monkeypatch.setattr(children, "run", fork)
    words = ["matrix", f"{their_models}:softmax_head", "--policies=float32,mixed_float16"]
    words += ["--jit_compile=false", "--replicas=1", "--output=matrix.json", "--steps=3"]
    with pytest.raises(SystemExit) as ended:
        __main__.main(words)
    assert ended.value.code == 10
    out, err = capsys.readouterr()
    assert "1 of 2 cells are red" in err, out
    (line,) = (x for x in out.splitlines() if x.startswith("red: "))
    assert line.startswith(
        f"red: {their_models}:softmax_head, mixed_float16, no XLA, 1 replica: out"
    )
    written = json.loads(pathlib.Path("matrix.json").read_text())
    first, second = written["cells"]
    assert (first["verdict"], second["verdict"]) == ("green", "red")
    assert second["deviation"] < 0.01 and second["reload"] == {"difference": 0.0}
    assert second["loss_scale"] == "dynamic" and len(second["losses"]) == 3
    assert written["environment"]["versions"]["keras"]


def test_a_loss_around_zero_is_compared_by_its_size():
    reference = GOOD | {"losses": [1.0, 0.2, -0.4, -0.8]}
    change = {"losses": [1.01, 0.21, -0.41, -0.79]}
    assert judged(GOOD | change, reference=reference) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "Expected a recipe out of .*'nothing'"),
        (["resnet", "--policies=float16"], "out of float32, mixed_float16"),
        (["resnet", "--replicas=3"], "--replicas, each once, out of 1, 2"),
        (["resnet", "--steps=1"], "--steps of 2 or more"),
        (["resnet", "--recipe_flags=--policy=float32"], "without --policy"),
        (["resnet", "--recipe_flags=--nothing=1"], "nothing"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(children, "run", lambda *_: pytest.fail("a child was started"))
    with pytest.raises(SystemExit) as ended:
        __main__.main(["matrix", *words])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and re.search(said, line)


@pytest.mark.parametrize("name", recipes.names())
def test_a_cell_of_each_recipe_is_green(tmp_path, name):
    config = matrix.Config(targets=(name,), batch_size=4)
    flags = session._flags(config, session.Cell(name, "mixed_float16", False, 1), tmp_path)
    assert judged(train(tmp_path, name, steps=3, flags=flags)) == []


def test_a_recipe_of_one_device_has_no_cells_of_two(capsys):
    cells = session._cells(matrix.Config(), "gan")
    assert [cell.replicas for cell in cells] == [1] * 6
    assert "gan: no cells of several replicas. Expected --strategy none" in capsys.readouterr().out
    assert len(list(session._cells(matrix.Config(), "resnet"))) == 12
    with pytest.raises(errors.UserError, match="or 1 among --replicas"):
        matrix.run(matrix.Config(targets=("gan",), replicas=(2,)))


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.names())
def test_all_cells_of_each_recipe_are_green(tmp_path, name):
    with contextlib.chdir(tmp_path):
        results = matrix.run(matrix.Config(targets=(name,), output="matrix.json"))
    assert len(results["cells"]) == (6 if name == "gan" else 12)
    assert {row["verdict"] for row in results["cells"]} == {"green"}


@pytest.mark.slow
def test_faults_are_red_on_two_replicas_too(their_models):
    config = matrix.Config(targets=(f"{their_models}:mask",), replicas=(2,), output="matrix.json")
    with pytest.raises(errors.DifferentError, match="2 of 6 cells are red"):
        matrix.run(config)
    cells = json.loads(pathlib.Path("matrix.json").read_text())["cells"]
    assert {row["policy"] for row in cells if row["verdict"] == "red"} == {"mixed_float16"}


def test_what_keras_says_of_a_model_that_does_not_load_is_a_line():
    """As Keras 3.15 has it, with the configs of all that is around the layer."""
    error = TypeError(
        "<class 'Functional'> could not be deserialized properly.\n\nconfig={'module': 'keras'}."
        "\n\nException encountered: Could not locate class 'Own'. Import\nit before.\n\n"
        "Full object config: {'module': 'models', 'class_name': 'Own'}"
    )
    assert target.said(error) == "TypeError: Could not locate class 'Own'. Import it before."
    bold = ValueError("Exception encountered when calling it.\n\n\x1b[1mWrong shape\x1b[0m")
    assert target.said(bold) == "ValueError: Exception encountered when calling it. Wrong shape."
    assert target.said(ValueError("x" * 9999 + "\n")) == f"ValueError: {'x' * 500}."
