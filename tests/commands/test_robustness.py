"""`python -m tfmp robustness` as a whole, on a run of the recipe on the digits."""

import json

import keras
import numpy as np
import pytest

from tfmp import __main__, cli, errors
from tfmp.commands import robustness
from tfmp.commands.robustness import session


def run(*flags):
    return robustness.run(cli.parse(robustness.Config, list(flags)))


def test_inputs_by_the_script(program, trained, tmp_path):
    flags = ["--axes=input", f"--workdir={tmp_path / 'new' / 'out'}"]
    ended = program("scripts/robustness.py", str(trained), *flags)
    assert ended.returncode == 0, ended.stderr
    assert "retracing" not in ended.stderr and "Traceback" not in ended.stderr
    results = json.loads((tmp_path / "new" / "out" / "robustness.json").read_text())
    final = json.loads((trained / "results.json").read_text())["final"]
    assert results["accuracy"]["digits"] == pytest.approx(final["test_accuracy"], abs=1e-6)
    assert results["examples"] == {"digits": 360} and results["non_finite"] == {"digits": 0}
    found = results["input"]["digits"]
    assert {x["verdict"] for x in found.values() if x["kind"] == "dtype"} == {"same"}
    assert found["float32 0-1"]["verdict"] == "breaks"
    made = results["made_with"]
    assert made["policy"] == "float32" and made["jit_compile"] is False
    assert made["config"]["axes"] == ["input"] and made["versions"]["keras"] == keras.__version__
    for said in ("float32 0-1 ", "breaks", "robustness.json", "360 examples, float32, accuracy 0."):
        assert said in ended.stdout


def test_weights_that_are_not_finite(trained, tmp_path, capsys):
    model = keras.saving.load_model(trained / "model.keras")
    kernel = model.layers[-1].kernel
    kernel.assign(np.full_like(kernel.numpy(), np.nan))
    model.save(tmp_path / "nan.keras")
    flags = ["--dataset=digits", f"--workdir={tmp_path / 'out'}"]
    with pytest.raises(errors.NonFiniteError, match="360 of 360 test images") as ended:
        run(str(tmp_path / "nan.keras"), *flags)
    assert ended.value.exit_status == 3
    results = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert results["non_finite"] == {"digits": 360} and results["accuracy"] == {"digits": 0}
    assert "360 not finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "Expected --model"),
        (["--model=/no/such/run"], "Received: /no/such/run"),
        (["RUN", "--axes=noise"], "--axes out of"),
        (["RUN", "--axes=input,input"], "each once"),
        (["RUN", "--batch_size=0"], "--batch_size of at least 1"),
        (["RUN", "--dataset=folder:/no/such/folder"], "/no/such/folder"),
        (["RUN", "--workdir=/proc/none"], "Can't write to --workdir=/proc/none"),
        (["RUN", "--workdir=FULL"], "holds an evaluation"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, said, trained, tmp_path, monkeypatch, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "robustness.json").write_text("{}")
    names = {"RUN": trained}
    words = [str(names.get(word, word)).replace("FULL", str(full)) for word in flags]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        __main__.main(["robustness", *words])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"], "something was left behind"


def test_a_full_disk_is_one_line(trained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session.files, "write_json", full)
    with pytest.raises(errors.TfmpError, match="No space left on device") as ended:
        run(str(trained), "--axes=input", f"--workdir={tmp_path}")
    assert ended.value.exit_status == 1
