"""`python -m tfmp benchmark`: rows, comparisons, mistakes, and one small measurement."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import types

import keras
import pytest
import tensorflow as tf

from tfmp import __main__, cli, errors, hardware, loss_scale
from tfmp.commands import benchmark
from tfmp.commands.benchmark import children, compare, ours, rows, session
from tfmp.recipes import resnet

ROOT = pathlib.Path(__file__).parents[2]
CASE = rows.Case("float32", True, 32, "device", "recipe")
TINY = ["--model=resnet_small", "--image_size=8", "--batch_sizes=8", "--steps=3", "--windows=3"]
TINY += ["--policies=float32", "--jit_compile=false"]


def outcome(step_ms=10.0, **changes):
    """What a child prints."""
    return {
        "first_step_s": 20.0,
        "to_first_step_s": 25.0,
        "window_s": [0.04 * step_ms, 0.03 * step_ms, 0.04 * step_ms],
        "window_at": [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)],
        "step_alone_s": [step_ms / 1e3],
        "late_s": [0.0],
        "steps": 40,
        "loss": (7.0, 6.0),
        "problems": [],
        "skipped_steps": 0,
        "peak_memory_bytes": 2**31,
        "multiply_adds": 10**9,
        "arithmetic": "tf32",
        "peak_tflops": 1000.0,
        "jit_compile": True,
        "device": {"kind": "gpu", "name": "NVIDIA X", "count": 1},
        "versions": {"tensorflow": "2.21.0", "tfmp": "0.1.0"},
        "git_commit": None,
        "watts": None,
    } | changes


def measure(monkeypatch, tmp_path, answer, *flags):
    """A run whose children are played by `answer(program, spec)`."""

    def play(program, spec, **_):
        found = answer(program, spec)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(children, "measure", play)
    words = [f"--output={tmp_path / 'new.json'}", "--inputs=device", "--policies=float32", *flags]
    return benchmark.run(cli.parse(benchmark.Config, words))


def test_a_row_by_hand():
    repeats = [outcome(10, watts=300.0), outcome(20, watts=500.0), outcome(8, watts=400.0)]
    row = rows.summarize("tfmp", CASE, repeats, repeats[0])
    assert row["images_per_second"] == {"median": 3200, "lowest": 1600, "highest": 4000, "n": 3}
    assert row["ms_per_step"]["median"] == pytest.approx(10)
    assert row["first_step_s"] == [20.0] * 3
    assert row["watts"] == 400 and row["joules_per_image"] == 400 / 3200
    assert row["tflops"] == pytest.approx(6 * 1e9 * 3200 / 1e12)
    assert row["share_of_peak"] == pytest.approx(0.0192)
    assert (row["status"], row["reason"]) == ("ok", None)


@pytest.mark.parametrize(
    ("changed", "status", "said"),
    [
        ({"problems": ["the loss did not fall"]}, "invalid", "did not fall"),
        ({"window_s": [1e-4] * 3}, "invalid", "more than the card can do"),
        ({"device": {"kind": "cpu", "name": "x86_64"}}, "invalid", "tfmp on NVIDIA X"),
    ],
)
def test_what_can_not_be_believed_is_marked(changed, status, said):
    row = rows.summarize("torch", CASE, [outcome(), outcome() | changed][::-1], outcome())
    if "window_s" in changed:
        row = rows.summarize("torch", CASE, [outcome() | changed], outcome())
    assert row["status"] == status and said in row["reason"]


def test_what_the_loss_scale_costs_and_the_ratio_to_the_peer():
    bare = dataclasses.replace(CASE, loss_scale="none")
    found = [
        rows.summarize("tfmp", CASE, [outcome(11)]),
        rows.summarize("tfmp", bare, [outcome(10)]),
        rows.summarize("torch", CASE, [outcome(22)]),
    ]
    rows.relate(found)
    assert found[0]["loss_scale_overhead"] == pytest.approx(0.1)
    assert found[0]["to_peer"] == pytest.approx(2.0)
    assert "loss_scale_overhead" not in found[1] and "to_peer" not in found[2]
    text = rows.table(found)
    assert "+10.0%" in text and "2.000" in text


def test_memory_against_speed_where_activations_are_computed_twice():
    computed = dataclasses.replace(CASE, remat=True)
    found = [
        rows.summarize("tfmp", CASE, [outcome(10)]),
        rows.summarize("tfmp", computed, [outcome(12.5, peak_memory_bytes=2**30)]),
    ]
    rows.relate(found)
    assert (found[1]["remat_speed"], found[1]["remat_memory"]) == (pytest.approx(0.8), 0.5)
    assert "remat_speed" not in found[0]
    assert "0.800" in rows.table(found) and str(computed).endswith(", remat")


def test_a_row_of_a_former_version_is_of_one_step_a_call():
    row = rows.summarize("tfmp", CASE, [outcome(10)])
    several = dataclasses.replace(CASE, steps_per_execution=10)
    assert rows.key(row)[-1] == 1 and str(several).endswith("device, 10 steps a call")
    assert rows.key(rows.summarize("tfmp", several, [outcome(10)])) != rows.key(row)
    del row["steps_per_execution"]
    assert rows.key(row)[-1] == 1


def test_efficiency_of_several_replicas():
    """3,200 images/s of one with a batch of 32; 6,400 with 64."""
    found = [
        rows.summarize("tfmp", CASE, [outcome(10)]),
        rows.summarize("tfmp", dataclasses.replace(CASE, batch_size=64), [outcome(10)]),
    ]
    both = dataclasses.replace(CASE, batch_size=64, replicas=2)
    for cards in (2, 1):
        shared = rows.summarize("tfmp", both, [outcome(12.5, cards=cards, all_reduce_ms=1.5)])
        rows.relate([*found, shared])
        assert shared["weak_efficiency"] == pytest.approx(5120 / cards / 3200)
        assert shared["strong_efficiency"] == pytest.approx(5120 / cards / 6400)
        assert "1.50" in rows.table([shared])
        assert (" 2 on 1 " in rows.table([shared])) == (cards == 1)
    assert "weak_efficiency" not in found[0] and str(both).endswith("device, 2 replicas")


@pytest.mark.parametrize(("scaling", "batches"), [("weak", [8, 16, 32]), ("strong", [8, 8, 8])])
def test_the_batch_of_several_replicas(monkeypatch, tmp_path, scaling, batches):
    seen = []

    def answer(program, spec):
        words = dict(word[2:].split("=") for word in spec["flags"])
        seen.append((spec["replicas"], words["strategy"], int(words["batch_size"])))
        return outcome()

    flags = ["--replicas=1,2,4", f"--scaling={scaling}", "--batch_sizes=8", "--repeats=1"]
    results = measure(monkeypatch, tmp_path, answer, *flags, "--peer=torch")
    strategies = ["none", "mirrored", "mirrored"]
    alone = seen.pop(1)  # the peer, which has no row of several
    assert alone[0] == 1
    assert seen == list(zip((1, 2, 4), strategies, batches, strict=True))
    assert [row["program"] for row in results["rows"]] == ["tfmp", "torch", "tfmp", "tfmp"]


def test_more_replicas_than_gpus(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0", "GPU:1"])
    assert [ours.make_replicas(count) for count in (1, 2)] == [1, 2]
    with pytest.raises(errors.UserError, match="up to 2, the GPUs"):
        ours.make_replicas(3)


def test_cores_that_were_busy():
    """Windows of 0.4, 0.3 and 0.4 s."""
    repeats = [outcome(cpu_s=[2.0, 1.5, 2.0]), outcome(cpu_s=[1.0, 1.5, 0.8])]
    assert rows.summarize("tfmp", CASE, repeats)["cpu_cores"] == pytest.approx(4.0)
    assert rows.summarize("torch", CASE, [outcome(cpu_s=None)])["cpu_cores"] is None


def test_the_peer_is_asked_for_what_it_can_do_only(monkeypatch, tmp_path):
    asked = []

    def answer(program, spec):
        asked.append((program, spec["remat"]))
        return outcome()

    flags = ["--peer=torch", "--repeats=1", "--remat=false,true"]
    results = measure(monkeypatch, tmp_path, answer, *flags)
    assert asked == [("tfmp", False), ("torch", False), ("tfmp", True)]
    assert [row["status"] for row in results["rows"]] == ["ok"] * 3
    with pytest.raises(errors.UserError, match="reads nothing else"):
        cli.parse(benchmark.Config, ["--peer=torch", "--dataset=digits"])


def test_programs_take_turns_and_the_file_has_everything(monkeypatch, tmp_path, capsys):
    asked = []

    def answer(program, spec):
        asked.append((program, spec["batch_size"]))
        return outcome(10 if program == "tfmp" else 12)

    flags = ["--peer=torch", "--batch_sizes=32,64", "--repeats=2"]
    results = measure(monkeypatch, tmp_path, answer, *flags)
    assert asked == [("tfmp", 32), ("torch", 32), ("tfmp", 64), ("torch", 64)] * 2
    assert json.loads((tmp_path / "new.json").read_text()) == results
    assert results["format"] == compare.FORMAT
    environment = results["environment"]
    assert set(environment) == {"device", "versions", "git_commit", "peer", "variables"}
    assert environment["device"]["name"] == "NVIDIA X"
    assert environment["variables"]["KERAS_BACKEND"] == "tensorflow"
    assert len(results["rows"]) == 4
    for row in results["rows"]:
        assert row["images_per_second"]["n"] == len(row["repeats"]) == 2
        assert row["tflops"] and row["share_of_peak"]  # the peer's by our count of the work
    out = capsys.readouterr().out
    assert "8/8 torch: float32, compiled, batch 64, device" in out
    assert "NVIDIA X; tensorflow 2.21.0" in out and "to torch" in out


def test_a_profile_is_shown_for_each_row(monkeypatch, tmp_path, capsys):
    gpu = {
        "gpu": 0,
        "span_ms": 9.5,
        "busy_ms": 9.125,
        "short_gaps_ms": 0.25,
        "long_gaps_ms": 0.125,
        "kernels": 12.0,
        "kinds_ms": {"products": 7.125, "others": 2.5},
        "from_host_ms": {"pinned": 0.75},
        "longest": [["gemm_fusion", 7.125, 3.0]],
    }

    def answer(program, spec):
        assert spec["profile"]
        return outcome(profile=[gpu, gpu | {"gpu": 1}])

    results = measure(monkeypatch, tmp_path, answer, "--profile", "--repeats=1")
    assert [x["gpu"] for x in results["rows"][0]["profile"]] == [0, 1]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    row = "GPU 1 9.50 9.12 0.25 0.12 7.12 2.50 0.75 pinned 12"
    assert row.split() in lines
    assert ["7.125", "ms", "in", "3:", "gemm_fusion"] in lines


def test_a_failed_child_is_a_row_and_status_1_at_the_end(monkeypatch, tmp_path, capsys):
    def answer(program, spec):
        return children.ChildError("it broke") if spec["batch_size"] == 64 else outcome()

    with pytest.raises(errors.TfmpError, match="1 of 2 rows") as failed:
        measure(monkeypatch, tmp_path, answer, "--batch_sizes=64,32", "--repeats=2")
    assert failed.value.exit_status == 1
    bad, good = json.loads((tmp_path / "new.json").read_text())["rows"]
    assert (bad["status"], bad["reason"], good["status"]) == ("failed", "it broke", "ok")
    assert "failed: tfmp, float32, compiled, batch 64, device: it broke" in capsys.readouterr().out


def written(tmp_path, monkeypatch, step_ms, name="old.json", **changes):
    measure(monkeypatch, tmp_path, lambda *_: outcome(step_ms, **changes))
    return (tmp_path / "new.json").replace(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": {"kind": "gpu", "name": "NVIDIA Y", "count": 1}}, "name was 'NVIDIA X' and"),
        ({"versions": {"tensorflow": "2.22.0"}}, "tensorflow was '2.21.0' and is '2.22.0'"),
    ],
)
def test_files_of_other_devices_or_versions_are_refused(monkeypatch, tmp_path, changes, said):
    old = written(tmp_path, monkeypatch, 10)
    asked = []

    def answer(program, spec):
        asked.append(spec)
        return outcome(**changes)

    with pytest.raises(errors.UserError, match=said):
        measure(monkeypatch, tmp_path, answer, f"--compare={old}", "--repeats=3")
    assert len(asked) == 1  # it has not measured for nothing
    with pytest.raises(errors.UserError, match=said):
        measure(monkeypatch, tmp_path, None, f"--compare={old},{tmp_path / 'new.json'}")


def test_other_work_is_refused(monkeypatch, tmp_path):
    old = written(tmp_path, monkeypatch, 10)
    with pytest.raises(errors.UserError, match="model was 'resnet50' and is 'resnet18'"):
        measure(monkeypatch, tmp_path, lambda *_: outcome(), f"--compare={old}", "--model=resnet18")
    with pytest.raises(errors.UserError, match="in common"):
        measure(monkeypatch, tmp_path, lambda *_: outcome(), f"--compare={old}", "--batch_sizes=8")


def test_slower_than_the_tolerance_is_status_10(monkeypatch, tmp_path, capsys):
    old = written(tmp_path, monkeypatch, 10)
    other_tfmp = {"versions": {"tensorflow": "2.21.0", "tfmp": "0.2.0"}}
    new = written(tmp_path, monkeypatch, 10.4, "new_.json", **other_tfmp)
    both = f"--compare={old},{new}"
    assert measure(monkeypatch, tmp_path, None, both) is None
    assert "0.962" in capsys.readouterr().out
    with pytest.raises(errors.DifferentError, match=r"by 3\.8%") as slower:
        measure(monkeypatch, tmp_path, None, both, "--tolerance=0.02")
    assert slower.value.exit_status == 10
    measure(monkeypatch, tmp_path, lambda *_: outcome(9), f"--compare={old}")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--policies=float16"], "--policies out of mixed_float16"),
        (["--jit_compile=yes"], "--jit_compile out of true, false"),
        (["--recipe_flags=--epochs=3"], "--recipe_flags without --epochs"),
        (["--recipe_flags=--notf32"], "--recipe_flags without --tf32"),
        (["--recipe_flags=--nonsense=3"], "nonsense"),
        (["--inputs=device,device"], "each once"),
        (["--batch_sizes="], "one or more"),
        (["--batch_sizes=0"], "--batch_sizes above 0"),
        (["--replicas=1,0"], "--replicas above 0"),
        (["--replicas=2", "--loss_scale=none"], "--loss_scale=recipe with several"),
        (
            ["--replicas=1,3", "--scaling=strong", "--batch_sizes=8"],
            "a batch size that 3 replicas can share evenly. Received: 8. Take 6 or 9",
        ),
        (["--steps_per_execution=0"], "--steps_per_execution above 0"),
        (["--steps_per_execution=1,3"], "--steps that each of --steps_per_execution divides"),
        (["--steps=0"], "--steps above 0"),
        (["--tolerance=1"], "--tolerance from 0"),
        (["--recipe=none"], "--recipe out of"),
        (["tabular", "--model=mlp"], "--dataset with tabular"),
        (["gan", "--model=dcgan"], "no --model, since gan has one alone. Received: dcgan"),
        (["gan", "--loss_scale=recipe,none"], "--loss_scale=recipe with gan, whose step has two"),
        (["gan", "--replicas=2"], "--strategy none: a GAN trains on one device"),
        (["gan", "--peer=torch"], "images or gpt"),
        (["text_classifier", "--peer=torch"], "images or gpt"),
        (["--model=none"], "--model=none"),
        (["--compare=/no/file.json"], "Can't read --compare=/no/file.json"),
        (["--compare=a,b,c"], "one or two files"),
        (["--output=/proc/no/file.json"], "Can't write --output"),
        (["--output=/tmp"], "it is a folder"),
        (["--peer=jax"], "<none|torch>"),
    ],
)
def test_mistakes_are_one_line_and_status_2(flags, said, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["benchmark", *flags])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_recipe_of_texts_by_its_name_alone():
    config = benchmark.complete(cli.parse(benchmark.Config, ["text_classifier"]))
    assert (config.model, config.image_size) == ("encoder_small", None)
    assert "--dataset=synthetic" in session.flags(config, session._cases(config)[0])


def test_a_recipe_without_synthetic_data_on_data_of_its_own():
    words = ["tabular", "--dataset=breast_cancer"]
    assert benchmark.complete(cli.parse(benchmark.Config, words)).model == "mlp"


def test_verbs(capsys):
    __main__.main([])
    assert "python -m tfmp benchmark" in capsys.readouterr().out
    __main__.main(["benchmark", "--help"])
    out = capsys.readouterr().out
    assert "Usage: python -m tfmp benchmark " in out and "--peer=none|torch" in out
    with pytest.raises(SystemExit) as ended:
        __main__.main(["bench"])
    assert ended.value.code == 2
    assert "Received: 'bench'" in capsys.readouterr().err


def test_a_small_measurement_as_a_user_starts_it(tmp_path):
    """By the script, from the flags to the file; the input comes from the host."""
    ended = subprocess.run(
        [
            sys.executable,
            "scripts/benchmark.py",
            *TINY,
            "--inputs=host",
            "--repeats=1",
            "--replicas=1,2",
            f"--output={tmp_path / 'out.json'}",
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    results = json.loads((tmp_path / "out.json").read_text())
    row, of_two = results["rows"]
    (repeat,) = row["repeats"]
    assert (of_two["replicas"], of_two["cards"], of_two["batch_size"]) == (2, 1, 16)
    assert of_two["images_per_second"]["median"] > 0 and of_two["all_reduce_ms"] > 0
    # On a busy machine a window of 3 small steps may be too short to be believed.
    assert ended.returncode in (0, 1), ended.stderr
    assert row["status"] in ("ok", "invalid"), row["reason"]
    assert "loss" not in (row["reason"] or "") and "advanced" not in (row["reason"] or "")
    assert repeat["loss"][1] < repeat["loss"][0] < 10
    assert len(repeat["window_s"]) == 3 and repeat["steps"] == 3
    assert 0 < repeat["first_step_s"] < repeat["to_first_step_s"] < 120
    assert repeat["multiply_adds"] > 10**6 and row["tflops"] > 0
    assert row["peak_memory_bytes"] is row["watts"] is row["share_of_peak"] is None
    versions = results["environment"]["versions"]
    assert (versions["tensorflow"], versions["keras"]) == (tf.__version__, keras.__version__)


def test_a_recipe_of_two_networks():
    """Its arithmetic is that of both, and its loss, the generator's, need not fall."""
    words = ["gan", "--image_size=8", "--batch_sizes=32", "--policies=mixed_float16"]
    words += ["--inputs=device", "--steps=20", "--windows=1", "--repeats=1"]
    config = benchmark.complete(cli.parse(benchmark.Config, words))
    assert benchmark.complete(benchmark.Config(recipe="gan")).image_size == 64
    ((case, flags),) = [(case, session.flags(config, case)) for case in session._cases(config)]
    answer = ours.measure(session.spec(config, case, flags))
    first, last = answer["loss"]
    assert first == pytest.approx(math.log(2), abs=0.1) and last != first
    assert not any("loss" in problem for problem in answer["problems"])
    # By hand: a dense layer and two 4x4 convolutions, with strides of 2, each.
    generator = 64 * 256 + 2 * 2 * 16 * 64 * 32 + 4 * 4 * 16 * 32 * 3
    discriminator = 4 * 4 * 16 * 3 * 32 + 2 * 2 * 16 * 32 * 64 + 256
    assert answer["multiply_adds"] == round((4 * generator + 8 * discriminator) / 3)


