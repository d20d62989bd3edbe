"""`python -m tfmp evaluate` as a whole, on a run of the recipe on the digits."""

import json
import re

import keras
import numpy as np
import pytest
import sklearn.datasets
import sklearn.metrics

from tfmp import __main__, cli, errors, policies
from tfmp.commands import evaluate
from tfmp.commands.evaluate import session


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """A table of the test digits: halves of the writers, and how much ink the image has."""
    pixels = sklearn.datasets.load_digits().data[-360:]
    dark = pixels.sum(1) > np.median(pixels.sum(1))
    file = tmp_path_factory.mktemp("tables") / "digits.csv"
    rows = [
        f"{'first' if i < 180 else 'second'},{'dark' if d else 'light'}" for i, d in enumerate(dark)
    ]
    file.write_text("half,ink\n" + "\n".join(rows) + "\n")
    return file


def run(*flags):
    return evaluate.run(cli.parse(evaluate.Config, list(flags)))


@pytest.fixture(scope="module")
def evaluated(trained, writers, tmp_path_factory):
    """The whole of it: policies, groups and a temperature."""
    folder = tmp_path_factory.mktemp("evaluated") / "new" / "folder"
    flags = ["--policies=float32,mixed_float16,mixed_bfloat16", "--temperature_scaling"]
    flags += [f"--group_by={writers}:half", f"--workdir={folder}", "--replicates=500"]
    return folder, run(str(trained), *flags)


def value(results, metric):
    return results[metric]["digits"]


def test_it_says_what_training_said(trained, evaluated):
    final = json.loads((trained / "results.json").read_text())["final"]
    results = evaluated[1]
    assert value(results, "accuracy") == pytest.approx(final["test_accuracy"], abs=1e-6)
    assert value(results, "nll") == pytest.approx(final["test_loss"], rel=1e-4)
    assert value(results, "accuracy") > 0.8


def test_the_figures_are_those_of_scikit_learn(evaluated):
    folder, results = evaluated
    with np.load(folder / "predictions.npz") as read:
        logits, labels, groups = (read[key] for key in ("logits", "labels", "groups"))
        assert json.loads(str(read["made_with"]))["model"] and str(read["policy"]) == "float32"
    np.testing.assert_array_equal(labels, sklearn.datasets.load_digits().target[-360:])
    predicted = logits.argmax(1)
    assert value(results, "accuracy") == sklearn.metrics.accuracy_score(labels, predicted)
    matrix = sklearn.metrics.confusion_matrix(labels, predicted)
    assert [row[:10] for row in value(results, "confusion")] == matrix.tolist()
    recall = sklearn.metrics.recall_score(labels, predicted, average=None)
    assert list(value(results, "per_class_accuracy").values()) == pytest.approx(list(recall))
    worst = value(results, "worst_class")
    assert worst["accuracy"] == recall.min() and worst["name"] == str(recall.argmin())
    probabilities = np.exp(logits.astype("float64"))
    probabilities /= probabilities.sum(1, keepdims=True)
    assert value(results, "nll") == pytest.approx(sklearn.metrics.log_loss(labels, probabilities))
    halves = [(predicted == labels)[part].mean() for part in (slice(180), slice(180, None))]
    assert value(results, "per_group_accuracy") == {"first": halves[0], "second": halves[1]}
    assert value(results, "worst_group")["accuracy"] == min(halves)
    assert groups.tolist() == ["first"] * 180 + ["second"] * 180
    low, high = results["intervals"]["accuracy"]["digits"]
    assert low < value(results, "accuracy") < high and high - low < 0.1


def test_the_temperature_is_reported_beside(evaluated):
    results = evaluated[1]
    scaled = results["temperature_scaled"]
    if value(results, "temperature") is not None:
        assert set(scaled) == {"nll", "brier", "ece", "adaptive_ece", "intervals"}
        low, high = scaled["intervals"]["nll"]["digits"]
        assert low < scaled["nll"]["digits"] < high


