"""A small model with all kinds of state, and its variables as every replica has them."""

import os

import keras
import numpy as np
import tensorflow as tf

from tfmp import distribution, loss_scale, policies

DEVICE = os.environ.get("TFMP_TEST_DEVICE", "CPU")  # what the replicas are
NONE = tf.distribute.get_strategy()
# What an overflow changes.
COUNTERS = (
    "dynamic_scale",
    "step_counter",
    "skipped_steps",
    "consecutive_skips",
    "last_overflow_step",
    "hysteresis_left",
)


def start(replicas):
    """Gives this process so many devices, before TensorFlow looks for them."""
    if DEVICE == "GPU":  # those that it sees
        tf.config.experimental.enable_op_determinism()  # for what is compared to the bit
        return
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )


def images(count, seed=0):
    """Images [count, 8, 8, 1] float32 of 0 to 1 and labels [count] of 10 classes."""
    generator = np.random.default_rng(seed)
    return generator.random((count, 8, 8, 1), np.float32), generator.integers(0, 10, count)


def build(batch_norm=True, dropout=0.5, cls=keras.Sequential):
    """A model of a few thousand weights; the same ones at each call."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return cls(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3),
            *([layers.BatchNormalization()] if batch_norm else []),
            layers.ReLU(),
            layers.Flatten(),
            *([layers.Dropout(dropout)] if dropout else []),
            layers.Dense(10, dtype="float32"),
        ]
    )


def make(strategy, policy="float32", optimizer=None, change=None, model=build, **kwargs):
    """A compiled model.

    Args:
        strategy: The strategy to make it in.
        policy: Name of a dtype policy.
        optimizer: Function that makes the optimizer; by default SGD with momentum.
        change: Function of the model, called before it is compiled.
        model: Function that makes the model.
        **kwargs: Arguments of `compile`.
    """
    with strategy.scope(), policies.scope(policy):
        made = model()
        if change:
            change(made)
        loss_scale.compile(
            made,
            optimizer() if optimizer else keras.optimizers.SGD(0.1, momentum=0.9),
            **dict(
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                weighted_metrics=["accuracy"],
                jit_compile=False,
            )
            | kwargs,
        )
    return made


def variables(model):
    """All variables of a model by a name that is unique: weights, state, optimizer, metrics."""
    optimizer = model.optimizer
    found = [*model.variables, *optimizer.variables]
    found += loss_scale.inner(optimizer).variables
    found += [v for metric in model.metrics for v in metric.variables]
    unique = list({id(v): v for v in found}.values())
    return {f"{index} {v.path}": v for index, v in enumerate(unique)}


def snapshot(model):
    """The value of every variable on every replica: dict of name -> list of arrays."""
    strategy = model.distribute_strategy
    return {
        name: [copy.numpy() for copy in distribution.copies(strategy, v)]
        for name, v in variables(model).items()
    }


def is_counter(name):
    """Whether a skipped step changes the variable."""
    return name.split("/")[-1] in COUNTERS


def assert_same(a, b, skip=lambda name: False):
    """Asserts that two snapshots are equal bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        for one, other in zip(a[name], b[name], strict=True):
            if not skip(name):
                np.testing.assert_array_equal(one, other, err_msg=name)


def assert_replicas_agree(model, state=None):
    """Asserts that all replicas have the same bits of all but the metrics, which they sum later."""
    metrics = {id(v) for metric in model.metrics for v in metric.variables}
    state = state or snapshot(model)
    for name, v in variables(model).items():
        for copy in () if id(v) in metrics else state[name][1:]:
            np.testing.assert_array_equal(state[name][0], copy, err_msg=name)


def assert_close(model, other, **tolerance):
    """Asserts that two models have the same weights, within a tolerance of float32."""
    tolerance = {"rtol": 2e-5, "atol": 2e-6} | tolerance
    for one, two in zip(model.variables, other.variables, strict=True):
        a, b = keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(two)
        np.testing.assert_allclose(a, b, err_msg=one.path, **tolerance)