def test_skipped_steps_are_those_of_all_optimizers():
    optimizers = [loss_scale.LossScaleOptimizer(keras.optimizers.SGD()) for _ in range(2)]
    for skipped, optimizer in enumerate(optimizers, start=1):
        optimizer.build([keras.Variable(0.0)])
        optimizer.skipped_steps.assign(skipped)
    model = types.SimpleNamespace(optimizer=optimizers[0], other=optimizers[1])
    answer = ours.in_force({"first_step_s": 1.0}, 2.0, model, hardware.describe(), True)
    assert (answer["skipped_steps"], answer["to_first_step_s"]) == (3, 3.0)


@pytest.fixture(scope="module")
def prepared():
    config = cli.parse(
        benchmark.Config, [*TINY, "--policies=mixed_float16", "--output=unused.json"]
    )
    ((_, flags),) = [(case, session.flags(config, case)) for case in session._cases(config)][:1]
    return resnet.prepare(cli.parse(resnet.Config, flags))


@pytest.mark.parametrize("source", ["device", "host"])
def test_the_work_is_the_recipes_own_step(prepared, source):
    _, data, classifier, _ = prepared
    function = classifier.make_train_function()
    work = ours.RecipeWork(classifier, data.train(8, seed=0), source, function)
    before, weight = work.count(), work.weight()
    work.step()
    work.step()
    assert work.count() == before + 2
    assert work.weight() != weight
    first = work.loss(1)
    # On one batch, whatever the input: the loss is of this step alone and falls.
    assert work.loss(10) < first
    assert work.count() == before + 13
    assert function is classifier.train_function


