"""`python -m tfmp advise`: sizes, prediction, verdicts, mistakes, and one small probe."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfmp import __main__, cli, errors, hardware, models, policies
from tfmp.commands import advise
from tfmp.commands.advise import calls, predict, probe, session, target, verdict
from tfmp.commands.benchmark import children, rows, timing
from tfmp.models import flops, gpt

ROOT = pathlib.Path(__file__).parents[2]
H100 = hardware.Device("gpu", "NVIDIA H100 80GB HBM3", 1, (9, 0), 80 * 10**9)
PASCAL = hardware.Device("gpu", "NVIDIA GeForce GTX 1080", 1, (6, 1), 8 * 10**9)
CPU = hardware.Device("cpu", "AMD EPYC", 1, None, 8 * 10**9)
NO_PREDICTION = {"reason": "none", "steps": []}
MODELS = """
import keras
from keras import layers

number = 3
def small():
    return keras.Sequential([keras.Input((6,)), layers.Dense(12), layers.Dense(3, "softmax")])
def unbuilt():
    return keras.Sequential([layers.Dense(3)])
def any_size():
    return keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3)])
def text():
    return keras.Model(x := keras.Input((), dtype="string"), layers.Identity()(x))
def frozen():
    return keras.Sequential([keras.Input((6,)), layers.ReLU()])
def a_number():
    return 3
def needs(size):
    return size
def fails():
    raise RuntimeError("their bug")
def fixed():
    return keras.Sequential([keras.Input(batch_shape=(4, 6)), layers.Dense(3)])
