"""Drawing bytes from a language model."""

import itertools

import keras
import numpy as np
import pytest

from tfmp import errors
from tfmp.evaluation import sampling


def follower(context=4, vocabulary=300):
    """A model that is sure of the byte behind the last one's, and surer of one that is none."""
    table = np.full((vocabulary, vocabulary), -5.0, np.float32)
    table[np.arange(vocabulary), (np.arange(vocabulary) + 1) % vocabulary] = 5
    table[:, 280] = 50
    tokens = keras.Input((context,), dtype="int64")
    layer = keras.layers.Embedding(vocabulary, vocabulary)
    model = keras.Model(tokens, layer(tokens))
    layer.embeddings.assign(table)
    return model


def test_the_likeliest_byte_follows_within_and_beyond_the_context():
    drawn = sampling.sample(follower(), b"ab", 10, temperature=0)
    assert bytes(drawn) == b"cdefghijkl"


def test_draws_follow_the_softmax_at_a_temperature():
    model = follower()
    draws = [next(sampling.sample(model, b"a", 1, temperature=4.0, seed=s)) for s in range(400)]
    logits = np.array([5.0] + [-5.0] * 255) / 4
    share = np.exp(logits[0]) / np.exp(logits).sum()
    assert np.mean(np.array(draws) == ord("b")) == pytest.approx(share, abs=0.04)
    assert max(draws) < 256
    first, again, other = (
        bytes(sampling.sample(model, b"a", 20, temperature=9.0, seed=s)) for s in (1, 1, 2)
    )
    assert first == again != other


def test_bytes_come_one_by_one():
    drawn = sampling.sample(follower(), b"a", 10**9, temperature=0)
    assert bytes(itertools.islice(drawn, 3)) == b"bcd"


def test_a_prompt_of_bytes_that_are_no_text(capsys):
    assert sampling.write(follower(), "\udce9", 2, temperature=0) == "\N{REPLACEMENT CHARACTER}" * 2
    assert capsys.readouterr().out


def test_other_models_are_refused():
    sampling.check(follower(), "m")
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(300)])
    letters = keras.Sequential([keras.Input((4,)), keras.layers.Embedding(26, 26)])
    for model in (classifier, letters):
        with pytest.raises(errors.UserError, match="Expected a language model of bytes"):
            sampling.check(model, "m")