def test_several_replicas_get_labels_that_tensorflow_does_not_keep_on_the_host(prepared):
    strategy = types.SimpleNamespace(
        num_replicas_in_sync=2,
        scope=contextlib.nullcontext,
        experimental_distribute_dataset=lambda dataset, options: dataset,
    )
    batches = prepared[1].train(8, seed=0)
    for source in ("device", "host"):
        work = ours.RecipeWork(
            types.SimpleNamespace(distribute_strategy=strategy, steps_per_execution=1, falls=True),
            batches,
            source,
            None,
        )
        assert next(work._iterator)[1].dtype == tf.int64


def test_without_the_loss_scale_the_optimizer_is_the_inner_one(prepared):
    session_, data, classifier, _ = prepared
    assert type(classifier.optimizer).__name__ == "LossScaleOptimizer"
    for fused in (False, True):
        session_ = dataclasses.replace(session_, fused_layers=fused)
        function = ours._without_loss_scale(classifier, session_)
        assert type(classifier.optimizer).__name__ == "SGD"
        work = ours.RecipeWork(classifier, data.train(8, seed=0), "device", function)
        before = work.count()
        first = work.loss(1)
        assert work.loss(8) < first and work.count() == before + 9


def test_a_child_that_runs_out_of_memory_leaves_at_once_with_one_line(monkeypatch, capsys):
    def full(spec):
        raise errors.OutOfMemoryError("too\nmuch")

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(ours, "measure", full)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match="2"):
        ours.main({})
    assert capsys.readouterr().err == "error: too much\n"


