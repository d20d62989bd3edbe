"""Flags of dataclasses, help, and how programs end."""

import dataclasses
import os
import subprocess
import sys
from typing import Literal

import pytest

from tfmp import cli, errors, workers


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = cli.flag(3, "Steps.", group="Training")
    rate: float = cli.flag(0.5, "Rate in 1/s.", group="Training")
    name: str | None = cli.flag(None, "A name.")
    fast: bool = cli.flag(False, "Be fast.")
    mode: Literal["a", "b"] = cli.flag("a", "A mode.")
    kind: str = cli.flag("x", "A kind.", choices={"x": 1, "y": 2})
    sizes: tuple[int, ...] = cli.flag((1, 2), "Sizes in pixels.")
    words: tuple[str, ...] = cli.flag((), "Words.")

    def __post_init__(self):
        if self.steps < 0:
            raise errors.UserError(f"Expected --steps of 0 or more. Received: {self.steps}.")


def test_defaults():
    assert cli.parse(Config, []) == Config()


def test_every_type():
    words = [
        "--steps=4",
        "--rate=2",
        "--name=n",
        "--fast",
        "--mode=b",
        "--kind=y",
        "--sizes=3,4",
        "--words=p,q",
    ]
    assert cli.parse(Config, words) == Config(
        4, 2.0, "n", True, "b", "y", sizes=(3, 4), words=("p", "q")
    )
    assert cli.parse(Config, ["--nofast"]).fast is False
    assert cli.parse(Config, ["--fast=true"]).fast is True


def test_flags_behind_a_flagfile_win(tmp_path):
    file = tmp_path / "some.flags"
    file.write_text("# a comment\n--steps=7\n--rate=7\n")
    config = cli.parse(Config, [f"--flagfile={file}", "--steps=8"])
    assert (config.steps, config.rate) == (8, 7.0)


def test_a_flagfile_that_is_no_utf8_is_a_mistake(tmp_path):
    (tmp_path / "some.flags").write_bytes(b"# caf\xe9\n--steps=7\n")
    with pytest.raises(errors.UserError, match=r"--flagfile in UTF-8.*0xe9"):
        cli.parse(Config, [f"--flagfile={tmp_path / 'some.flags'}"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--step=1", "Did you mean: steps"),
        ("--steps=one", "--steps=one"),
        ("--mode=c", "<a|b>"),
        ("--kind=z", "<x|y>"),
        ("--steps=-1", "Expected --steps"),
        ("--sizes=1,b", "--sizes"),
        ("--flagfile=/no/such.flags", "/no/such.flags"),
        ("word", "'word'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(word, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run(Config, lambda config: None, [word])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.TfmpError("x"), 1),
        (errors.UserError("x"), 2),
        (errors.NonFiniteError("x"), 3),
        (errors.StoppedError("x"), 75),
        (errors.FinishedError("x"), 0),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status_of_errors(error, status, capsys):
    def main(config):
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(Config, main, [])
    assert ended.value.code == status
    assert capsys.readouterr().err.startswith("error: " if status else "note: ")


def test_out_of_memory_leaves_at_once(monkeypatch, capsys):
    """TensorFlow would abort in its clean-up, with another status."""

    def leave(status):
        raise SystemExit(f"left with {status}")

    def main(config):
        raise errors.OutOfMemoryError("x")

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match="left with 2"):
        cli.run(Config, main, [])
    assert capsys.readouterr().err == "error: x\n"


@pytest.mark.parametrize(
    ("error", "status"), [(errors.PeerError("x"), 75), (KeyboardInterrupt(), 130)]
)
def test_one_of_several_workers_leaves_at_once_with_its_status(monkeypatch, error, status):
    """TensorFlow's clean-up would wait for the others."""

    def leave(status):
        raise SystemExit(f"left with {status}")

    def main(config):
        raise error

    monkeypatch.setattr(workers, "is_joined", lambda: True)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match=f"left with {status}"):
        cli.run(Config, main, [])


def test_other_errors_keep_their_traceback():
    def main(config):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(Config, main, [])


def test_help_shows_flags_by_group_with_defaults(capsys):
    cli.run(Config, lambda config: pytest.fail("ran"), ["--help"])
    out = capsys.readouterr().out
    training = out[out.index("Training:") : out.index("Run:")]
    assert "--steps=int" in training and "Rate in 1/s. (default: 0.5)" in training
    assert "--mode=a|b" in out and "--kind=x|y" in out and "(default: 1,2)" in out
    assert __doc__ in out


@dataclasses.dataclass(frozen=True)
class Positional:
    target: str = cli.flag("resnet", "What.", positional=True)
    steps: int = cli.flag(3, "Steps.")


@pytest.mark.parametrize(
    "words",
    [
        ["a:b", "--steps=4"],
        ["--steps=4", "a:b"],
        ["--steps", "4", "--", "a:b"],
        ["--target=a:b", "--steps=4"],
    ],
)
def test_one_word_where_a_field_is_positional(words):
    assert cli.parse(Positional, words) == Positional("a:b", 4)


@pytest.mark.parametrize("words", [["a", "b"], ["--target=a", "b"], ["a", "--steps=4", "b"]])
def test_a_second_word_is_a_mistake(words):
    with pytest.raises(errors.UserError, match=r"one TARGET and flags .* Received: 'b'"):
        cli.parse(Positional, words)


@dataclasses.dataclass(frozen=True)
class Several:
    runs: tuple[str, ...] = cli.flag((), "Which.", positional=True)
    steps: int = cli.flag(3, "Steps.")


def test_words_where_a_tuple_is_positional():
    assert cli.parse(Several, []) == Several()
    assert cli.parse(Several, ["a,b", "--steps=4", "c"]) == Several(("a,b", "c"), 4)
    assert cli.parse(Several, ["--runs=a,b"]) == Several(("a", "b"))
    with pytest.raises(errors.UserError, match="Received: 'c'"):
        cli.parse(Several, ["--runs=a,b", "c"])
    assert "Usage: program [RUNS ...] [--flagfile" in cli.help_text(Several, "program")


def test_a_positional_field_in_the_help():
    text = cli.help_text(Positional, "program")
    assert "Usage: program [TARGET] [--flagfile=FILE] [--FLAG=VALUE ...]" in text
    assert "--target=str" in text
    assert "Usage: program [--flagfile" in cli.help_text(Config, "program")


def run_python(*args, **env):
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, env=os.environ | env, timeout=60
    )


def test_other_backends_are_refused_before_keras_is_imported(tmp_path):
    for env in ({"KERAS_BACKEND": "torch"}, {"KERAS_BACKEND": "", "KERAS_HOME": str(tmp_path)}):
        (tmp_path / "keras.json").write_text('{"backend": "jax"}')
        ended = run_python("-m", "tfmp.recipes.resnet", **env)
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: tfmp runs on Keras' tensorflow backend only")
        assert ended.stderr.count("\n") == 1
