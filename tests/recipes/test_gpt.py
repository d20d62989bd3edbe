"""The program of the language models: what it leaves, goes on with, and writes."""

import collections
import json
import math
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfmp import cli, errors
from tfmp.data import python_reference
from tfmp.recipes import gpt

ROOT = pathlib.Path(__file__).parents[2]
QUICK = ["--context=16", "--batch_size=8", "--epochs=1", "--measure_inference=false"]
QUICK += ["--policy=float32"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("All work and no play makes Jack a dull boy.\n" * 40)
    return path


@pytest.fixture(scope="module")
def workdir(file, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    quick(file, folder, "--attention_part=4")
    return folder


def quick(file, workdir, *flags):
    """A short run in this process; returns its results."""
    words = [f"--dataset=text:{file}", *QUICK, f"--workdir={workdir}", *flags]
    return gpt.run(cli.parse(gpt.Config, words))


def test_its_figures_agree_and_name_the_text(workdir, file):
    results = json.loads((workdir / "results.json").read_text())
    final = results["final"]
    for prefix in ("", "val_", "test_"):
        loss = final[f"{prefix}loss"]
        assert final[f"{prefix}bits_per_token"] == pytest.approx(loss / math.log(2), rel=1e-5)
        assert final[f"{prefix}perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert 0 <= final[f"{prefix}accuracy"] <= 1
    assert results["data"]["origin"].startswith(f"{file.stat().st_size:,} bytes, SHA-256 ")
    assert results["tokens_per_second"] == pytest.approx(16 * results["examples_per_second"])
    header = (workdir / "metrics.csv").read_text().splitlines()[0]
    assert "val_bits_per_token" in header
    model = keras.saving.load_model(workdir / "model.keras")
    text = np.frombuffer(file.read_bytes(), np.uint8)
    test = text[round(len(text) * 0.9) :]
    count = (len(test) - 1) // 16
    windows, labels = test[: count * 16].reshape(-1, 16), test[1 : count * 16 + 1].reshape(-1, 16)
    loss = keras.losses.sparse_categorical_crossentropy(
        labels, model.predict(windows, verbose=0), from_logits=True
    )
    assert float(np.mean(loss)) == pytest.approx(final["test_loss"], rel=1e-5)


def test_a_run_a_checkpoint_and_a_file_write_the_same(workdir, tmp_path, capsys):
    words = ["--sample=12", "--prompt=All", "--seed=3"]

    def write(path, *more):
        capsys.readouterr()
        written = gpt.run(cli.parse(gpt.Config, [*words, f"--workdir={path}", *more]))
        assert capsys.readouterr().out == written + "\n"
        return written

    written = write(workdir)
    assert len(written.encode(errors="replace")) >= 1 and write(workdir / "model.keras") == written
    assert write(workdir, "--seed=4") != written
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("checkpoints", "model.json"):
        (unfinished / name).symlink_to(workdir / name)
    assert write(unfinished) == written
    assert not (workdir.parent / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--context=0"], "--context above 0"),
        (["--context=2000"], "Use a longer text or a smaller context"),
        (["--vocabulary=200"], "--vocabulary of 256 or more"),
        (["--attention_part=-1"], "--attention_part 0 or more"),
        (["--model=vit_micro"], "gpt_micro"),
        (["--sample=5", "--prompt="], "--prompt of one character or more"),
        (["--sample=5"], "Expected a .keras file or the folder of a run"),
    ],
)
def test_a_users_mistake_is_one_line(file, tmp_path, flags, said):
    with pytest.raises(errors.UserError, match=said):
        quick(file, tmp_path / "run", *flags)
    assert not list(tmp_path.iterdir())


def test_sizes_go_by_the_model_and_the_data():
    def sizes(*flags):
        found = gpt.sizes(cli.parse(gpt.Config, flags))
        return found["context"], found["vocabulary"]

    assert sizes() == (64, 256)
    assert sizes("--dataset=synthetic") == (64, 256)
    assert sizes("--model=gpt2_small") == (1024, 256)
    assert sizes("--model=gpt2_small", "--dataset=synthetic") == (1024, 50_304)
    assert sizes("--model=gpt2_small", "--context=128", "--vocabulary=512") == (128, 512)


def test_it_does_not_go_on_with_another_text_of_the_same_length(file, tmp_path, stopped_before):
    own = tmp_path / "text.txt"
    own.write_text(file.read_text())
    with stopped_before(3):
        quick(own, tmp_path / "run")
    own.write_text(file.read_text().swapcase())
    with pytest.raises(errors.UserError, match=r"text\.txt was 1,760 bytes, SHA-256 .* and is"):
        quick(own, tmp_path / "run", "--resume")


@pytest.mark.slow  # three processes, since determinism stays on
def test_a_stopped_run_goes_on_to_the_bit(file, tmp_path):
    flags = [f"--dataset=text:{file}", *QUICK, "--policy=mixed_float16", "--deterministic"]
    flags += ["--epochs=2", "--dropout=0.1", "--attention_part=8", "--save_every_steps=3"]
    stop = (
        "import keras, sys\nfrom tfmp import cli\nfrom tfmp.training import callbacks\n"
        "from tfmp.recipes import gpt\n"
        "class Stop(callbacks.StepLogs):\n"
        "    def on_train_batch_end(self, batch, logs=None):\n"
        "        if int(self.model.step) == 14: import os; os._exit(9)\n"
        "callbacks.StepLogs = Stop\ncli.run(gpt.Config, gpt.run, sys.argv[1:])\n"
    )
    (tmp_path / "stop.py").write_text(stop)
    env = os.environ | {"PYTHONPATH": str(ROOT)}

    def start(*program, status=0):
        ended = subprocess.run(
            [sys.executable, *program, *flags], capture_output=True, text=True, env=env, timeout=120
        )
        assert ended.returncode == status, ended.stderr[-2000:]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start("-m", "tfmp.recipes.gpt", f"--workdir={whole}")
    start(str(tmp_path / "stop.py"), f"--workdir={parts}", status=9)
    start("-m", "tfmp.recipes.gpt", f"--workdir={parts}", "--resume")
    one, other = (keras.saving.load_model(x / "model.keras").get_weights() for x in (whole, parts))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def bits_of_counts(train, test, order):
    """Bits a byte of counts of the bytes behind each `order` bytes, mixed with those of fewer.

    Witten and Bell's mixture: as much weight on the fewer as bytes of different kinds were seen.
    """
    counts = [collections.defaultdict(collections.Counter) for _ in range(order + 1)]
    for size, of_size in enumerate(counts):
        for place in range(size, len(train)):
            of_size[train[place - size : place]][train[place]] += 1
    bits = 0.0
    for place in range(order, len(test)):
        share = 1 / 256
        for size, of_size in enumerate(counts):
            if seen := of_size.get(test[place - size : place]):
                share = (seen[test[place]] + len(seen) * share) / (seen.total() + len(seen))
        bits -= math.log2(share)
    return bits / (len(test) - order)


@pytest.mark.slow
def test_with_no_flags_it_beats_trivial_models_within_two_minutes(with_no_flags):
    text = python_reference.text()
    train, test = text[: round(len(text) * 0.81)], text[round(len(text) * 0.9) :]
    trivial = [bits_of_counts(train, test, order) for order in range(3)]
    assert trivial == pytest.approx([4.70, 3.45, 2.63], abs=0.1)
    results, _ = with_no_flags("gpt")
    assert results["final"]["test_bits_per_token"] < 2.35 < trivial[2]
