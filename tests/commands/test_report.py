"""`python -m tfmp report`: where its files go, and what a user can do wrong."""

import json
import os
import subprocess
import sys

import pytest

from tfmp import __main__
from tfmp.commands import report

EVALUATION = {
    "examples": {"pets": 90},
    "accuracy": {"pets": 0.9},
    "non_finite": {"pets": 0},
    "made_with": {"model": "some.keras", "policy": "float32", "data": {"class_names": ["a", "b"]}},
}


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "a,b"
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


def main(*words):
    __main__.main(["report", *map(str, words)])


def status(*words):
    with pytest.raises(SystemExit) as ended:
        main(*words)
    return ended.value.code


def test_a_report_goes_to_its_run_and_is_made_anew(run_folder, capsys):
    main(run_folder)
    out = capsys.readouterr().out
    assert "Of 90 images of pets 90.00\N{NO-BREAK SPACE}% are classified right." in out
    assert str(run_folder / "report.html") in out
    files = {path.name for path in run_folder.iterdir()}
    assert files == {"evaluation.json", "report.html", "report.json"}
    changed = EVALUATION | {"accuracy": {"pets": 0.5}}
    (run_folder / "evaluation.json").write_text(json.dumps(changed))
    written = report.run(report.Config((str(run_folder),)))
    assert written == json.loads((run_folder / "report.json").read_text())
    assert written["numbers"]["a,b/evaluation.json#/accuracy/pets"]["value"] == 0.5
    assert "50.00" in (run_folder / "report.html").read_text()


def test_several_runs_and_files_get_a_folder_of_their_own(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "benchmark.json"
    row = {"program": "tfmp", "status": "ok", "images_per_second": {"median": 5817.7}}
    content = {"format": "tfmp benchmark 2", "rows": [row], "config": {}, "environment": {}}
    file.write_text(json.dumps(content))
    main(file)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("report-")
    assert "5,818" in (folder / "report.html").read_text()
    main(run_folder, file)
    assert len(list((tmp_path / "runs").iterdir())) == 2
    main(run_folder, file, "--workdir=new/folder")
    assert (tmp_path / "new" / "folder" / "report.html").exists()
    assert not (run_folder / "report.html").exists()


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_what_is_not_ours_stays(name, run_folder, capsys):
    (run_folder / name).write_text("<h1>mine</h1>")
    assert status(run_folder) == 2
    assert f"{name} is not a report of tfmp's" in capsys.readouterr().err
    assert (run_folder / name).read_text() == "<h1>mine</h1>"
    assert len(list(run_folder.iterdir())) == 2


def test_mistakes_are_one_line(run_folder, tmp_path, capsys, monkeypatch):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "parity.json").write_text('{"verdict": "equiv')
    (tmp_path / "file").write_text("")
    for words, said in {
        (): "Expected RUN",
        ("none",): "Received: none",
        (damaged,): "Can't read",
        (run_folder, f"--workdir={tmp_path / 'file'}"): "--workdir",
    }.items():
        assert status(*words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert status(run_folder) == 2
    assert "pip install 'jinja2>=3.1'" in capsys.readouterr().err


def test_names_that_no_encoding_has(run_folder, tmp_path):
    os.rename(run_folder, folder := os.fsencode(tmp_path) + b"/\xff\xc3\xa9")
    words = [sys.executable, "-m", "tfmp", "report", folder]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0, ended.stderr
    assert "/\\udcff\\xe9/report.html" in ended.stdout
    with open(folder + b"/report.html", encoding="utf-8") as page:
        assert "\\udcff\xe9" in page.read()


def test_neither_tensorflow_nor_numpy_is_loaded(run_folder):
    code = (
        "import sys; from tfmp.__main__ import main; main(sys.argv[1:]); "
        "print({'tensorflow', 'keras', 'matplotlib', 'numpy'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", code, "report"]
    ended = subprocess.run([*words, str(run_folder)], capture_output=True, text=True, timeout=20)
    assert ended.stdout.splitlines()[-1] == "set()", ended.stderr
    assert subprocess.run([*words, "--help"], capture_output=True, text=True).stdout.endswith(
        "set()\n"
    )
