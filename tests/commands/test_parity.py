"""`python -m tfmp parity`: on evaluations as they lie there, and as a whole on the digits."""

import contextlib
import dataclasses
import json
import types

import numpy as np
import pytest

from tfmp import __main__, cli, errors, files
from tfmp.commands import parity, robustness
from tfmp.commands.parity import report, runs, shifts
from tfmp.evaluation import Predictions

NAMES = ["cat", "dog", "owl"]


def write(folder, logits, labels, seed, groups=None, data="pets", **results):
    """An evaluation as `python -m tfmp evaluate` leaves it, with its run's results beside."""
    folder.mkdir(parents=True)
    more = {} if groups is None else {"groups": groups}
    Predictions(np.float32(logits), labels).save(folder / "predictions.npz", **more)
    made_with = {"data": {"name": data, "class_names": NAMES}, "run": {"seed": seed}}
    (folder / "evaluation.json").write_text(json.dumps({"made_with": made_with}))
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def folders(tmp_path, *, runs=4, examples=3000, harm=0.0, whim=0.22, **more):
    """Flags that name two kinds of runs; `harm` of the other's owls are taken for cats."""
    rng = np.random.default_rng(0)
    labels = np.arange(examples) % 3
    flags = []
    for kind in ("reference", "other"):
        found = []
        for seed in range(runs):
            logits = whim * rng.normal(size=(examples, 3))
            logits[np.arange(examples), labels] += 1.0
            if kind == "other":
                owls = np.flatnonzero(labels == 2)
                logits[owls[: round(harm * len(owls))], 0] = 9.0
            found.append(write(tmp_path / f"{kind}-{seed}", logits, labels, seed, **more))
        flags.append(f"--{kind}_runs={','.join(map(str, found))}")
    return [*flags, f"--workdir={tmp_path / 'out'}"]


def run(*flags):
    return parity.run(cli.parse(parity.Config, list(flags)))


def status(*flags):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["parity", *flags])
    return ended.value.code


def test_equal_kinds(tmp_path, capsys, report_of):
    flags = folders(tmp_path)
    found = run(*flags)
    assert found == json.loads((tmp_path / "out" / "parity.json").read_text())
    assert (found["verdict"], found["runs"], found["paired"]) == ("equivalent", [4, 4], True)
    assert found["made_with"]["config"]["margin"] == 0.005
    assert [len(kind) for kind in found["made_with"]["runs"]] == [4, 4]
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "class accuracy of owl" in printed and "flips" in printed
    assert status(*flags) == 2  # the folder has a comparison
    assert run(*flags, "--resume")["tests"] == found["tests"]
    page, written = report_of(tmp_path / "out")
    assert written["summary"][0].startswith("equivalent: other trains models as good as reference")
    assert "Accuracy of class owl equivalent" in page.text


def test_a_harm(tmp_path, capsys):
    assert status(*folders(tmp_path, harm=0.05)) == 10
    assert "error: different:" in (err := capsys.readouterr().err) and "accuracy of owl" in err
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["verdict"] == "different"


def test_not_enough_runs(tmp_path, capsys):
    assert status(*folders(tmp_path, runs=3, examples=120, whim=0.4)) == 11
    assert "error: not enough runs:" in capsys.readouterr().err


def examined(workdir, name, rng, harm=0.0, words=(), images="abc"):
    """What `python -m tfmp robustness` leaves of a run on 500 corrupted and 300 other images."""
    folder = workdir / "robustness" / name
    folder.mkdir(parents=True)
    config = dataclasses.asdict(cli.parse(robustness.Config, [*WORDS, *words]))
    corrupted = {
        "errors": {"snow": {}, "saturate": {}},
        "images": {"snow": {"3": images}},
        "constants": {"kind": "ours"},
        "non_finite": 0,
    }
    results = {
        "corruptions": {"pets": corrupted},
        "ood": {"pets": {"against": {"cars": {"non_finite": 0}}}},
        "made_with": {"model_sha256": None, "config": config},
    }
    (folder / "robustness.json").write_text(json.dumps(results))
    wrong = rng.random((2, 1, 500)) < np.array([0.2 + harm, 0.1])[:, None, None]
    arrays = {"corrupted_correct": ~wrong, "ood_logits_0": 0.3 * rng.normal(size=(300, 3))}
    files.write_arrays(folder / "robustness.npz", arrays)
    return folder


