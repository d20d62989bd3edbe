"""The loss scale by hand: what grows it, what lowers it, and what a bad step leaves alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import loss_scale

KERAS_OWN = keras.optimizers.LossScaleOptimizer


@pytest.fixture
def weight():
    return keras.Variable(np.array([1.0, 2.0], "float32"))


def scales(taken):
    return [float(optimizer.dynamic_scale.numpy()) for optimizer in taken]


# A series of steps, and the scale after each.
GOLDEN = {
    "hysteresis 1": (
        {"initial_scale": 8, "dynamic_growth_steps": 2},
        "..x...xn..",
        [8, 16, 8, 8, 16, 16, 8, 4, 4, 8],
    ),
    # Megatron: good steps alone don't replenish the tracker, growth does.
    "hysteresis 3": (
        {"initial_scale": 8, "dynamic_growth_steps": 2, "hysteresis": 3},
        "xx.xx..xxx",
        [8, 8, 8, 4, 2, 2, 4, 4, 4, 2],
    ),
    "factors": (
        dict(initial_scale=16, dynamic_growth_steps=1, growth_factor=4.0, backoff_factor=0.25),
        ".x.xx",
        [64, 16, 64, 16, 4],
    ),
    "floor": (
        {"initial_scale": 8, "min_scale": 3.0, "dynamic_growth_steps": 1},
        "xxxx.",
        [4, 3, 3, 3, 6],
    ),
    "ceiling": (
        {"initial_scale": 4, "max_scale": 40.0, "growth_factor": 3.0, "dynamic_growth_steps": 1},
        "....x.",
        [12, 36, 40, 40, 20, 40],
    ),
    "static": ({"static_scale": 4, "dynamic_growth_steps": 1}, "..xxx.", [4] * 6),
    "static below the floor": ({"static_scale": 0.5}, "x.", [0.5] * 2),
    "static above the ceiling": ({"static_scale": 2.0**30}, "x.", [2.0**30] * 2),
    "growth after 2000 steps": ({}, "." * 2000, [2.0**15] * 1999 + [2.0**16]),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_the_scale_by_hand(case, steps, weight):
    arguments, series, expected = GOLDEN[case]
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.SGD(1.0), **arguments)
    assert scales(steps(optimizer, weight, series)) == expected


@pytest.mark.parametrize("case", ["hysteresis 1", "hysteresis 3", "ceiling"])
def test_the_scale_is_the_same_however_it_runs(case, steps, weight, way):
    arguments, series, expected = GOLDEN[case]
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.SGD(1.0), **arguments)
    assert scales(steps(optimizer, weight, series, way)) == expected


@pytest.mark.parametrize("own", [True, False])
def test_two_hundred_bad_steps_leave_a_scale_that_works(own, steps, weight):
    """Keras' own class makes a NaN of it; should that change, this says so."""
    kind = tfmp.LossScaleOptimizer if own else KERAS_OWN
    optimizer = kind(keras.optimizers.SGD(1.0))
    for _ in steps(optimizer, weight, "x" * 200):
        pass
    scale = optimizer.dynamic_scale.numpy()
    optimizer.apply([scale * np.array([0.25, 1.0], "float32")], [weight])
    if not own:
        assert scale == 0 and np.isnan(weight.numpy()).all()
        return
    assert scale == 1.0
    np.testing.assert_array_equal(weight.numpy(), [0.75, 1.0])


def test_growth_never_passes_the_ceiling(steps, weight):
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.SGD(1.0), dynamic_growth_steps=1)
    found = scales(steps(optimizer, weight, "." * 200))
    assert max(found) == found[-1] == 2.0**24
    assert found[:9] == [2.0**n for n in range(16, 25)]