def test_the_same_weights_under_other_policies(evaluated):
    folder, results = evaluated
    assert list(results["policies"]) == ["float32", "mixed_float16", "mixed_bfloat16"]
    assert results["policies"]["float32"]["accuracy"] == results["accuracy"]
    differences = []
    for policy in ("mixed_float16", "mixed_bfloat16"):
        found = results["policies"][policy]
        against = found["against_float32"]["digits"]
        with np.load(folder / f"predictions-{policy}.npz") as other:
            with np.load(folder / "predictions.npz") as own:
                logits = own["logits"]
                flips = (other["logits"].argmax(1) != logits.argmax(1)).sum()
                largest = np.abs(other["logits"].astype("float64") - logits).max()
            assert str(other["policy"]) == policy
        assert against["flips"] == flips
        assert against["largest_logit_difference"] == pytest.approx(largest)
        assert found["ece"]["digits"] >= 0 and found["non_finite"]["digits"] == 0
        differences.append(against["relative_logit_difference"])
    assert 0 < differences[0] < differences[1] < 0.1


def test_the_report_of_both(trained, evaluated, report_of):
    folder, results = evaluated
    page, written = report_of(trained, folder)
    (subject,) = written["subjects"]  # put together by the model's SHA-256
    assert [source["kind"] for source in subject["sources"]] == ["training", "curves", "evaluation"]
    numbers = written["numbers"]
    key = f"{subject['name']}/evaluation.json#/accuracy/digits"
    assert numbers[key]["value"] == value(results, "accuracy")
    counts = [x["value"] for key, x in numbers.items() if "/reliability/digits/examples/" in key]
    assert len(counts) == 15 and sum(counts) == 360
    for said in ("Training curves", "Cost card", "first", "Predictions against the reference's"):
        assert said in page.text
    # No measure of the tools' own is without a name.
    assert not re.search(r"\w_\w+ (\d|unknown)", page.text.partition("Made with")[0])


def test_the_file_says_what_it_was_made_with(trained, evaluated):
    folder, results = evaluated
    assert results == json.loads((folder / "evaluation.json").read_text())
    made = results["made_with"]
    assert made["policy"] == "float32" and made["run"]["seed"] == 0
    assert made["jit_compile"] == {"float32": False, "mixed_float16": True, "mixed_bfloat16": True}
    assert made["config"]["model"] == str(trained) and made["tf32"] is False
    assert made["versions"]["keras"] == keras.__version__ and made["device"]["kind"] == "cpu"
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png",
        "evaluation.json",
        "predictions-mixed_bfloat16.npz",
        "predictions-mixed_float16.npz",
        "predictions.npz",
        "reliability.png",
    ]


def test_a_bare_model_by_the_script(program, trained, writers, tmp_path, evaluated):
    (tmp_path / "bare.keras").write_bytes((trained / "model.keras").read_bytes())
    flags = ["--dataset=digits", f"--workdir={tmp_path / 'out'}", f"--group_by={writers}:ink"]
    ended = program("scripts/evaluate.py", f"--model={tmp_path / 'bare.keras'}", *flags)
    assert ended.returncode == 0, ended.stderr
    assert "UserWarning" not in ended.stderr and "Traceback" not in ended.stderr
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert results["accuracy"] == evaluated[1]["accuracy"]
    assert set(value(results, "per_group_accuracy")) == {"dark", "light"}
    for said in ("accuracy  ", "worst class", "worst group", "if calibrated", "evaluation.json"):
        assert said in ended.stdout


def test_a_model_of_half_precision_without_float32(trained, tmp_path, capsys):
    model = keras.saving.load_model(trained / "model.keras")
    policies.set_policy(model, "mixed_bfloat16").save(tmp_path / "half.keras")
    flags = ["--dataset=digits", "--replicates=0", "--jit_compile=false", "--split=validation"]
    flags += ["--policies=mixed_float16", f"--workdir={tmp_path / 'out'}"]
    results = run(str(tmp_path / "half.keras"), *flags)
    assert results["made_with"]["policy"] == "mixed_bfloat16"
    assert "against_mixed_bfloat16" in results["policies"]["mixed_float16"]
    assert results["examples"] == {"digits/validation": 142}
    out = capsys.readouterr().out
    assert "mixed_float16 against mixed_bfloat16" in out and "may have seen them" in out


def damaged(trained, folder, weight):
    model = keras.saving.load_model(trained / "model.keras")
    kernel = model.layers[-1].kernel
    kernel.assign(np.where(np.arange(10) == 3, weight, kernel.numpy()))
    model.save(folder / "damaged.keras")
    return str(folder / "damaged.keras")