WORDS = ["--axes=corruptions,ood", "--corruptions=snow,saturate", "--severities=3", "--ood=cars"]


def test_corruptions_and_other_data(tmp_path, capsys):
    flags = folders(tmp_path)
    run(*flags)
    rng = np.random.default_rng(0)
    for kind in ("reference", "other"):
        for seed in range(4):
            name = f"{kind}-{seed}-{kind}-{seed}"
            examined(tmp_path / "out", name, rng, harm=0.2 * (kind == "other"))
    flags += ["--resume", *WORDS[1:]]
    capsys.readouterr()
    assert status(*flags, "--corruption_margin=0.02", "--auroc_margin=0.03") == 10
    said, err = capsys.readouterr()
    assert "different: corruption error" in err
    for title in ("auroc of cars", "auroc energy of cars", "mce", "extra corruption error"):
        assert title in said
    found = json.loads((tmp_path / "out" / "parity.json").read_text())
    error, auroc = found["tests"][-2:]
    assert (error["metric"], error["margin"], error["verdict"]) == (
        "corruption_error",
        0.02,
        "different",
    )
    assert error["means"] == pytest.approx([0.2, 0.4], abs=0.03)
    assert (auroc["metric"], auroc["name"], auroc["margin"]) == ("auroc", "cars", 0.03)
    assert found["made_with"]["corrupted_images"] == {"kind": "ours"}


def test_examinations_have_to_be_the_same(tmp_path):
    flags = [*folders(tmp_path), *WORDS[1:]]
    rng = np.random.default_rng(0)
    name = "{0}-{1}-{0}-{1}".format
    for seed in range(4):
        examined(tmp_path / "out", name("reference", seed), rng)
        examined(tmp_path / "out", name("other", seed), rng, images="abd" if seed == 3 else "abc")
    (tmp_path / "a").mkdir()
    with pytest.raises(errors.UserError, match=r"same corrupted images.*other-3"):
        run(*flags, "--resume")
    with pytest.raises(errors.UserError, match=r"one with --ood=\['cars'\].*Remove the folder"):
        run(*flags[:-1], "--ood=boats", "--resume")
    file = tmp_path / "out" / "robustness" / name("other", 1) / "robustness.npz"
    file.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(errors.UserError, match="other-1"):
        run(*flags, "--resume")


def test_flags_of_robustness():
    config = cli.parse(parity.Config, ["--corruptions=fog", "--cache_dir=a b", "--severities=1,2"])
    words = shifts.flags(config)
    parsed = cli.parse(robustness.Config, words)
    assert parsed.chosen == ("corruptions",) and parsed.severities == (1, 2)
    assert parsed.corruptions == ("fog",) and parsed.cache_dir == "a b"
    words = shifts.flags(cli.parse(parity.Config, ["--ood=mnist,folder:a"]))
    assert words == ["--axes=ood", "--ood=mnist,folder:a"]
    assert shifts.flags(parity.Config()) == []


