"""Several steps a call: in a loop of XLA's where the data allow it, and the same result."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import loss_scale, policies
from tfmp.training import executions

STEPS = 3  # a call
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(8 * STEPS, 4)).astype("float32")
IMAGES[17] = np.inf  # of the third batch of a call, or the second
LABELS = RNG.normal(size=(8 * STEPS, 1)).astype("float32")
BATCHES = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4, drop_remainder=True)


@pytest.fixture
def loops(monkeypatch):
    """Traces of steps in a loop of XLA's, which are on here as on a GPU."""
    made, looped = [], executions.looped

    def counted(step):
        def several(batches):
            made.append(len(batches))
            return looped(step)(batches)

        return several

    monkeypatch.setattr(executions, "looped", counted)
    monkeypatch.setattr(executions, "loops_are_fast", lambda: True)
    return made


def model(per_execution=STEPS, **accelerating):
    """All that a step changes: weights, slots, statistics, masks' seeds, metrics, a loss scale."""
    keras.utils.set_random_seed(0)
    with policies.scope("mixed_float16"):
        made = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(6),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(1, dtype="float32"),
            ]
        )
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.Adam(0.1), initial_scale=64.0)
    made.compile(optimizer, "mse", metrics=["mae"], steps_per_execution=per_execution)
    return tfmp.accelerate(made, **accelerating)


def trained(made, batches, **kwargs):
    """(Logs of each epoch, all state) of two epochs."""
    history = made.fit(batches, epochs=2, shuffle=False, verbose=0, **kwargs).history
    state = [*made.variables, *loss_scale.inner(made.optimizer).variables]
    assert made.optimizer.skipped_steps.numpy() == 2
    return history, [variable.numpy() for variable in state]


def assert_same(one, other):
    assert one[0] == other[0]
    for value, wanted in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_loop_of_xla_does_what_single_steps_do(loops, microbatches):
    settings = {"microbatches": microbatches}
    endless = BATCHES.repeat()
    in_loop = trained(model(**settings), endless, steps_per_epoch=6)
    assert loops == [STEPS]
    assert_same(in_loop, trained(model(1, **settings), endless, steps_per_epoch=6))
    assert loops == [STEPS]


def test_data_that_end_are_left_to_the_host(loops):
    """Of six batches the first call takes four, and the second the two that are left."""
    assert_same(trained(model(4), BATCHES), trained(model(1), BATCHES))
    assert loops == []


def test_batches_of_unknown_shapes_are_left_to_the_host(loops):
    endless = BATCHES.unbatch().batch(4).repeat()
    assert_same(
        trained(model(), endless, steps_per_epoch=6), trained(model(1), endless, steps_per_epoch=6)
    )
    assert loops == []


def test_a_copy_to_a_device_has_no_end_if_its_source_has_none():
    copied = tf.data.experimental.prefetch_to_device("/CPU:0")
    for batches, endless in (
        (BATCHES.repeat(), True),
        (BATCHES, False),
        (BATCHES.repeat().filter(lambda x, y: True), False),  # nobody knows
    ):
        assert executions._is_regular(iter(batches.apply(copied))) is endless


def test_without_a_gpu_the_host_runs_the_loop(loops, monkeypatch):
    monkeypatch.setattr(executions, "loops_are_fast", lambda: False)
    trained(model(), BATCHES.repeat(), steps_per_epoch=6)
    assert loops == []


def test_batches_of_any_iterator(loops):
    """Five: a call of three in a loop, and one of the two that are left, by the host."""
    made, steps = model(), model(1)
    for each in (made, steps):
        each._symbolic_build(data_batch=next(iter(BATCHES)))
        function, batches = each.make_train_function(), iter(BATCHES.take(5))
        for _ in range(2 if each is made else 5):
            logs = function(iter_of(batches))
        each.logs = {name: float(x) for name, x in logs.items()}
    assert made.logs == steps.logs and loops == [STEPS]
    assert int(made.optimizer.inner_optimizer.iterations) == 4  # and one skipped


def iter_of(batches):
    """No `tf.data.Iterator`."""
    return (batch for batch in batches)


def test_unequal_batches_of_any_iterator_are_left_to_the_host(loops):
    batches = [*BATCHES.take(2), tf.nest.map_structure(lambda x: x[:3], next(iter(BATCHES)))]
    made = model()
    made._symbolic_build(data_batch=batches[0])
    made.make_train_function()(iter(batches))
    assert int(made.optimizer.inner_optimizer.iterations) == 3 and loops == []
