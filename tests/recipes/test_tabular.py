"""The program of tables: numbers of any size in float16, from a CSV file to predictions."""

import pathlib
import re

import keras
import numpy as np
import pytest
from sklearn import linear_model, pipeline, preprocessing

import tfmp
from tfmp import cli, errors, files
from tfmp.commands import report
from tfmp.data import tables
from tfmp.data.pipeline import in_memory_evaluation
from tfmp.recipes import tabular
from tfmp.training import tables as tables_training

ROOT = pathlib.Path(__file__).parents[2]
QUICK = ["--measure_inference=false", "--deterministic"]
ROWS = 900
README = ROOT / "recipes" / "tabular" / "README.md"


def run(workdir, *flags):
    """A run in this process; returns its results."""
    return tabular.run(cli.parse(tabular.Config, [*QUICK, f"--workdir={workdir}", *flags]))


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags for a table that no linear model learns, of numbers beyond float16's both ends."""
    generator = np.random.default_rng(0)
    z, w = generator.normal(size=(2, ROWS))
    group = generator.choice(list("abcd"), ROWS)
    group[7] = "once"
    answer = (z > 0) ^ np.isin(group, ["a", "b"])
    lines = ["huge,tiny,constant,group,answer"]
    for i in range(ROWS):
        tiny = "" if i % 9 == 0 else f"{w[i] * 1e-9}"
        word = ["no", "yes"][int(answer[i])]
        lines.append(f"{5e9 + 1e9 * z[i]},{tiny},123456789,{group[i]},{word}")
    file = tmp_path_factory.mktemp("table") / "table.csv"
    file.write_text("\n".join(lines))
    training = ["--batch_size=64", "--learning_rate=0.04", "--epochs=12", "--width=64"]
    return [f"--dataset=csv:{file}", "--target=answer", *training]


