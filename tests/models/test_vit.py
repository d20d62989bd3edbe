"""Vision Transformers against published counts, a float64 reference, and float16's range."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmp.models import build, flops, vit
from tfmp.policies import scope, set_policy
from tfmp.training import remat

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")

# With 1,000 classes at 224 px and patches of 16. Base: "num_params" of torchvision's ViT_B_16
# weights; all, in millions: "param_count" of timm's results/benchmark-train-amp-nchw-*.csv.
TORCHVISION_BASE = 86_567_656
TIMM = {"vit_tiny": 5.72, "vit_small": 22.05, "vit_base": 86.57}
WIDTHS = {"vit_tiny": 192, "vit_small": 384, "vit_base": 768}


def micro(**options):
    return build("vit_micro", **{"classes": 10, "input_shape": (8, 8, 1), "seed": 0, **options})


def digits(dtype="uint8", size=8, channels=1):
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, channels))
    return images.astype(dtype)


def published(width, depth=12, patch=16, size=224, classes=1000):
    """Parameters of the published form, layer by layer."""
    tokens = (size // patch) ** 2 + 1
    embedding = (3 * patch**2 + 1) * width + width + tokens * width
    block = 4 * width + (width + 1) * 3 * width + (width + 1) * width
    block += (width + 1) * 4 * width + (4 * width + 1) * width
    return embedding + depth * block + 2 * width + (width + 1) * classes


@pytest.mark.parametrize("name", TIMM)
def test_parameters_equal_the_published_ones(name):
    model = build(name, classes=1000, input_shape=(224, 224, 3))
    width = WIDTHS[name]
    # Less the bias of the patches and the position of the class token, which add nothing.
    assert model.count_params() + 2 * width == published(width)
    assert round(model.count_params() / 1e6, 2) == round(published(width) / 1e6, 2) == TIMM[name]
    assert model.get_layer("embedding").output.shape == (None, 197, width)
    if name == "vit_base":
        assert published(width) == TORCHVISION_BASE
        # 1e9 multiply-adds, attention's products too: "_ops" of the same weights.
        assert flops.multiply_adds(model) / 1e9 == pytest.approx(17.564, rel=1e-3)


def reference(model, images, depth, heads, epsilon=1e-6):
    """The equations of the paper in float64, from the model's weights."""
    weights = {v.path: np.asarray(v, np.float64) for v in model.trainable_variables}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    x = (images.astype(np.float64) / 255 - 0.449) / 0.226
    patches = [
        x[:, i : i + 2, j : j + 2].reshape(len(x), -1)
        for i in range(0, 8, 2)
        for j in range(0, 8, 2)
    ]
    x = dense(np.stack([np.zeros_like(patches[0]), *patches], axis=1), "embedding")
    for block in range(1, depth + 1):
        name = f"block{block}_attention"
        y = dense(norm(x, f"{name}_norm"), f"{name}_qkv")
        queries, keys, values = np.split(y, 3, axis=-1)
        size = queries.shape[-1] // heads
        joined = []
        for head in range(heads):
            q, k, v = (z[..., head * size : (head + 1) * size] for z in (queries, keys, values))
            logits = q @ k.transpose(0, 2, 1) / math.sqrt(size)
            shares = np.exp(logits - logits.max(-1, keepdims=True))
            joined.append(shares / shares.sum(-1, keepdims=True) @ v)
        x = x + dense(np.concatenate(joined, -1), f"{name}_out")
        name = f"block{block}_mlp"
        y = dense(norm(x, f"{name}_norm"), f"{name}_in")
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = x + dense(y, f"{name}_out")
    return dense(norm(x, "norm")[:, 0], "head")


def test_it_computes_the_papers_equations():
    model = micro(patch_size=2)
    for layer in model.layers:  # biases and normalization count, too
        for variable in layer.trainable_variables:
            if layer.name != "embedding" and len(variable.shape) == 1:
                shift = np.random.default_rng(1).normal(0, 0.1, variable.shape)
                variable.assign_add(shift.astype(np.float32))
    expected = reference(model, digits(), depth=MICRO["depth"], heads=MICRO["heads"])
    np.testing.assert_allclose(model.predict(digits(), verbose=0), expected, atol=2e-5)
    half = set_policy(model, "mixed_float16").predict(digits(), verbose=0)
    assert 0 < np.abs(half - expected).max() < 0.02


MICRO = vit.MODELS["vit_micro"].keywords


@pytest.mark.parametrize("policy", POLICIES)
def test_logits_are_float32_and_the_images_dtype_does_not_count(policy):
    with scope(policy) as in_force:
        model = micro()
    assert model.get_layer("block1_attention_qkv").compute_dtype == in_force.compute_dtype
    assert {v.dtype for v in model.variables} == {"float32"}
    expected = model.predict(digits(), verbose=0)
    assert expected.shape == (4, 10) and expected.dtype == np.float32
    assert np.isfinite(expected).all()
    for dtype in ("float32", "int32"):
        np.testing.assert_array_equal(model.predict(digits(dtype), verbose=0), expected)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_attention_computes_in_the_policys_dtype(policy):
    with scope(policy) as in_force:
        built = micro()
    for model, dtype in (
        (built, in_force.compute_dtype),
        (set_policy(micro(), policy), in_force.compute_dtype),
        (set_policy(built, "float32"), "float32"),
    ):
        found = [x for node in flops.products(model) for x in (*node.input_tensors, *node.outputs)]
        assert len(found) == 4 * MICRO["depth"] and {x.dtype for x in found} == {dtype}


