"""Learning rates by hand, weight decay where it belongs."""

import keras
import numpy as np
import pytest

from tfmp import loss_scale, policies
from tfmp.training import TrainingConfig, optimizers


def test_learning_rate_by_hand():
    config = TrainingConfig(epochs=4, warmup_epochs=1, batch_size=128, learning_rate=0.1)
    rate = optimizers.learning_rate(config, steps_per_epoch=10)
    peak = 0.1 / 256 * 128
    assert float(rate(0)) == 0
    assert float(rate(5)) == pytest.approx(peak / 2)
    assert float(rate(10)) == pytest.approx(peak)
    assert float(rate(25)) == pytest.approx(peak / 2)  # half of the cosine's 30 steps
    assert float(rate(40)) == pytest.approx(0, abs=1e-9)


def test_without_warm_up_it_starts_at_the_peak():
    config = TrainingConfig(epochs=2, warmup_epochs=0, batch_size=256, learning_rate=0.1)
    assert float(optimizers.learning_rate(config, 10)(0)) == pytest.approx(0.1)


def test_the_learning_rate_follows_the_batch_and_not_its_parts():
    parts = TrainingConfig(batch_size=64, gradient_accumulation_steps=2)
    rates = [
        float(optimizers.learning_rate(config, 20)(150))
        for config in (parts, TrainingConfig(batch_size=64), TrainingConfig(batch_size=128))
    ]
    assert rates[0] == rates[1] == pytest.approx(rates[2] / 2)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_weight_decay_spares_biases_and_normalization(name, tiny_model):
    model = tiny_model
    config = TrainingConfig(optimizer=name, warmup_epochs=0, weight_decay=0.5, learning_rate=0.5)
    optimizer = optimizers.build(config, model, steps_per_epoch=10)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape, "float32"))
    optimizer.apply(
        [np.zeros(v.shape, "float32") for v in model.trainable_variables], model.trainable_variables
    )
    for variable in model.trainable_variables:
        decayed = not np.allclose(variable.numpy(), 1)
        assert decayed == (variable.name == "kernel"), variable.path


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_without_weight_decay_nothing_decays(name, tiny_model):
    config = TrainingConfig(optimizer=name, warmup_epochs=0, weight_decay=0.0)
    optimizer = optimizers.build(config, tiny_model, steps_per_epoch=10)
    before = tiny_model.get_weights()
    gradients = [np.zeros(v.shape, "float32") for v in tiny_model.trainable_variables]
    optimizer.apply(gradients, tiny_model.trainable_variables)
    for old, new in zip(before, tiny_model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("policy", "dynamic", "first"),
    [("float32", False, 1.0), ("mixed_bfloat16", False, 1.0), ("mixed_float16", True, 64.0)],
)
def test_only_float16_gets_a_dynamic_scale_but_every_policy_skips(policy, dynamic, first):
    with policies.scope(policy):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = optimizers.build(TrainingConfig(initial_scale=64.0, warmup_epochs=0), model, 10)
    assert isinstance(optimizer, loss_scale.LossScaleOptimizer)
    assert loss_scale.is_dynamic(optimizer) == dynamic
    assert loss_scale.scale(optimizer) == first
    before = [v.numpy() for v in model.trainable_variables]
    gradients = [np.full(v.shape, np.inf, "float32") for v in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    for old, variable in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert optimizer.skipped_steps.numpy() == 1
    assert float(loss_scale.scale(optimizer)) == (first / 2 if dynamic else first)


def test_biases_with_several_axes_and_embeddings_are_spared_too():
    inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(5, 4)(inputs)
    x = keras.layers.EinsumDense("btp,pd->btd", (3, 2), bias_axes="td")(x)
    model = keras.Model(inputs, x)
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    optimizers.exclude_from_weight_decay(optimizer, model)
    decayed = [v.name for v in model.trainable_variables if optimizer._use_weight_decay(v)]
    assert decayed == ["kernel"]


def test_clip_norm_bounds_all_gradients_together():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    flags = {"warmup_epochs": 0, "weight_decay": 0.0, "learning_rate": 256 / 64, "clip_norm": 0.5}
    optimizer = optimizers.build(TrainingConfig(**flags), model, 10)
    before = [v.numpy() for v in model.trainable_variables]
    optimizer.apply([np.full((1, 1), 3.0), np.full((1,), 4.0)], model.trainable_variables)
    # Nesterov's first step is (1 + momentum) times the gradient, here (0.3, 0.4).
    for old, variable, gradient in zip(before, model.trainable_variables, (0.3, 0.4), strict=True):
        assert float(np.squeeze(old - variable.numpy())) == pytest.approx(1.9 * gradient, rel=1e-5)