@pytest.fixture(scope="module")
def trained(flags, tmp_path_factory):
    """Folder and results of a run in mixed_float16 with XLA."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    return workdir, run(workdir, *flags, "--policy=mixed_float16", "--jit_compile=true")


def arrays(dataset):
    """Features side by side and labels of an evaluation."""
    found = []
    for features, labels, weights in dataset.as_numpy_iterator():
        joined = np.concatenate([features[key] for key in sorted(features)], axis=1)
        found.append((joined[weights > 0], labels[weights > 0]))
    return (np.concatenate(x) for x in zip(*found, strict=True))


def test_it_learns_what_no_linear_model_does(trained, flags):
    _, results = trained
    assert results["loss_scale"]["skipped_steps"] == 0
    assert results["jit_compile"] is True and results["data"]["example"] == "row"
    assert results["data"]["input_shape"] == {"numeric": [2], "categorical": [1]}
    assert results["final"]["test_accuracy"] > 0.9
    table = tables.load(flags[0].removeprefix("--dataset="), target="answer")
    x, y = arrays(table.test(64))
    codes = preprocessing.OneHotEncoder(sparse_output=False).fit_transform(x[:, :1])
    x = np.concatenate([codes, x[:, 1:2] / 1e9 - 5], axis=1)
    assert linear_model.LogisticRegression().fit(x, y).score(x, y) < 0.65  # even where it learned


def test_the_readme_predicts_without_tfmp_in_a_fresh_process(trained, flags, tmp_path, run_fresh):
    workdir, results = trained
    table = pathlib.Path(flags[0].removeprefix("--dataset=csv:"))
    rows = table.read_text().splitlines()[1:]
    new = [*rows, "1e30,,5,unheard,no"]
    (tmp_path / "new.csv").write_text("\n".join(["huge,tiny,constant,group,answer", *new]))
    for name in ("model.keras", "columns.json"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    code += "import sys\nassert 'tfmp' not in sys.modules\nnp.save('outputs.npy', outputs)\n"
    run_fresh("-c", code, cwd=tmp_path)
    outputs = np.load(tmp_path / "outputs.npy")
    assert outputs.shape == (ROWS + 1, 2) and outputs.dtype == np.float32
    assert np.isfinite(outputs).all()
    right = np.array([["no", "yes"].index(row.split(",")[-1]) for row in rows])
    assert (outputs[:-1].argmax(-1) == right).mean() > 0.9
    assert results["data"]["class_names"] == ["no", "yes"]


def test_stopped_and_resumed_it_is_the_same_run(trained, flags, tmp_path, stopped_before):
    workdir, results = trained
    more = ["--policy=mixed_float16", "--jit_compile=true"]
    with stopped_before(100):
        run(tmp_path / "part", *flags, *more)
    again = run(tmp_path / "part", *flags, *more, "--resume")
    models = [keras.saving.load_model(x / "model.keras") for x in (workdir, tmp_path / "part")]
    for one, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again["final"] == results["final"]


def small(tmp_path, **changes):
    """Flags of a table of 40 rows, of one step an epoch in mixed_float16."""
    file = tmp_path / "small.csv"
    lines = [f"{n % 7},{'yes' if n % 2 else 'no'}" for n in range(40)]
    file.write_text("\n".join(["x,answer", *lines]))
    flags = {"dataset": f"csv:{file}", "target": "answer", "batch_size": 28, "epochs": 1}
    flags |= {"width": 8, "policy": "mixed_float16", "jit_compile": "false", "warmup_epochs": 0}
    return [f"--{name}={value}" for name, value in (flags | changes).items()]


def test_a_table_of_other_labels_is_refused(tmp_path, stopped_before):
    flags = small(tmp_path, epochs=4, initial_scale=8)
    with stopped_before(2):
        run(tmp_path / "run", *flags)
    file = tmp_path / "small.csv"
    swapped = file.read_text().replace("yes", "-").replace("no", "yes").replace("-", "no")
    file.write_text(swapped)
    with pytest.raises(
        errors.UserError, match=r"small\.csv was 40 rows, SHA-256 .* and is 40 rows, SHA-256"
    ):
        run(tmp_path / "run", *flags, "--resume")


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_run_without_a_good_step_ends_with_status_3(tmp_path, capsys, monkeypatch, epochs):
    def nothing(self, features, labels):
        return features, self.targets(labels) * np.nan

    monkeypatch.setattr(tables_training.TableLearner, "prepare", nothing)
    flags = small(tmp_path, epochs=epochs, target="x", task="regression")
    flags += [*QUICK, f"--workdir={tmp_path / 'run'}"]
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit) as ended:
            cli.run(tabular.Config, tabular.run, [*flags, *more])
        said = capsys.readouterr().err
        assert ended.value.code == 3 and said.count("\n") == 1
        assert "non-finite: the gradients of every step of the run" in said
    rows = files.read_metrics(tmp_path / "run" / "metrics.csv")
    assert len(rows) == epochs and all(row["skipped_steps"] > row["epoch"] for row in rows)
    assert all(np.isnan([row["loss"], row["rmse"]]).all() for row in rows)
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_run_without_validation_ends_well(tmp_path):
    results = run(tmp_path / "run", *small(tmp_path, epochs=3), "--validation_fraction=0")
    assert list(results["best"]) == ["epoch", "loss"]
    assert np.isfinite(results["final"]["test_loss"])
    report.run(cli.parse(report.Config, [str(tmp_path / "run")]))


def test_epochs_lost_to_a_falling_scale_do_not_end_the_run(tmp_path):
    results = run(tmp_path / "run", *small(tmp_path, epochs=30, initial_scale=2**24))
    rows = files.read_metrics(tmp_path / "run" / "metrics.csv")
    lost = [np.isnan(row["loss"]) for row in rows]
    assert lost[0] and not lost[-1]
    assert sum(lost) == results["loss_scale"]["skipped_steps"]
    assert not lost[results["best"]["epoch"] - 1]
    report.run(cli.parse(report.Config, [str(tmp_path / "run")]))


def test_a_regression_without_xla_in_the_targets_unit(tmp_path, capsys, run_fresh):
    results = run(
        tmp_path / "run",
        *["--dataset=diabetes", "--model=tabular_resnet", "--epochs=6", "--jit_compile=false"],
        *["--warmup_epochs=1", "--early_stopping=5"],
    )
    final = results["final"]
    assert results["policy"] == "mixed_float16" and results["jit_compile"] is False
    assert 30 < final["test_mae"] < final["test_rmse"] < 75  # the mean of the target: 78.4
    assert final["test_r2"] > 0.1
    assert list(results["best"]) == ["epoch", "val_rmse"]
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    table = tables.load("diabetes")
    features, labels, _ = next(table.test(88).as_numpy_iterator())
    error = model.predict(features, verbose=0)[:, 0] - labels
    assert np.sqrt(np.mean(error**2)) == pytest.approx(final["test_rmse"], rel=1e-4)
    assert "88 test rows of 9 numeric, 1 categorical" in capsys.readouterr().out
    loaded = tfmp.load(tmp_path / "run")
    squared = loaded.evaluate(features, labels, verbose=0)
    error = loaded.predict(features, verbose=0)[:, 0] - labels
    assert squared == pytest.approx(np.mean(error**2) / loaded.loss.deviation**2, rel=1e-4)
    run_fresh("-c", "import tfmp; tfmp.load('run').loss.deviation", cwd=tmp_path)


def test_weights_of_other_columns_are_refused(trained, flags, tmp_path):
    workdir, _ = trained
    weights = [f"--weights={workdir / 'model.keras'}", "--epochs=1", "--policy=float32"]
    run(tmp_path / "same", *flags, *weights)
    lines = [
        line.split(",")
        for line in pathlib.Path(flags[0].partition("csv:")[2]).read_text().splitlines()
    ]
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join(",".join([row[1], row[0], *row[2:]]) for row in lines))
    with pytest.raises(errors.UserError, match=r"columns\.json, which the weights.*: numeric"):
        run(tmp_path / "turned", f"--dataset=csv:{turned}", *flags[1:], *weights)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset=no_table"], "csv:FILE"),
        (["--task=regression"], r"numbers, such as 1234\.5, .* Received: 'malignant'\. Mend"),
        (["--dataset=csv:none.csv", "--target=y"], "Can't read csv:none.csv"),
        (["--width=0"], "--width above 0"),
        (["--dropout=1"], "--dropout from 0 to below 1"),
        (["--remat", "--jit_compile=false"], "--remat needs XLA"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, words, said):
    with pytest.raises(errors.UserError, match=said):
        run(tmp_path / "run", *words)
    assert not list(tmp_path.iterdir())


def in_order(table):
    """The training rows as an evaluation gives them."""
    features, labels = next(table.train(table.sizes["train"], seed=0).as_numpy_iterator())
    return in_memory_evaluation(features, labels)(64)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", tables.DATASETS)
def test_with_no_flags_it_is_as_good_as_a_linear_model_and_better_than_none(dataset, with_no_flags):
    """On two small tables that linear models suit: no more can be asked for."""
    table = tables.load(dataset)
    train, validation, test = (
        tuple(arrays(part)) for part in (in_order(table), table.validation(64), table.test(64))
    )
    x, y = (np.concatenate(parts) for parts in zip(train, validation, strict=True))
    linear = linear_model.LogisticRegression(max_iter=5000)
    if table.task == "regression":
        linear = linear_model.RidgeCV(np.logspace(-3, 3, 13))
    fitted = pipeline.make_pipeline(preprocessing.StandardScaler(), linear).fit(x, y)
    trivial = fitted.score(*test)  # accuracy, or R2
    flags = [f"--dataset={dataset}"] if dataset != "breast_cancer" else []
    final = with_no_flags("tabular", *flags)[0]["final"]
    if table.task == "classification":
        assert trivial == pytest.approx(0.973, abs=0.01)
        assert np.mean(test[1] == np.bincount(y).argmax()) == pytest.approx(0.628, abs=0.001)
        assert final["test_accuracy"] >= 0.94
    else:
        assert trivial == pytest.approx(0.49, abs=0.02)
        assert np.sqrt(np.mean((test[1] - y.mean()) ** 2)) == pytest.approx(78.4, abs=0.5)
        assert final["test_r2"] >= 0.4 and final["test_rmse"] < 62
