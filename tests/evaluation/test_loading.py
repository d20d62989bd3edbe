"""Models to evaluate: logits under a softmax, damaged files, and what a run knows."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

from tfmp import errors, evaluation, policies

HEADS = {
    "logits": lambda: [layers.Dense(3, name="head")],
    "dense": lambda: [layers.Dense(3, "softmax", name="head")],
    "activation": lambda: [layers.Dense(3), layers.Activation("softmax", name="head")],
    "softmax": lambda: [layers.Dense(3), layers.Softmax(name="head")],
    "nested": lambda: [keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])],
}


def classifier(head="logits", functional=False):
    parts = [layers.Flatten(), layers.Dense(4), *HEADS[head]()]
    if not functional:
        return keras.Sequential([keras.Input((2, 2, 1)), *parts])
    x = inputs = keras.Input((2, 2, 1))
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_logits_of_every_end(head, functional, tmp_path):
    model = classifier(head, functional)
    images = np.random.default_rng(0).normal(size=(5, 2, 2, 1)).astype("float32")
    given = np.asarray(model(images))
    model.save(tmp_path / "m.keras")
    found = evaluation.load(tmp_path / "m.keras")
    logits = np.asarray(found.model(images))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(logits if head == "logits" else probabilities, given, rtol=1e-5)
    assert not np.allclose(logits.sum(1), 1)
    assert (found.logits == "as they are") == (head == "logits")
    # Also in a copy of another policy.
    half = policies.set_policy(found.model, "mixed_float16")
    assert policies.policy_of(half) == "mixed_float16"
    np.testing.assert_allclose(np.asarray(half(images), "float32"), logits, atol=0.02)


@pytest.mark.parametrize("activation", ["sigmoid", "hard_sigmoid"])
def test_other_ends_are_refused(activation):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, activation)])
    with pytest.raises(errors.UserError, match="Save it without its last activation"):
        evaluation.with_logits(model)


def test_what_is_no_classifier_is_refused(tmp_path):
    inputs = keras.Input((4,))
    two = [layers.Dense(2)(inputs), layers.Dense(3)(inputs)]
    # The last has logits, but of texts, say.
    for outputs in (two, layers.Reshape((2, 2))(inputs), two[0]):
        keras.Model(inputs, outputs).save(tmp_path / "m.keras")
        with pytest.raises(errors.UserError, match=r"classifies images: .* one output"):
            evaluation.load(tmp_path / "m.keras")


def test_files_that_are_not_there_or_damaged(tmp_path):
    for path in (tmp_path / "none.keras", tmp_path / "weights.h5", tmp_path):
        with pytest.raises(errors.UserError, match=f"Received: {path}"):
            evaluation.load(path)
    for begun in ("checkpoints", "config.json"):
        (tmp_path / begun).mkdir()
        with pytest.raises(errors.UserError, match="not finished: go on with it by --resume"):
            evaluation.load(tmp_path)
        (tmp_path / begun).rmdir()
    classifier().save(tmp_path / "model.keras")
    whole = (tmp_path / "model.keras").read_bytes()
    half = len(whole) // 2
    for content in (b"", whole[:half], whole[:half] + b"\xa5" * 64 + whole[half + 64 :]):
        (tmp_path / "model.keras").write_bytes(content)
        with pytest.raises(errors.UserError, match="Can't load"):
            evaluation.load(tmp_path)


def test_what_the_run_knows(tmp_path):
    classifier().save(tmp_path / "model.keras")
    assert evaluation.load(tmp_path).run == {}
    results = {"config": {"dataset": "digits"}, "data": {"class_names": ["a"]}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = evaluation.load(tmp_path)
    assert found.run == results and len(found.sha256) == 64
    assert evaluation.load(tmp_path / "model.keras").sha256 == found.sha256
    for other in ("[1]", '{"config": 3}', '{"config": {}}'):
        (tmp_path / "results.json").write_text(other)
        assert evaluation.load(tmp_path).run == {}
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(errors.UserError, match=r"Can't read .*results\.json"):
        evaluation.load(tmp_path)


def test_a_model_that_can_not_be_copied_is_not_compared_with_itself():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.zeros((1, 3), "float32"))
    subject = evaluation.Subject(model, pathlib.Path("own.keras"), "", {}, "as they are")
    with pytest.raises(errors.UserError, match=r"functional or Sequential.*Received: Own"):
        evaluation.under_policies(subject, ("mixed_float16",))
