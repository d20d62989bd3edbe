"""Where `compile` and `wrap` put a loss scale, and what they take over."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import loss_scale, policies

KERAS_OWN = keras.optimizers.LossScaleOptimizer


def dense(policy="float32", name=None):
    return keras.layers.Dense(1, dtype=policy, name=name)


def whole_model():
    with policies.scope("mixed_float16"):
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def one_layer():
    return keras.Sequential([keras.Input((2,)), dense(), dense("mixed_float16")])


def policy_map():
    table = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    table[".*half"] = keras.DTypePolicy("mixed_float16")
    with policies.scope(table):
        return keras.Sequential([keras.Input((2,)), dense(None), dense(table, "half")])


def nested():
    inner = keras.Sequential([keras.Input((2,)), dense("float16")])
    return keras.Sequential([keras.Input((2,)), keras.Sequential([keras.Input((2,)), inner])])


def plain(policy):
    return lambda: keras.Sequential([keras.Input((2,)), dense(policy)])


@pytest.mark.parametrize("make", [whole_model, one_layer, policy_map, nested])
def test_a_float16_layer_anywhere_gets_a_loss_scale(make):
    model = tfmp.compile(make(), "adam", loss="mse")
    assert type(model.optimizer) is tfmp.LossScaleOptimizer
    assert type(model.optimizer.inner_optimizer) is keras.optimizers.Adam
    model.fit(np.full((4, 2), 2.0**-9), np.zeros((4, 1)), verbose=0)
    assert model.optimizer.iterations.numpy() == 1


@pytest.mark.parametrize("make", [one_layer, nested])
def test_what_keras_compile_leaves_out(make):
    """Should Keras mend it, this says so."""
    model = make()
    model.compile("adam", "mse")
    assert not isinstance(model.optimizer, KERAS_OWN)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("kwargs", [{}, {"auto_scale_loss": True}, {"auto_scale_loss": False}])
def test_other_precisions_get_none(policy, kwargs):
    model = tfmp.compile(plain(policy)(), "adam", loss="mse", **kwargs)
    assert type(model.optimizer) is keras.optimizers.Adam


def test_it_can_be_declined():
    model = tfmp.compile(whole_model(), "adam", loss="mse", auto_scale_loss=False)
    assert type(model.optimizer) is keras.optimizers.Adam


def test_an_optimizer_of_ours_stays_as_it_is():
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.SGD(), hysteresis=2)
    for make in (whole_model, plain("float32")):
        assert tfmp.compile(make(), optimizer, loss="mse").optimizer is optimizer
    assert tfmp.wrap(optimizer) is optimizer


def test_gradients_that_float16_loses_train_all_the_same():
    """A gradient of 2**-26 is 0 in float16, where the smallest number is 2**-24."""
    images, labels = np.full((1, 2), 2.0**-12, "float32"), np.zeros((1, 1), "float32")
    changes = []
    for compiled in (tfmp.compile, keras.Model.compile):
        model = plain("mixed_float16")()
        model.set_weights([np.zeros((2, 1)), np.full(1, 2.0**-15)])
        # The policy of the model itself is float32.
        assert model.dtype_policy.name == "float32"
        compiled(model, optimizer=keras.optimizers.SGD(2.0**20), loss="mse")
        model.fit(images, labels, verbose=0)
        changes.append(model.get_weights()[0].ravel().tolist())
    # d loss / d kernel = 2 * output * image = 2 * 2**-15 * 2**-12
    assert changes == [[-(2.0**-6)] * 2, [0.0, 0.0]]


def train(optimizer, variables, steps=2):
    for _ in range(steps):
        scale = float(loss_scale.scale(optimizer))
        optimizer.apply([tf.fill(v.shape, scale) for v in variables], variables)


class Momentum(keras.optimizers.Optimizer):
    """As Keras' documentation writes one: each `build` makes slots."""

    def build(self, variables):
        super().build(variables)
        self.slots = [self.add_variable_from_reference(v, name="slot") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        slot = self.slots[self._get_variable_index(variable)]
        self.assign(slot, slot * 0.9 + gradient)
        self.assign_sub(variable, slot * learning_rate)


INNER = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.1),
    "averages": lambda: keras.optimizers.Adam(0.1, use_ema=True),
    "of one's own": lambda: Momentum(0.1),
}


@pytest.mark.parametrize("through", ["wrap", "compile"])
@pytest.mark.parametrize("inner", INNER)
def test_keras_own_is_taken_over_with_scale_and_slots(through, inner):
    make = INNER[inner]
    model, twin = whole_model(), whole_model()
    twin.set_weights(model.get_weights())
    stock, whole = (KERAS_OWN(make(), 2.0**10, dynamic_growth_steps=3) for _ in range(2))
    train(stock, model.trainable_variables)
    train(whole, twin.trainable_variables, 4)
    stock.dynamic_scale.assign(64.0)
    if through == "wrap":
        optimizer = tfmp.wrap(stock)
    else:
        optimizer = tfmp.compile(model, stock, loss="mse").optimizer
    assert type(optimizer) is tfmp.LossScaleOptimizer
    assert optimizer.inner_optimizer is stock.inner_optimizer
    assert optimizer.dynamic_growth_steps == 3
    assert optimizer.initial_scale == 2.0**10
    assert optimizer.dynamic_scale.numpy() == 64
    assert int(loss_scale.steps(optimizer)) == 2
    train(optimizer, model.trainable_variables)
    for ours, theirs in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    found, expected = (
        {v.path: v.numpy() for v in x.inner_optimizer.variables} for x in (optimizer, whole)
    )
    assert len(found) == len(expected)
    for a, b in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrap_takes_names_and_arguments():
    assert type(tfmp.wrap("nadam").inner_optimizer) is keras.optimizers.Nadam
    optimizer = tfmp.wrap(KERAS_OWN(keras.optimizers.SGD()), hysteresis=2, initial_scale=4.0)
    assert (optimizer.hysteresis, optimizer.initial_scale) == (2, 4.0)
    assert tfmp.wrap("sgd", static_scale=8.0).static_scale == 8.0


def test_compile_passes_on_what_keras_takes():
    model = tfmp.compile(
        whole_model(), "sgd", loss="mse", metrics=["mae"], steps_per_execution=2, jit_compile=False
    )
    assert model.steps_per_execution == 2
    assert set(model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0).history) == {"loss", "mae"}


def test_all_optimizers_of_a_model_are_found(pair, linear):
    assert loss_scale.optimizers_of(linear) == [linear.optimizer]
    found = loss_scale.optimizers_of(pair)
    assert [x.name for x in found if x.name in ("one", "two")] == ["one", "two"]