def test_weights_that_are_not_finite(trained, tmp_path, capsys):
    flags = ["--dataset=digits", "--temperature_scaling", f"--workdir={tmp_path / 'out'}"]
    with pytest.raises(errors.NonFiniteError, match="360 under float32, of 360") as ended:
        run(damaged(trained, tmp_path, np.nan), *flags)
    assert ended.value.exit_status == 3
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert value(results, "non_finite") == 360 and value(results, "accuracy") == 0
    assert value(results, "nll") is value(results, "ece") is value(results, "temperature") is None
    assert "142 of 142 validation examples" in value(results, "temperature_missing")
    assert sum(row[10] for row in value(results, "confusion")) == 360
    assert not (tmp_path / "out" / "reliability.png").exists()
    out = capsys.readouterr().out
    assert "360 examples, counted as wrong" in out and "unknown" in out


def test_a_temperature_without_validation_images(trained, tmp_path):
    (tmp_path / "model.keras").write_bytes((trained / "model.keras").read_bytes())
    results = json.loads((trained / "results.json").read_text())
    results["config"]["validation_fraction"] = 0.0
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(errors.UserError, match="Expected validation images"):
        run(str(tmp_path), "--temperature_scaling", f"--workdir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_overflow_of_one_policy_alone(trained, tmp_path):
    flags = ["--dataset=digits", "--policies=mixed_float16", f"--workdir={tmp_path / 'out'}"]
    model = keras.saving.load_model(trained / "model.keras")
    scaled = keras.layers.Rescaling(1e6, dtype="float32", name="large")
    inner = keras.Model(model.inputs[0], model.layers[-1].input)
    x = keras.layers.Activation("linear", name="half")(scaled(inner.output))
    head = keras.layers.Dense(10, name="head")
    whole = keras.Model(inner.inputs[0], head(x))
    head.set_weights([model.layers[-1].kernel.numpy() / 1e6, model.layers[-1].bias.numpy()])
    whole.save(tmp_path / "large.keras")
    with pytest.raises(errors.NonFiniteError, match="in 360 under mixed_float16"):
        run(str(tmp_path / "large.keras"), *flags, "--replicates=50")
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert value(results, "accuracy") > 0.8 and value(results, "non_finite") == 0
    assert value(results["policies"]["mixed_float16"], "ece") is None
    assert value(results["policies"]["mixed_float16"], "against_float32")["compared"] == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "Expected --model"),
        (["--model=/no/such/run"], "Received: /no/such/run"),
        (["RUN", "--policies=float16"], "--policies out of float32"),
        (["RUN", "--policies=float32,float32"], "each once"),
        (["RUN", "--bins=0"], "--bins of at least 1"),
        (["RUN", "--batch_size=0"], "--batch_size of at least 1"),
        (["RUN", "--replicates=-1"], "--replicates of at least 0"),
        (["RUN", "--split=train"], "<test|validation>"),
        (["RUN", "--split=validation", "--temperature_scaling"], "--split=test"),
        (["RUN", "--nonsense"], "nonsense"),
        (["RUN", "--dataset=folder:/no/such/folder"], "/no/such/folder"),
        (["RUN", "--group_by=writer"], "FILE.csv:COLUMN"),
        (["RUN", "--group_by=/no/such.csv:a"], "Can't read /no/such.csv"),
        (["RUN", "--workdir=/proc/none"], "Can't write to --workdir=/proc/none"),
        (["RUN", "--workdir=EVALUATED"], "holds an evaluation"),
        (["BARE"], "Expected --dataset"),
        (["SEVEN", "--dataset=digits"], "of the 10 classes of digits"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    flags, said, trained, evaluated, tmp_path, monkeypatch, capsys
):
    model = tmp_path / "models" / "seven.keras"
    model.parent.mkdir()
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Dense(7)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, x).save(model)
    names = {"RUN": trained, "BARE": model, "SEVEN": model}
    words = [str(names.get(word, word)).replace("EVALUATED", str(evaluated[0])) for word in flags]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        __main__.main(["evaluate", *words])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["models"], "something was left behind"


def test_a_full_disk_is_one_line_and_leaves_no_results(trained, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session.plots, "confusion", full)
    with pytest.raises(errors.TfmpError, match="No space left on device") as ended:
        run(str(trained), "--replicates=0", f"--workdir={tmp_path}")
    assert ended.value.exit_status == 1
    assert not (tmp_path / "evaluation.json").exists()
    monkeypatch.undo()
    assert run(str(trained), "--replicates=0", f"--workdir={tmp_path}")["accuracy"]