def test_patches_go_by_the_size():
    def side(size, **options):
        model = micro(input_shape=(size, size, 3), **options)
        return round(math.sqrt(model.get_layer("patches").output.shape[-1] / 3))

    assert [side(n) for n in (8, 28, 32, 64, 96, 224, 384)] == [4, 4, 4, 8, 8, 16, 16]
    assert side(28, patch_size=7) == 7
    model = micro(input_shape=(32, 64, 3), patch_size=8)
    assert model.get_layer("embedding").bias.shape == (4 * 8 + 1, MICRO["width"])


def test_pooling_is_by_the_token_or_by_the_mean():
    token, mean = micro(), micro(pool="mean")
    assert token.get_layer("embedding").bias.shape[0] == 5
    assert mean.get_layer("embedding").bias.shape[0] == 4
    normalized = keras.Model(mean.input, mean.get_layer("norm").output)(digits())
    pooled = keras.Model(mean.input, mean.get_layer("pool").output)(digits())
    np.testing.assert_allclose(pooled, np.mean(normalized, axis=1), atol=1e-6)


def test_every_weight_gets_a_gradient_and_remat_cuts_between_the_branches():
    with scope("mixed_float16"):
        model = micro(dropout=0.1, stochastic_depth=0.5, patch_size=2)
    ends = [x.end._keras_history.operation.name for x in remat._plan(model).values()]
    assert ends[0] == "embedding_dropout" and len(ends) > 1
    assert all(x.startswith("block") and x.endswith("_add") for x in ends[1:])

    @tf.function(jit_compile=True)
    def run(images):
        with remat.recomputing(model), tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(images, training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    for variable, gradient in zip(model.trainable_variables, run(digits()), strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient), variable.path


def test_stochastic_depth_leaves_out_whole_branches_of_single_images():
    options = {"width": 16, "heads": 2, "classes": 10, "input_shape": (8, 8, 1), "patch_size": 2}
    model = vit.vit(depth=2, stochastic_depth=0.5, seed=0, **options)
    assert not [x for x in model.layers if x.name.startswith("block1_") and "depth" in x.name]
    branch = keras.Model(model.input, model.get_layer("block2_attention_depth").output)
    images = np.repeat(digits()[:1], 64, axis=0)
    out = np.asarray(branch(images, training=True))
    left = (out == 0).all(axis=(1, 2))
    assert 16 < left.sum() < 48 and np.all(out[~left])
    np.testing.assert_allclose(out[~left] / 2, np.asarray(branch(images))[~left], atol=1e-5)


def test_a_saved_model_loads_in_plain_keras(tmp_path, run_fresh):
    expected = {}
    for policy in POLICIES[:2]:
        with scope(policy):
            model = micro(stochastic_depth=0.2, dropout=0.1, patch_size=2)
        model.save(tmp_path / f"{policy}.keras")
        expected[policy] = model.predict(digits(), verbose=0)
    np.save(tmp_path / "images.npy", digits())
    code = (
        "import pathlib, sys, warnings, keras, numpy as np\n"
        "for file in pathlib.Path().glob('*.keras'):\n"
        "    model = keras.models.load_model(file)\n"
        "    np.save(file.stem, model.predict(np.load('images.npy'), verbose=0))\n"
        "assert not any(name.startswith('tfmp') for name in sys.modules)"
    )
    run_fresh("-c", code, cwd=tmp_path)
    for policy in POLICIES[:2]:
        np.testing.assert_array_equal(np.load(tmp_path / f"{policy}.npy"), expected[policy])


def test_a_seed_gives_the_same_weights():
    first, second, other = micro(), micro(), micro(seed=1)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [x.get_layer("block1_mlp_in").kernel for x in (first, other)]
    assert not np.array_equal(*kernels)
    assert not np.array_equal(kernels[0], first.get_layer("block2_mlp_in").kernel)


def test_what_cannot_be_built_says_why():
    with pytest.raises(ValueError, match=r"patch_size: expected a divisor .* 8 and 8. Received: 3"):
        micro(patch_size=3)
    with pytest.raises(ValueError, match=r"patch_size: images of 250x250 .* 15,625 patches of 2x2"):
        micro(input_shape=(250, 250, 3))
    with pytest.raises(
        ValueError, match=r"heads: expected a divisor of the width, 64. Received: 5"
    ):
        vit.vit(width=64, depth=1, heads=5, classes=10, input_shape=(8, 8, 1))
    with pytest.raises(ValueError, match=r"pool: .*Received: 'max'"):
        micro(pool="max")
    with pytest.raises(ValueError, match=r"below 1. Received: 0.0, 1.0"):
        micro(stochastic_depth=1.0)
    with pytest.raises(ValueError, match="classes: expected an integer, 1 or more"):
        micro(classes=0)
