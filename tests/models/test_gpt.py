"""GPTs against published counts, a float64 reference, and what they may see."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp.models import flops, gpt
from tfmp.policies import scope, set_policy, with_float32
from tfmp.training import remat

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")
# As transformers' GPT2LMHeadModel counts openai-community/gpt2 and gpt2-medium; "124M" and "355M"
# in github.com/openai/gpt-2.
PUBLISHED = {"gpt2_small": 124_439_808, "gpt2_medium": 354_823_168}
WIDTH, DEPTH, HEADS = (gpt.MODELS["gpt_micro"].keywords[k] for k in ("width", "depth", "heads"))


def micro(**options):
    return gpt.MODELS["gpt_micro"](**{"vocabulary": 40, "context": 12, "seed": 0, **options})


def tokens(batch=3):
    return np.random.default_rng(0).integers(0, 40, (batch, 12))


def parameters(width, depth, heads, vocabulary=50257, context=1024):
    """Of GPT-2's form, layer by layer."""
    block = 4 * width + (width + 1) * 3 * width + (width + 1) * width
    block += (width + 1) * 4 * width + (4 * width + 1) * width
    return (vocabulary + context) * width + depth * block + 2 * width


def test_parameters_equal_the_published_ones():
    for name, count in PUBLISHED.items():
        assert parameters(**gpt.MODELS[name].keywords) == count
    micro_count = parameters(**gpt.MODELS["gpt_micro"].keywords, vocabulary=40, context=12)
    assert micro().count_params() == micro_count


@pytest.mark.slow  # half a gigabyte of weights
def test_gpt2_small_has_its_parameters_and_its_work():
    model = gpt.MODELS["gpt2_small"](vocabulary=50257, context=1024)
    assert model.count_params() == PUBLISHED["gpt2_small"]
    weights = PUBLISHED["gpt2_small"] - 1024 * 768
    # Vectors add and don't multiply: 12 blocks of 13 widths, and the last normalization.
    matrices = weights - 768 * (12 * 13 + 2)
    assert flops.multiply_adds(model) == 1024 * matrices + 12 * 2 * 1024**2 * 768


def test_work_by_hand():
    matrices = 12 * WIDTH**2 * DEPTH + 40 * WIDTH
    assert flops.multiply_adds(micro()) == 12 * matrices + DEPTH * 2 * 12**2 * WIDTH
    # As many tokens as features: what is looked up is no product.
    model = micro(vocabulary=WIDTH)
    assert flops.multiply_adds(model) == 12 * (matrices + (WIDTH - 40) * WIDTH) + 576 * WIDTH