def test_flags_of_the_recipe_reach_it():
    words = [*TINY, "--recipe_flags=--fused_layers=false,--seed=3"]
    config = cli.parse(benchmark.Config, words)
    (case,) = {dataclasses.replace(x, input="device") for x in session._cases(config)}
    received = cli.parse(resnet.Config, session.flags(config, case))
    assert (received.fused_layers, received.seed, received.batch_size) == ("false", 3, 8)


def test_a_recipe_of_text_is_measured_in_windows_and_tokens():
    config = benchmark.complete(cli.parse(benchmark.Config, ["--recipe=gpt"]))
    assert (config.model, config.batch_sizes, config.image_size) == ("gpt2_small", (16,), None)
    words = session.flags(config, CASE)
    assert not [word for word in words if word.startswith("--image_size")]
    spec = session.spec(config, CASE, words)
    assert spec["sizes"] == {"context": 1024, "vocabulary": 50_304}
    assert spec["optimizer"] == "adamw" and spec["clip_norm"] == 1
    found = outcome() | {"example": "window", "tokens": 1024}
    for program, measured in (("tfmp", found), ("torch", outcome())):
        row = rows.summarize(program, CASE, [measured], found)
        assert row["tokens_per_second"] == 1024 * row["images_per_second"]["median"]
        assert "windows/s" in rows.table([row]) and "tokens/s" in rows.speed_in_words(row)
    assert "images/s" in rows.table([rows.summarize("tfmp", CASE, [outcome()])])


def test_images_of_a_recipe_without_them_are_refused():
    with pytest.raises(errors.UserError, match="gpt takes no images"):
        benchmark.complete(cli.parse(benchmark.Config, ["--recipe=gpt", "--image_size=8"]))
