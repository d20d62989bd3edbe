"""An overflow on any replica: nothing changes anywhere, the scale is halved once, it goes on."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    assert_replicas_agree,
    assert_same,
    build,
    images,
    is_counter,
    make,
    snapshot,
    variables,
)

import tfmp
from tfmp import loss_scale, policies

REPLICAS = [pytest.param(n, marks=pytest.mark.replicas(n)) for n in (2, 3)]
SHARE = 4  # examples of each replica
SCALE = 2.0**10
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def poisoned_data(replicas, poison):
    """Good steps and, between them, one bad step by each replica in turn.

    Args:
        replicas: Number of replicas.
        poison: "image": an infinite input. "weight": the forward pass stays finite, and only the
            gradients overflow.

    Returns:
        Images, labels, weights; the steps that are bad.
    """
    size, steps = SHARE * replicas, 2 * replicas + 1
    x, y = images(size * steps)
    weights = np.ones(len(x), np.float32)
    bad_steps = range(1, steps, 2)
    for replica, step in enumerate(bad_steps):
        example = step * size + replica * SHARE + 1
        if poison == "image":
            x[example, 3, 3] = 1e6  # infinite in float16
        else:
            weights[example] = 1e30
    return x, y, weights, bad_steps


class Snapshots(keras.callbacks.Callback):
    """Every replica's state after every step."""

    def on_train_begin(self, logs=None):
        self.after = []

    def on_train_batch_end(self, batch, logs=None):
        self.after.append(snapshot(self.model))


def adam():
    """Scales the loss by as much as never overflows by itself."""
    return tfmp.LossScaleOptimizer(
        keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9), initial_scale=SCALE
    )


def without_batch_norm():
    return build(batch_norm=False, dropout=0)


def run(model, poison, **kwargs):
    """Fits on the poisoned data; returns the states after each step, the bad steps, the logs."""
    replicas = model.distribute_strategy.num_replicas_in_sync
    x, y, weights, bad_steps = poisoned_data(replicas, poison)
    states = Snapshots()
    history = model.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=SHARE * replicas,
        shuffle=False,
        verbose=0,
        callbacks=[states],
    ).history
    return states.after, bad_steps, history


def check(model, states, bad_steps, only=lambda name: True):
    """Asserts of the states after each step what this file is about."""
    (scale,) = (name for name in states[0] if name.endswith("/dynamic_scale"))
    iterations = loss_scale.inner(model.optimizer).iterations
    (iterations,) = (name for name, v in variables(model).items() if v is iterations)
    kernel, *_ = states[0]
    skipped = 0
    for step, state in enumerate(states):
        if step in bad_steps:
            skipped += 1
            former = states[step - 1]
            assert_same(former, state, skip=lambda name: is_counter(name) or not only(name))
        elif step:
            assert (states[step - 1][kernel][0] != state[kernel][0]).any(), "it did not go on"
        for name in filter(only, state):
            assert all(np.isfinite(copy).all() for copy in state[name]), name
        assert {float(copy) for copy in state[scale]} == {SCALE * 0.5**skipped}
        assert {int(copy) for copy in state[iterations]} == {step + 1 - skipped}
        assert_replicas_agree(model, state)
    assert skipped == len(bad_steps) == model.optimizer.skipped_steps.numpy()
    assert model.optimizer.last_overflow_step.numpy() == bad_steps[-1] + 1


@pytest.mark.parametrize(("poison", "jit_compile"), [("image", True), ("weight", False)])
@pytest.mark.parametrize("replicas", REPLICAS)
def test_in_an_accelerated_fit_it_changes_nothing_on_any_replica(
    strategy, replicas, poison, jit_compile
):
    model = tfmp.accelerate(make(strategy, "mixed_float16", adam), jit_compile=jit_compile)
    states, bad_steps, history = run(model, poison)
    check(model, states, bad_steps)
    kinds = ("gamma", "moving_mean", "momentum", "average", "seed_generator_state", "accuracy")
    for kind in kinds:
        assert any(kind in name for name in states[0]), (kind, list(states[0]))
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("replicas", REPLICAS)
def test_in_keras_own_fit_the_optimizer_alone_changes_no_weight_and_no_slot(strategy, replicas):
    model = make(strategy, "mixed_float16", adam, model=without_batch_norm)
    states, bad_steps, _ = run(model, "image")
    metrics = [v.path for v in model.metrics_variables]
    check(model, states, bad_steps, only=lambda name: name.split()[1] not in metrics)


@pytest.mark.keras_behavior
@pytest.mark.replicas(2)
def test_keras_own_loss_scaling_applies_an_overflow_of_the_second_replica(strategy):
    with strategy.scope(), policies.scope("mixed_float16"):
        model = without_batch_norm()
        model.compile(keras.optimizers.SGD(0.1), LOSS)
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    x, y = images(2 * SHARE)
    x[SHARE + 1] = 1e6
    model.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
    assert all(np.isnan(v.numpy()).any() for v in model.trainable_variables)
    assert model.optimizer.dynamic_scale.numpy() == 2.0**15


def own_loop(model, optimizer, compiled):
    """A function of a distributed batch: a training step without Keras' `fit`."""
    replicas = model.distribute_strategy.num_replicas_in_sync

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True)) / replicas
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    def step(x, y):
        model.distribute_strategy.run(replica_step, args=(x, y))

    return tf.function(step) if compiled else step


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("replicas", REPLICAS)
def test_in_a_loop_of_ones_own_it_changes_no_weight_and_no_slot(strategy, replicas, compiled):
    with strategy.scope(), policies.scope("mixed_float16"):
        model = without_batch_norm()
        optimizer = model.optimizer = adam()  # attribute: for the helpers
        if compiled:
            optimizer.build(model.trainable_variables)
    step = own_loop(model, optimizer, compiled)
    x, y, _, bad_steps = poisoned_data(replicas, "image")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(SHARE * replicas)
    states = []
    for batch in strategy.experimental_distribute_dataset(data):
        step(*batch)
        states.append(snapshot(model))
    check(model, states, bad_steps)


@pytest.mark.replicas(2)
def test_a_function_that_would_have_to_build_the_optimizer_is_told_to_build_it_before(strategy):
    with strategy.scope():
        model = without_batch_norm()
        step = own_loop(model, tfmp.wrap("adam"), compiled=True)
    x, y = images(2 * SHARE)
    data = tf.data.Dataset.from_tensors((x, y))
    (batch,) = strategy.experimental_distribute_dataset(data)
    with pytest.raises(ValueError, match=r"Call optimizer\.build"):
        step(*batch)