def reference(model, x):
    """The equations in float64, from the model's weights."""
    weights = {v.path: np.asarray(v, np.float64) for v in model.trainable_variables}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    table = weights["tokens_embedding/embeddings"]
    x = table[x] + weights["positions_embedding/embeddings"]
    count = x.shape[1]
    for block in range(1, DEPTH + 1):
        name = f"block{block}_attention"
        y = dense(norm(x, f"{name}_norm"), f"{name}_qkv")
        heads = y.reshape(len(x), count, 3, HEADS, WIDTH // HEADS).transpose(2, 0, 3, 1, 4)
        queries, keys, values = heads
        logits = queries @ keys.swapaxes(-1, -2) / math.sqrt(WIDTH // HEADS)
        logits = np.where(np.tril(np.ones((count, count), bool)), logits, -np.inf)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        y = (shares / shares.sum(-1, keepdims=True) @ values).swapaxes(1, 2)
        x = x + dense(y.reshape(x.shape), f"{name}_out")
        name = f"block{block}_mlp"
        y = dense(norm(x, f"{name}_norm"), f"{name}_in")
        y = y * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + dense(y, f"{name}_out")
    return norm(x, "norm") @ table.T


def test_it_computes_gpt2s_equations():
    model = micro()
    for variable in model.trainable_variables:
        shift = np.random.default_rng(1).normal(0, 0.1, variable.shape)
        variable.assign_add(shift.astype(np.float32))
    expected = reference(model, tokens())
    np.testing.assert_allclose(model.predict(tokens(), verbose=0), expected, atol=2e-3, rtol=1e-4)
    half = set_policy(model, "mixed_float16").predict(tokens(), verbose=0)
    assert 0 < np.abs(half - expected).max() < 0.02 * np.abs(expected).max()


def test_the_product_for_the_logits_is_in_the_policys_dtype():
    """Keras takes an embedding's table as it is, which is float32, unless told otherwise."""

    def product(model):
        graph = tf.function(model).get_concrete_function(tokens()).graph
        return [x for x in graph.get_operations() if "Tensordot/MatMul" in x.name][-1].outputs[0]

    for policy in POLICIES:
        with scope(policy) as in_force:
            model = micro()
        kept = set_policy(model, with_float32(["tokens_embedding"], policy))
        expected = in_force.compute_dtype, in_force.compute_dtype, "float32", "float32"
        models = model, set_policy(micro(), policy), kept, set_policy(model, "float32")
        assert tuple(product(x).dtype.name for x in models) == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_logits_are_float32_and_see_no_later_token(policy):
    with scope(policy) as in_force:
        model = micro()
    assert model.get_layer("block1_attention_qkv").compute_dtype == in_force.compute_dtype
    assert {v.dtype for v in model.variables} == {"float32"}
    logits = model.predict(tokens(), verbose=0)
    assert logits.shape == (3, 12, 40) and logits.dtype == np.float32
    changed = tokens()
    changed[:, 7:] = 3
    later = model.predict(changed, verbose=0)
    np.testing.assert_array_equal(later[:, :7], logits[:, :7])
    assert (later[:, 7:] != logits[:, 7:]).any()
    np.testing.assert_array_equal(model.predict(tokens().astype("uint8"), verbose=0), logits)


def test_the_embedding_of_a_frequent_token_gets_all_of_its_gradient_in_float16():
    """4,096 equal gradients, added up one by one in float16, would end at 2,048 of them."""
    gradients = []
    for policy in ("float32", "mixed_float16"):
        with scope(policy):
            table = keras.layers.ReversibleEmbedding(4, 1, name="tokens_embedding")
            table.build((None, 4096))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(table(tf.zeros((1, 4096), tf.int64)), tf.float32))
        gradients.append(tf.convert_to_tensor(tape.gradient(loss, table.embeddings.value)))
    np.testing.assert_array_equal(gradients[1], gradients[0])
    assert gradients[1][0, 0] == 4096


def test_every_weight_gets_a_gradient_and_remat_cuts_between_the_branches():
    with scope("mixed_float16"):
        model = micro(dropout=0.1)
    ends = [x.end._keras_history.operation.name for x in remat._plan(model).values()]
    assert len(ends) > 1
    assert all(x.startswith("block") and x.endswith("_add") for x in ends[1:])

    @tf.function(jit_compile=True)
    def run(x):
        with remat.recomputing(model), tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    for variable, gradient in zip(model.trainable_variables, run(tokens()), strict=True):
        gradient = tf.convert_to_tensor(gradient)
        assert np.isfinite(gradient).all() and np.any(gradient), variable.path


def test_a_saved_model_loads_in_plain_keras(tmp_path, run_fresh):
    with scope("mixed_float16"):
        model = micro(dropout=0.1)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "tokens.npy", tokens())
    code = (
        "import sys, keras, numpy as np\n"
        "model = keras.models.load_model('model.keras')\n"
        "np.save('logits', model.predict(np.load('tokens.npy'), verbose=0))\n"
        "assert not any(name.startswith('tfmp') for name in sys.modules)"
    )
    run_fresh("-c", code, cwd=tmp_path)
    # Products in float16 depend on where their inputs lie in memory.
    expected = model.predict(tokens(), verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=4e-3)


def test_sizes_may_be_numpys():
    ids = tokens()
    model = micro(vocabulary=ids.max() + 1, context=np.int32(ids.shape[1]))
    assert model.output_shape == (None, 12, ids.max() + 1)


def test_what_cannot_be_built_says_why():
    with pytest.raises(
        ValueError, match=r"heads: expected a divisor of the width, 64. Received: 5"
    ):
        gpt.gpt(width=64, depth=1, heads=5, vocabulary=8, context=8)
    with pytest.raises(
        ValueError, match=r"vocabulary: expected an integer, 2 or more. Received: 1"
    ):
        micro(vocabulary=1)
    with pytest.raises(
        ValueError, match=r"context: expected an integer, 1 or more. Received: None"
    ):
        micro(context=None)
    with pytest.raises(ValueError, match=r"dropout: expected from 0 to below 1. Received: 1"):
        micro(dropout=1)
