"""Classifiers of texts: what is no token does not count, under every policy and in both models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp.models import text_classifier
from tfmp.policies import scope

MODELS = [name for name in text_classifier.MODELS if name != "encoder_small"]


def build(name, **options):
    options = {"classes": 3, "vocabulary": 50, "length": 8, "seed": 0, **options}
    return text_classifier.MODELS[name](**options)


def tokens(length=8):
    """Three texts of 5, 8 and 0 tokens."""
    found = np.zeros((3, length), np.int64)
    random = np.random.default_rng(0)
    found[0, :5], found[1, :8] = random.integers(1, 50, 5), random.integers(1, 50, 8)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_logits_are_float32_and_padding_does_not_count(name, policy):
    with scope(policy):
        short, long = build(name), build(name, length=16)
    weights = short.get_weights()
    for variable, value in zip(long.weights, weights, strict=True):
        if variable.shape == value.shape:
            variable.assign(value)
        else:  # the positions
            variable.assign(np.concatenate([value, np.full_like(value, 9.0)]))
    one, other = short.predict(tokens(), verbose=0), long.predict(tokens(16), verbose=0)
    assert one.dtype == np.float32 and one.shape == (3, 3) and np.isfinite(one).all()
    np.testing.assert_allclose(one, other, atol={"float32": 1e-6}.get(policy, 2e-2))
    assert np.abs(one[0] - one[1]).max() > 10 * np.abs(one - other).max()
    np.testing.assert_array_equal(one[2], short.get_layer("head").bias)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_gets_a_finite_gradient_in_float16_under_xla(name):
    with scope("mixed_float16"):
        model = build(name, dropout=0.1)

    @tf.function(jit_compile=True)
    def run(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True)[:, 0])
        return tape.gradient(loss, model.trainable_variables)

    for variable, gradient in zip(model.trainable_variables, run(tokens()), strict=True):
        gradient = tf.convert_to_tensor(gradient)
        assert np.isfinite(gradient).all() and np.any(gradient), variable.path


def test_saved_models_load_in_plain_keras(tmp_path, run_fresh):
    expected = {}
    for name in MODELS:
        with scope("mixed_float16"):
            model = build(name, dropout=0.1)
        model.save(tmp_path / f"{name}.keras")
        expected[name] = model.predict(tokens(), verbose=0)
    np.save(tmp_path / "tokens.npy", tokens())
    code = (
        "import pathlib, sys, keras, numpy as np\n"
        "for file in pathlib.Path().glob('*.keras'):\n"
        "    model = keras.models.load_model(file)\n"
        "    np.save(file.stem, model.predict(np.load('tokens.npy'), verbose=0))\n"
        "assert not any(name.startswith('tfmp') for name in sys.modules)"
    )
    run_fresh("-c", code, cwd=tmp_path)
    for name in MODELS:
        found = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(found, expected[name], atol=2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_sizes_may_be_numpys(name):
    ids = tokens()
    model = build(name, classes=np.int64(3), vocabulary=ids.max() + 1, length=np.int32(8))
    assert model.output_shape == (None, 3)


def test_what_cannot_be_built_says_why():
    with pytest.raises(ValueError, match=r"classes: .* 1 or more. Received: 0"):
        build("lstm", classes=0)
    with pytest.raises(ValueError, match=r"heads: expected a divisor"):
        text_classifier.encoder(width=9, depth=1, heads=2, classes=2, vocabulary=9, length=4)
    assert isinstance(build("lstm").get_layer("lstm"), keras.layers.Bidirectional)