def test_counters_by_hand(steps, weight, way):
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.SGD(1.0))
    expected = {
        "skipped_steps": [0, 1, 1, 2, 3, 3],
        "consecutive_skips": [0, 1, 0, 1, 2, 0],
        "last_overflow_step": [0, 2, 2, 4, 5, 5],
        "step_counter": [1, 0, 1, 0, 0, 1],
        "iterations": [1, 1, 2, 2, 2, 3],
    }
    found = {name: [] for name in expected}
    for number, taken in enumerate(steps(optimizer, weight, ".x.xn.", way), 1):
        for name, values in found.items():
            values.append(int(getattr(taken, name).numpy()))
        assert int(loss_scale.steps(taken)) == number
        assert int(loss_scale.skipped_steps(taken)) == found["skipped_steps"][-1]
    assert found == expected


STATEFUL = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adamw, averages": lambda: keras.optimizers.AdamW(
        0.1, weight_decay=0.1, global_clipnorm=1.0, use_ema=True, ema_overwrite_frequency=2
    ),
    "accumulation": lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
    "schedule": lambda: keras.optimizers.Lamb(keras.optimizers.schedules.CosineDecay(0.1, 10)),
}


@pytest.mark.parametrize("where", ["dense", "slices"])
@pytest.mark.parametrize("inner", STATEFUL)
def test_a_bad_step_changes_no_weight_slot_average_or_iterations(inner, where, way):
    kernel, table = (keras.Variable(np.ones(shape, "float32")) for shape in ((2,), (3, 2)))
    optimizer = tfmp.LossScaleOptimizer(STATEFUL[inner]())

    @way
    def step(dense, sparse):
        slices = tf.IndexedSlices([[sparse, 2.0]], [1], (3, 2))
        optimizer.apply([tf.stack([1.0, dense]), slices], [kernel, table])

    optimizer.build([kernel, table])
    step(tf.constant(1.0), tf.constant(1.0))
    watched = [kernel, table, *optimizer.inner_optimizer.variables]
    before = [v.numpy() for v in watched]
    for bad in (np.inf, -np.inf, np.nan):
        values = (bad, 1.0) if where == "dense" else (1.0, bad)
        step(*map(tf.constant, values))
    for variable, old in zip(watched, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old, err_msg=variable.path)
    assert optimizer.skipped_steps.numpy() == 3
    step(tf.constant(1.0), tf.constant(1.0))
    assert any((v.numpy() != old).any() for v, old in zip(watched, before, strict=True))
    assert all(np.isfinite(v.numpy()).all() for v in watched)


@pytest.mark.parametrize("by_keras", [False, True])
def test_what_nadam_keeps_in_an_attribute_is_a_part_of_its_state(by_keras, weight, steps, way):
    inner = keras.optimizers.Nadam(0.1)
    if by_keras:
        keras.optimizers.LossScaleOptimizer(inner).build([weight])
    optimizer = tfmp.LossScaleOptimizer(inner)
    found = [inner._u_product.numpy() for _ in steps(optimizer, weight, ".x.", way)]
    assert found[0] == found[1] > found[2]
    assert sum(v is inner._u_product for v in optimizer.variables) == 1


def test_clipping_by_global_norm_sees_unscaled_gradients(weight):
    inner = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
    optimizer = tfmp.LossScaleOptimizer(inner)
    optimizer.apply([2.0**15 * np.array([3.0, 4.0], "float32")], [weight])  # norm 5, to be 1
    np.testing.assert_allclose(weight.numpy(), [1 - 0.6, 2 - 0.8], rtol=1e-6)


def test_a_missing_gradient_is_no_overflow(weight):
    other = keras.Variable(np.ones(1, "float32"))
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.SGD(1.0), static_scale=2.0)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, np.array([2.0, 4.0], "float32")], [other, weight])
    np.testing.assert_array_equal(weight.numpy(), [0.0, 0.0])
    np.testing.assert_array_equal(other.numpy(), [1.0])
    assert optimizer.skipped_steps.numpy() == 0