"""


def tiny():
    """Two products and a normalization, under mixed_float16; the last layer in float32."""
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(16, 1, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, dtype="float32", name="head")(x))


@pytest.fixture(scope="module")
def work():
    with policies.scope("mixed_float16"):
        return calls.of_model(tiny())


@pytest.fixture(scope="module")
def resnet50():
    with policies.scope("mixed_float16"):
        model = models.build("resnet50", classes=1000, input_shape=(224, 224, 3))
        return calls.of_model(model)


# --- what a model does


def test_calls_by_hand(work):
    found = {call["name"]: call for call in work["calls"]}
    assert list(found) == ["conv", "norm", "pool", "head"]
    assert found["conv"]["multiply_adds"] == 16 * 3 * 16
    assert (found["conv"]["inputs"], found["conv"]["outputs"]) == (48, 256)
    assert (found["conv"]["input_size"], found["conv"]["output_size"]) == (3, 16)
    assert found["conv"]["fixed"] == ["input_size"] and found["conv"]["rows"] is None
    assert found["norm"]["passes"] == (0, 8)
    assert (found["head"]["dtype"], found["conv"]["dtype"]) == ("float32", "float16")
    assert found["head"]["fixed"] == ["output_size"] and found["head"]["rows"] == 1
    assert work["multiply_adds"] == 768 + 160
    assert work["parameters"] == 64 + 32 + 170
    assert work["uncounted"] == [] and work["output_dtypes"] == ["float32"]


def test_layers_in_layers_and_several_calls_count():
    inputs = keras.Input((16,), dtype="int32", name="ids")
    x = layers.Embedding(100, 12)(inputs)
    x = layers.MultiHeadAttention(2, 5, name="attention")(x, x)
    twice = layers.Dense(12)
    x = layers.GlobalAveragePooling1D()(twice(twice(x)))
    found = calls.of_model(keras.Model({"ids": inputs}, {"out": layers.Dense(3)(x)}))
    sizes = [(c["type"], c["input_size"], c["output_size"]) for c in found["calls"] if "rows" in c]
    assert sizes == [
        *[("EinsumDense", 12, 10)] * 3,
        ("EinsumDense", 10, 12),
        *[("Dense", 12, 12)] * 2,
        ("Dense", 12, 3),
    ]
    assert found["multiply_adds"] == 4 * 16 * 120 + 2 * 16 * 144 + 36
    assert found["uncounted"] == ["MultiHeadAttention"]


@pytest.mark.parametrize(
    ("layer", "adds", "sizes"),
    [
        (layers.Conv2D(8, 3, groups=2, padding="same"), 36 * 8 * 9 * 2, (2, 8)),
        (layers.Conv2DTranspose(8, 2, strides=2), 36 * 4 * 4 * 8, (4, 8)),
        (layers.SeparableConv2D(8, 3, padding="same"), 36 * (9 * 4 + 4 * 8), (4, 8)),
        (layers.DepthwiseConv2D(3, padding="same"), 36 * 4 * 9, None),
    ],
)
def test_kinds_of_convolutions(layer, adds, sizes):
    (call,) = calls.of_model(keras.Sequential([keras.Input((6, 6, 4)), layer]))["calls"]
    assert call["multiply_adds"] == adds and call["passes"] == (3, 3)
    assert (call["input_size"], call["output_size"]) == sizes if sizes else "rows" not in call


def test_the_model_is_left_as_it_was():
    model = tiny()
    before = [set(vars(layer)) for layer in model.layers]
    calls.of_model(model)
    assert [set(vars(layer)) for layer in model.layers] == before


def test_sizes_off_the_alignment(work):
    conv, head = predict.misaligned(work)
    assert (conv["name"], conv["multiple_of"], conv["share"]) == ("conv", 8, 768 / 928)
    (size,) = conv["sizes"]
    assert size == {"of": "input channels", "size": 3, "better": 8, "fixed": True}
    (size,) = head["sizes"]  # in float32, for TF32: 4 values are 16 bytes
    assert size == {"of": "units", "size": 10, "better": 12, "fixed": True}
    assert predict.misaligned_batches(work, [8, 10, 12]) == [10]


# --- prediction


def test_a_step_by_hand(work):
    """All in units of which 1,000 elements a second pass and one operation takes 1 ns."""
    rates = {"peaks": {"float16": 1e9, "float32": 1e9}, "bandwidth": 1e3}
    found = predict.step(work, 2, half="float16", **rates)
    half = 2 * 2 * (3 * (48 + 256) + 8 * 256 + 2 * (256 + 16))
    float32 = 4 * 2 * 3 * (16 + 10)
    weights = 266 * (3 * 2 + 5 * 4)
    assert found["seconds"] == pytest.approx((half + float32 + weights) / 1e3)
    assert found["bytes_share"] == 1
    slow = predict.step(work, 2, half=None, **rates)
    assert slow["seconds"] == pytest.approx((2 * half + float32 + 266 * 8 * 4) / 1e3)
    rates = {"peaks": {"float16": 1.0, "float32": 0.5}, "bandwidth": 1e12}
    found = predict.step(work, 2, half="float16", **rates)
    assert found["seconds"] == pytest.approx(2 * 6 * (768 / 1.0 + 160 / 0.5))
    assert found["bytes_share"] < 1e-6


def test_resnet50_on_an_h100_is_near_its_own_bound(resnet50):
    """27 ms by counting bytes (SPEED.md); 43.6 ms and a gain of 5877/3186 were measured."""
    found = predict.gains(resnet50, [256], H100, "mixed_float16", tf32=True)
    (one,) = found["steps"]
    assert one["policy_ms"] == pytest.approx(27, rel=0.25)
    assert one["bytes_share"] > 0.5
    assert one["gain"] == pytest.approx(5877 / 3186, rel=0.15)


@pytest.mark.parametrize(
    ("device", "policy", "said"),
    [
        (CPU, "mixed_float16", "datasheets of GPUs only"),
        (PASCAL, "mixed_float16", "no datasheet of NVIDIA GeForce GTX 1080"),
        (
            hardware.Device("gpu", "Tesla T4", 1, (7, 5)),
            "mixed_bfloat16",
            "Tesla T4 with bfloat16",
        ),
        (H100, "float32", "compared with"),
    ],
)
def test_no_prediction_says_why(work, device, policy, said):
    found = predict.gains(work, [8], device, policy, tf32=False)
    assert found["steps"] == [] and said in found["reason"]


# --- verdicts


def row(policy, batch_size, speed, *, memory=None, problems=(), error=None, xla=True):
    outcome = {
        "first_step_s": 1.0,
        "to_first_step_s": 2.0,
        "window_s": [20 * batch_size / speed] * 3,
        "steps": 20,
        "problems": list(problems),
        "peak_memory_bytes": memory,
        "device": {"kind": "gpu", "name": "x"},
    }
    case = rows.Case(policy, xla, batch_size, "device", "recipe")
    return rows.summarize("tfmp", case, [{"error": error} if error else outcome])


def judged(device, *measured, compared="mixed_float16", predicted=NO_PREDICTION):
    return verdict.judge(measured, compared, device, predicted)


def test_half_on_a_cpu_is_not_worth_it_and_the_figure_says_so():
    slow, fast = row("float32", 32, 400, xla=False), row("float32", 32, 500)
    found = judged(CPU, slow, fast, row("mixed_float16", 32, 300))
    assert found["worth_it"] is False and found["use"] == "float32"
    assert found["text"] == (
        "mixed_float16 is not worth it: 0.60x the speed of float32, measured at batch 32, under "
        "1.1x. A CPU has no tensor cores for float16. Use float32."
    )
    assert (found["batch_size"], found["jit_compile"]) == (32, True)


def test_half_on_a_gpu_without_tensor_cores():
    found = judged(PASCAL, row("float32", 32, 100), row("mixed_float16", 32, 105))
    assert found["worth_it"] is False
    assert "1.05x" in found["text"] and "This GPU has no tensor cores for float16." in found["text"]
    # Memory traffic alone may be worth it: what was measured counts.
    found = judged(PASCAL, row("float32", 32, 100), row("mixed_float16", 32, 130))
    assert found["worth_it"] is True and "no tensor cores" in found["text"]


def test_an_h100_with_its_prediction():
    steps = [{"batch_size": 256, "gain": 1.99}]
    predicted = {"reason": None, "steps": steps}
    measured = row("float32", 256, 3186), row("mixed_float16", 256, 5877)
    found = judged(H100, *measured, predicted=predicted)
    assert found["text"] == (
        "mixed_float16 is worth it: 1.84x the speed of float32, measured at batch 256 (predicted "
        "1.99x)."
    )
    measured = row("float32", 256, 3186), row("mixed_float16", 256, 3200)
    found = judged(H100, *measured, predicted=predicted)
    assert found["worth_it"] is False and "too small to fill it" in found["text"]
    assert "1.99x the speed of float32; not measured" in judged(H100, predicted=predicted)["text"]


def test_what_failed_or_is_doubtful_gives_no_verdict():
    broken = row("mixed_float16", 32, 1, error="no memory for batch size 32")
    found = judged(H100, row("float32", 32, 100), broken)
    assert found["worth_it"] is None and "mixed_float16: no memory for" in found["text"]
    odd = row("mixed_float16", 32, 300, problems=["the loss did not fall"])
    found = judged(H100, row("float32", 32, 100), odd)
    assert found["worth_it"] is None and found["gain"] == pytest.approx(3)
    assert "doubtful: mixed_float16: the loss did not fall" in found["text"]
    found = judged(CPU, row("float32", 32, 100), compared="float32")
    assert (found["worth_it"], found["use"]) == (None, "float32")


def test_without_a_probe_a_lack_of_units_decides():
    assert judged(CPU)["use"] == "float32" and "no tensor cores" in judged(CPU)["text"]
    assert judged(H100)["use"] == "mixed_float16"


def test_the_fastest_batch_and_the_one_that_would_fit():
    measured = [
        row("mixed_float16", 64, 98, memory=3 * 10**9),
        row("mixed_float16", 128, 100, memory=5 * 10**9),
        row("mixed_float16", 256, 99, error="out of memory"),
    ]
    assert verdict.fastest(measured, "mixed_float16")["batch_size"] == 64
    # 1 GB for all and 31.25 MB an example: 71 GB hold 2272.
    assert verdict.largest_batch(measured, "mixed_float16", H100) == 2272
    assert verdict.largest_batch(measured, "mixed_float16", CPU) is None
    assert verdict.largest_batch(measured[:1], "mixed_float16", H100) is None
    measured[1] = row("mixed_float16", 128, 110)
    assert verdict.fastest(measured, "mixed_float16")["batch_size"] == 128


# --- a run whose children are played


def play(monkeypatch, device, work, speeds, policy="mixed_float16", **settings):
    """Makes `advise` see a device, a model and speeds by (policy, batch size)."""
    facts = {
        "device": dataclasses.asdict(device),
        "tf32": device.kind == "gpu" and device.compute_capability >= (8, 0),
        "policy": {"name": policy, "reason": "played"},
        "compared": "mixed_float16",
        "jit_compile": {"float32": [True], "mixed_float16": [True]},
        "work": work,
        "versions": {"tensorflow": "2.21.0"},
        "git_commit": None,
        "settings": {
            "target": "resnet",
            "model": "resnet50",
            "image_size": 224,
            "batch_sizes": sorted({batch for _, batch in speeds}),
            "steps": 20,
            "limit_seconds": 600,
        }
        | settings,
    }

    def measure(program, spec, **_):
        speed = speeds[spec["policy"], spec["batch_size"]]
        if isinstance(speed, str):
            raise children.ChildError(speed)
        ((outcome,),) = [row(spec["policy"], spec["batch_size"], speed, memory=2**30)["repeats"]]
        return outcome | {"device": facts["device"]}

    monkeypatch.setattr(children, "run", lambda *_: json.loads(json.dumps(facts)))
    monkeypatch.setattr(children, "measure", measure)


def test_a_run_on_an_h100(monkeypatch, tmp_path, capsys, resnet50):
    speeds = {
        ("float32", 128): 3100,
        ("mixed_float16", 128): 5500,
        ("float32", 256): "no memory for batch size 256",
        ("mixed_float16", 256): 5877,
    }
    play(monkeypatch, H100, resnet50, speeds)
    file = tmp_path / "advice.json"
    results = advise.run(cli.parse(advise.Config, ["resnet", f"--output={file}"]))
    assert json.loads(file.read_text()) == json.loads(json.dumps(results))
    out = capsys.readouterr().out
    for said in (
        "compute capability 9.0, 74.5 GiB",
        "tensor cores for float16, bfloat16, TF32 and FP8 (which Keras does not train in)",
        "989.4 TFLOP/s in float16, 494.7 TFLOP/s in TF32, 66.9 TFLOP/s in float32; 3.35 TB/s",
        "resnet50, 224 px: 4.09 G multiply-adds an example, 25.6 M parameters",
        "stem_conv (Conv2D, 2.9% of the work): input channels 3 (the data's own: leave it)",
        "mostly memory traffic",
        "failed: no memory for batch size 256",
        "batch 128: mixed_float16 has 1.77x the speed",
        "mixed_float16 is worth it: 1.77x the speed of float32, measured at batch 128 (predicted",
        "Batch size 256, with XLA: the fastest measured in mixed_float16.",
    ):
        assert said in " ".join(out.split()), said
    assert len(out.splitlines()) < 45 and max(map(len, out.splitlines())) <= 120
    assert results["advice"]["worth_it"] is True and len(results["measured"]) == 4


def test_a_run_on_a_cpu_that_was_asked_for_half(monkeypatch, capsys, work):
    play(monkeypatch, CPU, work, {("float32", 32): 500, ("mixed_float16", 32): 300})
    results = advise.run(cli.parse(advise.Config, ["--policy=mixed_float16"]))
    out = " ".join(capsys.readouterr().out.split())
    assert "no tensor cores, which are what" in out
    assert "mixed_float16 is not worth it: 0.60x the speed of float32" in out
    assert "none: datasheets of GPUs only are at hand" in out
    assert results["advice"]["gain"] == pytest.approx(0.6)


def test_a_run_without_a_probe(monkeypatch, capsys, work):
    play(monkeypatch, PASCAL, work, {("float32", 32): "not asked"}, policy="float32")
    results = advise.run(cli.parse(advise.Config, ["--noprobe"]))
    out = " ".join(capsys.readouterr().out.split())
    assert results["measured"] == [] and "Not measured (--probe=false)." in out
    assert "no tensor cores" in out and "compared with mixed_float16" in out


# --- mistakes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["resnet", "resnet"], "one TARGET and flags"),
        (["none"], "Expected a recipe out of "),
        (["--model=none"], "--model=none"),
        (["--policy=float16"], "<auto|mixed_float16|mixed_bfloat16|float32>"),
        (["--batch_sizes=0"], "--batch_sizes above 0"),
        (["--batch_sizes=8,8"], "each once. Received: 8,8"),
        (["--steps=0"], "--steps above 0"),
        (["a:b", "--model=resnet50"], "are of recipes"),
        (["--output=/proc/no/file.json"], "Can't write --output"),
    ],
)
def test_mistakes_are_one_line_and_status_2(flags, said, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["advise", *flags])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_help(capsys):
    __main__.main(["advise", "--help"])
    out = capsys.readouterr().out
    assert "Usage: python -m tfmp advise [TARGET] [--flagfile=FILE]" in out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "their_models.py").write_text(MODELS)
    (tmp_path / "their_damage.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("their_models", None)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("their_models:", "Expected MODULE:FUNCTION"),
        ("no_such_module:small", "There is no module 'no_such_module'"),
        ("their_damage:small", "can't be imported: ModuleNotFoundError.*no_such_package"),
        ("their_models:nothing", "'nothing', which is not there"),
        ("their_models:number", "'number', which is int"),
        ("their_models:a_number", "to return a Keras model"),
        ("their_models:needs", "called without arguments: TypeError"),
        ("their_models:fails", r"RuntimeError: their bug \(.*their_models.py, line \d+\)"),
        ("their_models:unbuilt", "is not built"),
        ("their_models:any_size", "of known sizes but for the batch"),
        ("their_models:text", "inputs of numbers"),
        ("their_models:frozen", "weights to train"),
    ],
)
def test_functions_that_are_none(folder, named, said):
    with pytest.raises(errors.UserError, match=said):
        target.load(named, "float32")


def test_a_model_may_come_with_its_data_as_for_matrix(folder):
    file = folder / "their_models.py"
    file.write_text(file.read_text() + "\n\ndef pair():\n    return small(), ([[0.0]], [0])\n")
    assert target.load("their_models:pair", "float32").built


def test_a_mistake_of_a_function_comes_back_from_the_child(folder, monkeypatch):
    spec = {"target": "their_models:fixed", "policy": "float32", "batch_sizes": (8,)}
    spec |= {"model": None, "image_size": None}
    mistake = probe.facts(spec)
    assert "--batch_sizes=4. Received: 8" in mistake["mistake"]
    monkeypatch.setattr(children, "run", lambda *_: mistake)
    with pytest.raises(errors.UserError, match="batch_sizes=4"):
        session.advise(cli.parse(advise.Config, ["their_models:fixed"]))


# --- the probe of a function's model


def several():
    """Inputs in a dict, of floats and integers; outputs: probabilities, unit vectors, integers."""
    inputs = {"ids": keras.Input((5,), dtype="int32", name="ids"), "x": keras.Input((7,), name="x")}
    x = layers.Embedding(10, 8)(inputs["ids"])
    x = layers.Concatenate()([layers.Flatten()(x), layers.Dropout(0.1)(inputs["x"])])
    x = layers.Dense(8, "relu")(x)
    outputs = {
        "p": layers.Dense(4, "softmax")(x),
        "unit": layers.UnitNormalization(dtype="float32")(layers.Dense(4)(x)),
        "ids": inputs["ids"],
    }
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_loss_of_any_model_falls(policy):
    keras.utils.set_random_seed(0)
    with policies.scope(policy):
        model = several()
    fitted = probe.compiled(model, jit_compile=False)
    data = probe.batch(model, 16)
    assert data[0]["ids"].shape == (16, 5) and set(np.unique(data[0]["ids"])) == {0, 1}
    work = probe.FunctionWork(fitted, data, fitted.make_train_function())
    measured = timing.measure(work, steps=5, windows=3)
    assert measured["loss"][1] < measured["loss"][0]
    assert not [p for p in measured["problems"] if "advanced" in p or "weights" in p]
    assert work.count() == 1 + 1 + 5 + 3 * 6 + 5


def test_the_pattern_is_one_zero_one():
    found = probe._distance(tf.constant([[[1.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]]))
    np.testing.assert_allclose(found, [0, 2 / 3])
    np.testing.assert_allclose(probe._distance(tf.constant([1.0, 0.0])), [0, 1])


def test_a_small_run_as_a_user_starts_it(folder):
    """On the CPU, from the function to the file; this process leaves the device to the probes."""
    words = ["advise", "their_models:small", "--policy=mixed_float16", "--batch_sizes=8"]
    words += ["--steps=3", "--output=out.json"]
    code = f"""if True:
        from tfmp import __main__, hardware
        __main__.main({words})
        assert not hardware.started()
    """
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads((folder / "out.json").read_text())
    measured = results["measured"]
    ways = [("float32", False), ("float32", True), ("mixed_float16", True)]
    assert [(one["policy"], one["jit_compile"]) for one in measured] == ways
    # On a busy machine a window of 3 small steps may be too short to be believed.
    assert all(one["status"] in ("ok", "invalid") for one in measured)
    assert all(one["images_per_second"]["median"] > 0 for one in measured)
    assert all("loss" not in (one["reason"] or "") for one in measured)
    assert results["gains"][0]["gain"] > 0
    assert "A CPU has no tensor cores for float16." in " ".join(ended.stdout.split())
    sizes = {one["name"]: one["sizes"] for one in results["misaligned"]}
    assert [size["size"] for name in sizes for size in sizes[name]] == [6, 12, 12, 3]
    assert results["device"]["kind"] == "cpu" and results["versions"]["keras"]


def test_a_language_model_is_counted_whole():
    model = gpt.MODELS["gpt_micro"](vocabulary=50, context=6)
    found = calls.of_model(model)
    assert found["multiply_adds"] == flops.multiply_adds(model) and not found["uncounted"]
    logits = [call for call in found["calls"] if call.get("output_size") == 50]
    assert [(call["type"], call["rows"]) for call in logits] == [("ReversibleEmbedding", 6)]
    off = {one["name"]: one["sizes"] for one in predict.misaligned(found)}
    (size,) = off["tokens_embedding"]
    assert (size["size"], size["fixed"]) == (50, True)


def test_a_language_models_batches_are_small():
    spec = {"target": "gpt", "model": None, "image_size": None, "batch_sizes": ()}
    gpu = hardware.Device("gpu", "X", 1, memory_bytes=80 * 10**9)
    found = target.defaults(spec, gpu)
    assert (found["model"], found["batch_sizes"]) == ("gpt2_small", (8, 16))
    assert found["image_size"] is None
