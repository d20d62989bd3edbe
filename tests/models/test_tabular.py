"""Models of tables against their papers' equations, and numbers that float16 doesn't hold."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp import errors
from tfmp.models import tabular
from tfmp.policies import scope, set_policy

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")
# Means and deviations of numbers that float16, float32 or Keras' Normalization can't take as such.
MEANS = (5e9, 2e-9, 1e30, 0.0)
DEVIATIONS = (1e9, 1e-9, 1e30, 1e-20)
OPTIONS = {
    "means": MEANS,
    "deviations": DEVIATIONS,
    "with_missing": (False, True, False, False),
    "categories": (3, 2),
    "width": 16,
    "seed": 0,
}


def features(rows=64, seed=0):
    """Standardized numbers, and features that come to them."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(rows, 4))
    codes = np.stack([generator.integers(0, 4, rows), generator.integers(0, 3, rows)], axis=1)
    numeric = (z * DEVIATIONS + MEANS).astype(np.float32)
    return z, {"numeric": numeric, "categorical": codes.astype(np.int32)}


def reference(name, model, z, codes, missing):
    """The paper's equations in float64, from the model's weights."""
    weights = {v.path: np.asarray(v, np.float64) for v in model.variables}

    def dense(x, layer):
        return x @ weights[f"{layer}/kernel"] + weights[f"{layer}/bias"]

    def norm(x, layer):
        x = (x - weights[f"{layer}/moving_mean"]) / np.sqrt(
            weights[f"{layer}/moving_variance"] + 1e-5
        )
        return x * weights[f"{layer}/gamma"] + weights[f"{layer}/beta"]

    embedded = weights["embedding/embeddings"][codes + [0, 4]]
    x = np.concatenate([z, missing, embedded.reshape(len(z), -1)], axis=1)
    if name == "mlp":
        for block in (1, 2):
            x = np.maximum(dense(x, f"block{block}_dense"), 0)
        return dense(x, "head")
    x = dense(x, "first")
    for block in (1, 2):
        y = np.maximum(dense(norm(x, f"block{block}_norm"), f"block{block}_in"), 0)
        x = x + dense(y, f"block{block}_out")
    return dense(np.maximum(norm(x, "norm"), 0), "head")


@pytest.mark.parametrize("name", tabular.MODELS)
def test_it_computes_the_papers_equations_of_normalized_numbers(name):
    model = tabular.build(name, outputs=3, **OPTIONS)
    for variable in model.variables:  # statistics, scales and biases count, too
        if len(variable.shape) == 1 and "seed" not in variable.path:
            shift = np.random.default_rng(1).normal(0, 0.1, variable.shape)
            variable.assign_add(np.abs(shift).astype(np.float32))
    z, inputs = features()
    inputs["numeric"][5, 1] = np.nan
    z[5, 1] = 0
    missing = (np.arange(64) == 5).astype(float)[:, None]
    expected = reference(name, model, z, inputs["categorical"], missing)
    out = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    half = set_policy(model, "mixed_float16").predict(inputs, verbose=0)
    assert 0 < np.abs(half - expected).max() < 0.02


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_number_of_a_row_leaves_the_range_of_the_policy(policy, jit_compile):
    with scope(policy):
        model = tabular.build("tabular_resnet", **OPTIONS)
    _, inputs = features(4)
    inputs["numeric"][1] = [np.inf, -np.inf, 3e38, 1e20]
    inputs["numeric"][2] = [-3e38, np.nan, np.nan, np.nan]

    @tf.function(jit_compile=jit_compile)
    def run(inputs):
        with tf.GradientTape() as tape:
            out = model(inputs, training=True)
            loss = tf.reduce_mean(out**2)
        return out, tape.gradient(loss, model.trainable_variables)

    out, gradients = run(inputs)
    assert out.dtype == tf.float32 and np.isfinite(out).all()
    assert all(np.isfinite(tf.convert_to_tensor(x)).all() for x in gradients)
    normalized = keras.Model(model.input, model.get_layer("normalize").output)(inputs)
    assert normalized.dtype == tf.float32


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_code_of_no_category_counts_as_unseen(jit_compile):
    model = tabular.build("mlp", **OPTIONS)
    _, inputs = features(5)
    inputs["numeric"][:] = inputs["numeric"][0]
    inputs["categorical"][:] = [[0, 0], [4, 0], [-1, 3], [99, -99], [3, 2]]
    out = tf.function(model, jit_compile=jit_compile)(inputs).numpy()[:, 0]
    assert np.ptp(out[:4]) == 0 and out[4] != out[0]


def test_a_target_has_its_own_unit_beyond_float16():
    with scope("mixed_float16"):
        model = tabular.build("mlp", target_mean=5e6, target_deviation=1e6, **OPTIONS)
        plain = tabular.build("mlp", **OPTIONS)
    _, inputs = features()
    out = model.predict(inputs, verbose=0)
    expected = plain.predict(inputs, verbose=0).astype(np.float64) * 1e6 + 5e6
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert out.dtype == np.float32 and out.min() > 1e6


def test_numbers_and_sizes_may_be_numpys():
    _, inputs = features()
    numeric, labels = inputs["numeric"], np.array([0, 1, 2])
    sizes = inputs["categorical"].max(axis=0)
    model = tabular.build(
        "mlp",
        means=numeric.mean(axis=0, dtype=np.float64),
        deviations=numeric.std(axis=0, dtype=np.float64),
        with_missing=np.isnan(numeric).any(axis=0),
        categories=sizes,
        outputs=labels.max() + 1,
    )
    assert model.output_shape == (None, 3) and model.to_json()


def test_mistakes():
    for options, said in (
        ({"name": "cnn"}, "one of mlp, tabular_resnet"),
        ({"means": (1.0,)}, "as many means"),
        ({"means": (1.0,), "deviations": (0.0,), "with_missing": (True,)}, "above 0"),
        ({}, "a numeric or a categorical column"),
        ({"categories": (2,), "embedding_size": 0}, "embedding_size: .* 1 or more. Received: 0"),
        ({"categories": (2,), "outputs": 0}, "outputs: .* 1 or more. Received: 0"),
        ({"categories": (2,), "outputs": 2.5}, "outputs: expected an integer"),
        ({"categories": (2,), "dropout": 1.0}, "dropout: expected 0 to below 1. Received: 1.0"),
    ):
        with pytest.raises(errors.UserError, match=said):
            tabular.build(**{"name": "mlp", **options})