def test_the_loss_is_scaled_before_and_after_the_variables_are_made(weight):
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=8.0)
    assert float(optimizer.scale_loss(tf.constant(0.5))) == 4.0
    assert float(loss_scale.scale(optimizer)) == 8.0
    optimizer.build([weight])
    optimizer.dynamic_scale.assign(2.0)
    assert float(optimizer.scale_loss(tf.constant(0.5))) == 1.0
    assert float(loss_scale.scale(optimizer)) == 2.0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[("static_scale", 0.0), ("static_scale", -1.0), ("min_scale", 0.0), ("min_scale", -2.0)],
        *[("max_scale", 0.5), ("max_scale", float("inf")), ("max_scale", float("nan"))],
        *[("initial_scale", 0.5), ("initial_scale", 2.0**25), ("initial_scale", float("nan"))],
        *[("growth_factor", 1.0), ("growth_factor", 0.5), ("growth_factor", float("nan"))],
        *[("backoff_factor", 0.0), ("backoff_factor", 1.0), ("backoff_factor", float("nan"))],
        *[("dynamic_growth_steps", 0), ("hysteresis", 0), ("static_scale", float("nan"))],
        *[("static_scale", float("inf")), ("growth_factor", float("inf"))],
    ],
)
def test_an_argument_out_of_range_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"Expected {argument} .*Received: {value}\."):
        tfmp.LossScaleOptimizer(keras.optimizers.SGD(), **{argument: value})


@pytest.mark.parametrize("kind", [tfmp.LossScaleOptimizer, KERAS_OWN])
def test_two_loss_scales_around_one_another_are_refused(kind):
    with pytest.raises(ValueError, match="Received: LossScaleOptimizer; use its inner_optimizer"):
        tfmp.LossScaleOptimizer(kind(keras.optimizers.SGD()))


def test_any_optimizer_can_be_asked(weight):
    plain = keras.optimizers.SGD(1.0)
    plain.build([weight])
    plain.apply([np.ones(2, "float32")], [weight])
    assert loss_scale.scale(plain) == 1.0
    assert loss_scale.skipped_steps(plain) == 0
    assert int(loss_scale.steps(plain)) == 1
    assert loss_scale.inner(plain) is plain
    assert not loss_scale.is_dynamic(plain)
    assert loss_scale.is_dynamic(KERAS_OWN(keras.optimizers.SGD()))
    assert loss_scale.is_dynamic(tfmp.LossScaleOptimizer(plain))
    assert not loss_scale.is_dynamic(tfmp.LossScaleOptimizer(plain, static_scale=1.0))


def test_a_schedule_is_computed_once_a_step_however_many_weights_decay(way):
    calls = []

    class Counted(keras.optimizers.schedules.CosineDecay):
        def __call__(self, step):
            calls.append(step)
            return super().__call__(step)

    variables = [keras.Variable([1.0, 2.0]) for _ in range(3)]
    adamw = keras.optimizers.AdamW(Counted(0.1, 10), weight_decay=0.1)
    optimizer = tfmp.LossScaleOptimizer(adamw, static_scale=1.0)
    optimizer.build(variables)

    @way
    def step():
        optimizer.apply([tf.ones(2)] * 3, variables)

    step()
    assert len(calls) == 1
    after_one = float(adamw.learning_rate)  # and it falls from step to step as before
    step()
    assert float(adamw.learning_rate) < after_one < 0.1


class Halved(keras.optimizers.SGD):
    @property
    def learning_rate(self):
        return super().learning_rate * 0.5


class Twice(keras.optimizers.SGD):
    def apply(self, *args):
        super().apply(*args)
        super().apply(*args)


def patched(schedule):
    optimizer = keras.optimizers.SGD(schedule)
    optimizer.__dict__["_get_current_learning_rate"] = lambda: 0.25
    return optimizer


@pytest.mark.parametrize("make", [Halved, Twice, patched])
def test_a_schedule_in_an_optimizer_of_ones_own_is_left_to_it(make, weight, way):
    """Three steps of it alone, and within the loss scale."""
    found = []
    for scaled in (False, True):
        weight.assign([1.0, 2.0])
        optimizer = make(keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.1]))
        if scaled:
            optimizer = tfmp.LossScaleOptimizer(optimizer, static_scale=1.0)
        optimizer.build([weight])
        apply = way(lambda gradient, optimizer=optimizer: optimizer.apply([gradient], [weight]))
        for _ in range(3):
            apply(tf.ones(2))
        found.append(weight.numpy().tolist())
    assert found[0] == found[1]