def test_costs_side_by_side(tmp_path, capsys):
    results = {
        "cost": {"seconds": 20.0, "joules": None},
        "examples_per_second": 500.0,
        "peak_memory_bytes": 2**30,
        "loss_scale": {"final": 1024.0, "skipped_steps": 3},
        "seconds": {"per_epoch": [2.0, 3.0, 4.0]},
        "final": {"val_accuracy": 0.9},
    }
    flags = folders(tmp_path, **results)
    log = "epoch,val_accuracy\n0,0.5\n1,0.895\n2,0.9\n"
    for folder in tmp_path.glob("*-[0-9]"):
        (folder / "metrics.csv").write_text(log)
    (tmp_path / "other-0" / "metrics.csv").write_text(log.replace("0.895", "0.8"))
    costs = run(*flags)["costs"]
    assert costs["target_accuracy"] == pytest.approx(0.891)
    assert costs["seconds_to_target"] == [5.0, 5.0]  # the medians
    assert costs["training_seconds"] == [20.0, 20.0] and costs["joules"] == [None, None]
    printed = capsys.readouterr().out
    assert "500 examples/s (1.00 of it)" in printed and "energy" not in printed
    (tmp_path / "other-0" / "metrics.csv").unlink()
    assert run(*flags, "--resume")["costs"]["seconds_to_target"] == [5.0, None]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--runs=2"], "3 runs or more"),
        (["--reference_runs=a,b,c"], "together"),
        (["--reference_runs=a,b,c", "--other_runs=d,e"], "3 runs or more"),
        (["--reference_runs=a,b,c", "--other_runs=d,e,f"], "a folder of a run"),
        (["--policy=float32"], "two policies"),
        (["--policy=float8"], "float8"),
        (["--margin=0"], "--margin above 0"),
        (["--alpha=1"], "--alpha above 0, below 1"),
        (["--resume"], "--workdir"),
        (["--corruptions=haze"], "--corruptions out of"),
        (["--corrupted=cifar10_corrupted"], "--corruptions with --corrupted"),
        (["--auroc_margin=0"], "--auroc_margin above 0"),
        (["--recipe=none"], "--recipe out of"),
        (["--recipe=gpt"], "--recipe that classifies images. Received: gpt"),
        (["--recipe_flags=--seed=3"], "without --seed"),
        (["--recipe_flags=--epochs=none"], "epochs"),
        (["--workdir=/proc/no"], "Can't write to --workdir"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(flags, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status(*flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


def test_mistakes_in_the_runs(tmp_path):
    flags = folders(tmp_path / "a", runs=3)
    reference = flags[0].partition("=")[2]
    with pytest.raises(errors.UserError, match="each run once"):
        run(flags[0], f"--other_runs={reference}")
    other = folders(tmp_path / "b", runs=3, data="plants")[1]
    with pytest.raises(errors.UserError, match=r"on the same data.*plants"):
        run(flags[0], other, f"--workdir={tmp_path / 'c'}")
    (tmp_path / "a" / "other-1" / "predictions.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(errors.UserError, match=r"Expected an evaluation in .*other-1"):
        run(*flags)


def test_groups_have_to_be_the_same(tmp_path):
    groups = np.array(["old", "new"] * 1500)
    flags = folders(tmp_path / "a", runs=3, groups=groups)
    with contextlib.suppress(errors.UndecidedError):
        run(*flags)
    found = json.loads((tmp_path / "a" / "out" / "parity.json").read_text())
    assert {"old", "new"} <= {row["name"] for row in found["tests"]}
    other = folders(tmp_path / "b", runs=3, groups=groups[::-1])[1]
    with pytest.raises(errors.UserError, match="the same groups"):
        run(flags[0], other, f"--workdir={tmp_path / 'c'}")


def test_a_finished_run_is_reused_only_if_it_is_the_same(tmp_path):
    config = cli.parse(parity.Config, [f"--workdir={tmp_path}", "--recipe_flags=--epochs=3"])
    first = runs.plan(config, tmp_path)[0]
    assert (first.name, first.kind) == ("float32-0", "reference")
    assert [plan.name for plan in runs.plan(config, tmp_path)][:4] == [
        "float32-0",
        "mixed_float16-0",
        "float32-1",
        "mixed_float16-1",
    ]
    first.folder.mkdir(parents=True)
    (first.folder / "results.json").write_text(json.dumps({"config": {"epochs": 5}}))
    with pytest.raises(errors.UserError, match="trained with --"):
        runs.plan(config, tmp_path)


CHILD = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path({file!r}).write_text("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path({file!r}).write_text("here")
time.sleep(60)
"""


def test_a_stopped_training_saves_first(tmp_path, signal_once):
    file = tmp_path / "started"
    signal_once(file.exists)
    with pytest.raises(errors.StoppedError) as ended:
        runs.run_python(["-c", CHILD.format(file=str(file))], tmp_path / "log")
    assert ended.value.exit_status == 75
    assert file.read_text() == "saved"


def test_what_a_child_says_is_passed_on(tmp_path):
    for exit_status, kind in ((2, errors.UserError), (3, errors.NonFiniteError)):
        words = ["-c", f"import sys; print('error: it is so'); sys.exit({exit_status})"]
        with pytest.raises(kind, match="a-run: it is so"):
            runs.run_python(words, tmp_path / "logs" / "a-run.log")
    killed = ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    with pytest.raises(errors.TfmpError, match=r"b: ended with exit status -9 \(see .*b.log"):
        runs.run_python(killed, tmp_path / "logs" / "b.log")


def test_a_run_is_trained_and_evaluated(tmp_path, capsys):
    words = [f"--workdir={tmp_path}", "--reference=mixed_bfloat16"]
    words.append("--recipe_flags=--epochs=1,--batch_size=256")
    config = cli.parse(parity.Config, words)
    plan = runs.plan(config, tmp_path)[1]
    runs.train(plan)
    found = runs.evaluate(plan, tmp_path)
    assert found.predictions.logits.shape == (360, 10) and found.data == "digits"
    assert found.results["policy"] == "mixed_float16" and found.made_with["run"]["seed"] == 0
    before = (tmp_path / "evaluated" / plan.name / "evaluation.json").stat().st_mtime_ns
    runs.train(plan)
    runs.evaluate(plan, tmp_path)
    assert (tmp_path / "evaluated" / plan.name / "evaluation.json").stat().st_mtime_ns == before
    assert "trained before" in capsys.readouterr().out
    (plan.folder / "model.keras").write_bytes(b"another")
    with pytest.raises(errors.UserError, match="of another model"):
        runs.evaluate(plan, tmp_path)


def test_a_run_on_corrupted_images_and_other_data(trained, tmp_path, capsys):
    plan = runs.Plan("reference", "one", trained)
    made_with = {"model_sha256": files.sha256(trained / "model.keras")}
    found = types.SimpleNamespace(made_with=made_with, data="digits")
    words = ["--axes=corruptions,ood", "--corruptions=contrast", "--severities=2,5"]
    words += ["--corruption_examples=50", f"--cache_dir={tmp_path / 'cache'}", "--ood=synthetic"]
    (shifted,), constants = shifts.evaluate([plan], [found], tmp_path, words)
    assert shifted.wrong["contrast"].shape == (2, 50) and shifted.non_finite == 0
    assert shifted.outside["synthetic"].shape[1:] == (10,) and constants["seed"] == 0
    results = json.loads((tmp_path / "robustness" / "one" / "robustness.json").read_text())
    errors_of = results["corruptions"]["digits"]["errors"]["contrast"]
    assert list(errors_of.values()) == pytest.approx(shifted.wrong["contrast"].mean(1))
    said = capsys.readouterr().out
    assert "making 2 x 50" in said and "contrast ..." in said and "mean of 1" not in said
    assert "mean of 1" in (tmp_path / "robustness" / "one.log").read_text()
    shifts.evaluate([plan], [found], tmp_path, words)
    assert "robustness" not in capsys.readouterr().out
    found.made_with["model_sha256"] = "0"
    with pytest.raises(errors.UserError, match="of another model"):
        shifts.evaluate([plan], [found], tmp_path, words)


def test_the_screen_shows_what_is_not_settled(tmp_path):
    tests = [
        {"metric": "accuracy", "name": None, "verdict": "open"},
        *(
            {"metric": "class_accuracy", "name": str(i), "verdict": "equivalent", "difference": -i}
            for i in range(10)
        ),
    ]
    assert [row["name"] for row in report._shown(tests)] == [None, "7", "8", "9"]


@pytest.mark.slow
def test_the_digits_as_a_whole(tmp_path):
    flags = ["--runs=3", "--recipe_flags=--epochs=10", f"--workdir={tmp_path / 'out'}"]
    assert status(*flags) == 11
    found = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert "of each would do" in found["reason"]
    assert min(found["tests"][0]["means"]) > 0.93
