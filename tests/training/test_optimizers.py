"""Learning rates by hand, weight decay where it belongs."""

import numpy as np
import pytest

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


def test_accumulated_steps_count_as_images():
    one = TrainingConfig(batch_size=64, gradient_accumulation_steps=2)
    two = TrainingConfig(batch_size=128)
    step = 150
    assert float(optimizers.learning_rate(one, 20)(step)) == pytest.approx(
        float(optimizers.learning_rate(two, 20)(step))
    )


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


def test_two_accumulated_steps_make_one_update(tiny_model):
    model = tiny_model
    config = TrainingConfig(gradient_accumulation_steps=2, warmup_epochs=0, weight_decay=0.0)
    optimizer = optimizers.build(config, model, steps_per_epoch=10)
    kernel = model.trainable_variables[0]
    before = kernel.numpy()
    gradients = [np.ones(v.shape, "float32") for v in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    np.testing.assert_array_equal(kernel.numpy(), before)
    optimizer.apply(gradients, model.trainable_variables)
    assert (kernel.numpy() < before).all()
