"""The program of the classifiers of texts."""

import keras
import numpy as np
import pytest

from tfmp import cli, errors
from tfmp.data import docstrings, labeled_text
from tfmp.recipes import text_classifier

QUICK = ["--length=8", "--vocabulary=500", "--batch_size=16", "--epochs=4", "--dropout=0"]
QUICK += ["--policy=float32", "--measure_inference=false", "--learning_rate=8e-2"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Texts of words of one kind or the other."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    lines = []
    for kind in random.choice(["a", "b"], 200):
        words = " ".join(f"{kind}{number}" for number in random.integers(20, size=3))
        lines.append(f"{words},{kind}")
    path.write_text("\n".join(["text,label", *lines, "a1 of no kind,"]))
    return path


def quick(file, workdir, *flags):
    """A short run in this process; returns its results."""
    words = [f"--dataset=csv:{file}", *QUICK, f"--workdir={workdir}", *flags]
    return text_classifier.run(cli.parse(text_classifier.Config, words))


@pytest.mark.parametrize("model", ["encoder_micro", "lstm"])
def test_it_learns_and_its_saved_model_takes_any_text(file, tmp_path, model, capsys):
    results = quick(file, tmp_path / "run", f"--model={model}")
    assert "note: 1 rows have no label, and are left out" in capsys.readouterr().out
    assert results["final"]["test_accuracy"] >= 0.9
    assert results["data"]["class_names"] == ["a", "b"] and results["model"]["name"] == model
    assert results["data"]["origin"].startswith("200 texts, SHA-256 ")
    loaded = keras.saving.load_model(tmp_path / "run" / "model.keras")
    texts = ["a1 a2 a3", "b7 b8"]
    tokens = [labeled_text.tokens(text, length=8, vocabulary=500) for text in texts]
    logits = loaded.predict(np.array(tokens), verbose=0)
    assert logits.argmax(-1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--length=0"], "--length above 0"),
        (["--vocabulary=1"], "--vocabulary above 1"),
        (["--dropout=1"], "--dropout from 0 to below 1"),
        (["--model=gpt_micro"], "encoder_micro"),
        (["--dataset=csv:/no/such.csv"], "Can't read csv:/no/such.csv"),
    ],
)
def test_a_users_mistake_is_one_line(file, tmp_path, flags, said):
    with pytest.raises(errors.UserError, match=said):
        quick(file, tmp_path / "run", *flags)
    assert not list(tmp_path.iterdir())


def test_it_says_which_class_has_no_test_text(file, tmp_path, capsys):
    (tmp_path / "some.csv").write_text(f"{file.read_text()}\nc1 c2,c\n")
    quick(tmp_path / "some.csv", tmp_path / "run", "--epochs=1")
    assert "note: no test figure knows of classes without a test example: 'c'\n" in (
        capsys.readouterr().out
    )


def test_it_goes_on_with_its_own_texts_only(file, tmp_path, stopped_before):
    own = tmp_path / "own.csv"
    own.write_text(file.read_text())
    with stopped_before(3):
        quick(own, tmp_path / "run")
    own.write_text(file.read_text().replace(",a\n", ",z\n"))
    with pytest.raises(errors.UserError) as refused:
        quick(own, tmp_path / "run", "--resume")
    for said in ("the classes from number 1 on were 'a', 'b' and are 'b', 'z'", "SHA-256"):
        assert said in str(refused.value)
    own.write_text(file.read_text())
    (tmp_path / "run" / "data.json").unlink()  # as of an earlier version
    assert quick(own, tmp_path / "run", "--resume")["epochs"] == 4
    assert (tmp_path / "run" / "data.json").exists()


@pytest.mark.slow
def test_with_no_flags_it_beats_the_largest_class_within_two_minutes(with_no_flags):
    _, modules, owners = docstrings.load()
    is_test = np.array([docstrings.draw(owner) < labeled_text.TEST_FRACTION for owner in owners])
    modules = np.array(modules)
    names, counts = np.unique(modules[~is_test], return_counts=True)
    trivial = np.mean(modules[is_test] == names[counts.argmax()])
    assert trivial < 0.45  # 0.362 in Python 3.11.7
    results, _ = with_no_flags("text_classifier")
    assert results["final"]["test_accuracy"] >= 0.65 > trivial
