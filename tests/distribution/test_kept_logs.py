"""What several GPUs do whose whole step XLA compiles: nothing that the host would wait for.

Two CPUs play them, whose steps XLA doesn't compile. In its loops they can't add up, so there both
get the same examples, and the sum is twice what each has.
"""

import collections
import functools
import importlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import DEVICE, build, images, make
from tensorflow.python.eager import context  # no public way to a function's parts

import tfmp
from tfmp import distribution
from tfmp.training import executions, vector
from tfmp.training.replica import ReplicaSteps

pytestmark = [
    pytest.mark.replicas(2),
    pytest.mark.skipif(DEVICE == "GPU", reason="CPUs play GPUs"),
]

engine = importlib.import_module("tfmp.training.accelerate")
BATCHES = 6


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(engine.Engine, "_sums_within_xla", lambda self: True)


@pytest.fixture
def loops(monkeypatch):
    """XLA's loops, by functions that it doesn't compile."""
    monkeypatch.setattr(executions, "loops_are_fast", lambda: True)
    monkeypatch.setattr(distribution, "sum_within_xla", lambda x, number: 2 * x)
    made = engine.Engine.make_train_function

    def make_train_function(self, force=False):
        self.jit_compile = True
        return made(self, force)

    def compiled(self, function):
        return tf.function(executions.after_inputs(function), autograph=False)

    monkeypatch.setattr(engine.Engine, "make_train_function", make_train_function)
    monkeypatch.setattr(engine.Engine, "_compiled", compiled)


def batches(end=False):
    """Of four examples, the second two like the first."""
    x, y = images(2 * BATCHES)
    pairs = np.arange(2 * BATCHES).reshape(-1, 2)
    order = np.concatenate([pairs, pairs], 1).ravel()
    dataset = tf.data.Dataset.from_tensor_slices((x[order], y[order]))
    dataset = dataset.batch(4, drop_remainder=True)
    return dataset if end else dataset.repeat()


def made(strategy, per_execution):
    """A model that does the same on both replicas."""
    whole = functools.partial(build, dropout=0)
    model = make(strategy, model=whole, steps_per_execution=per_execution)
    return tfmp.accelerate(model, jit_compile=False)


def trained(strategy, data, per_execution, callbacks=(), **kwargs):
    """(Logs of each step, weights) of an epoch."""
    model = made(strategy, per_execution)
    seen = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(dict(logs))
    )
    with strategy.scope():  # (where `keep` must not make a variable of each replica)
        model.fit(data, shuffle=False, verbose=0, callbacks=[callback, *callbacks], **kwargs)
    return [{k: float(v) for k, v in x.items()} for x in seen], [
        v.numpy() for v in model.trainable_variables
    ]


@pytest.mark.parametrize(
    ("per_execution", "end"), [(1, False), (1, True), (2, False), (2, True), (4, True)]
)
def test_logs_are_those_of_each_call_as_without(
    strategy, gpus, loops, monkeypatch, per_execution, end
):
    """Read after the whole epoch: later steps leave them as they were. 4 ends in a call."""
    steps = {} if end else {"steps_per_epoch": BATCHES}
    kept = trained(strategy, batches(end), per_execution, **steps)
    monkeypatch.setattr(executions, "KeptLogs", lambda device: None)
    returned = trained(strategy, batches(end), per_execution, **steps)
    assert len(kept[0]) == -(-BATCHES // per_execution)
    assert kept[0] == returned[0]
    assert len({x["loss"] for x in kept[0]}) == len(kept[0])
    for a, b in zip(kept[1], returned[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("per_execution", [1, 2])
def test_a_tracer_changes_none(strategy, gpus, loops, tmp_path, per_execution):
    steps = {"steps_per_epoch": BATCHES}
    alone = trained(strategy, batches(), per_execution, **steps)
    tracer = tfmp.Tracer(tmp_path, every=2)
    followed = trained(strategy, batches(), per_execution, [tracer], **steps)
    assert alone[0] == followed[0]
    assert tracer.trace.steps
    for a, b in zip(alone[1], followed[1], strict=True):
        np.testing.assert_array_equal(a, b)


def transfers(strategy, per_execution):
    """Tensors, or waits, that pass from one device to another in a call of `fit`."""
    model = made(strategy, per_execution)
    data = distribution.placed_ahead(strategy, batches(), per_execution)
    context.enable_run_metadata()
    try:
        with strategy.scope():
            model.fit(data, steps_per_epoch=per_execution, shuffle=False, verbose=0)
        graphs = context.export_run_metadata().function_graphs
    finally:
        context.disable_run_metadata()
    parts = [
        collections.Counter(node.op for node in part.node)
        for g in graphs
        for part in g.partition_graphs
    ]
    of_step = [ops for ops in parts if any("MatMul" in op for op in ops)]
    assert len(of_step) == 2
    return sum(count for ops in of_step for op, count in ops.items() if "Send" in op)


@pytest.mark.parametrize("per_execution", [1, 3])
def test_no_device_tells_another_that_it_is_done(strategy, gpus, loops, monkeypatch, per_execution):
    assert transfers(strategy, per_execution) == 0
    monkeypatch.setattr(executions, "KeptLogs", lambda device: None)
    assert transfers(strategy, per_execution) == 1


def test_the_sum_within_a_program_brings_nothing_from_the_host(strategy, gpus):
    assert transfers(strategy, 1) == 0


class Unused(keras.layers.Layer):
    """Has a weight without a gradient."""

    def build(self, shape):
        self.unused = self.add_weight(shape=(300,))

    def call(self, x):
        return x


def known(text):
    """Results of a program, in XLA's words, that depend on none of its parameters."""
    entry = text[text.index("\nENTRY") :]
    lines = re.findall(r"^ +(ROOT )?%(\S+) = .*? ([\w-]+)\((.*)", entry, re.M)
    needs = {name: re.findall(r"%([\w.-]+)", rest) for _, name, _, rest in lines}
    given = {name for _, name, operation, _ in lines if operation == "parameter"}
    for name in needs:  # in the order of their computation
        if given & set(needs[name]):
            given.add(name)
    (root,) = (rest for first, _, _, rest in lines if first)
    return [x for x in re.findall(r"%([\w.-]+)", root.split(")")[0]) if x not in given]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("count", [4, 0])
def test_xla_knows_no_sum_of_any_vector(strategy, monkeypatch, count):
    """It would leave it out, as the same on all replicas; and others would wait for this one."""
    monkeypatch.setattr(vector, "SIZE", 200)

    def parts():
        layers = keras.layers
        return keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Flatten(), Unused(), layers.Dense(10), Unused()]
        )

    model = make(strategy, model=parts)
    tfmp.accelerate(model, jit_compile=False).fit(*images(4), verbose=0)  # makes what it needs
    steps = ReplicaSteps(model)

    def known_vectors():
        forward = steps.forward_backward(0, in_one=False)
        step = tf.function(lambda *data: forward(data)[0], jit_compile=True, autograph=False)
        data = [tf.constant(x[:count]) for x in images(4)]
        vectors = step.get_concrete_function(*data).outputs
        assert [x.shape[0] for x in vectors] == [300, 650, 305]
        return known(step.experimental_get_compiler_ir(*data)(stage="optimized_hlo"))

    assert not known_vectors()
    monkeypatch.setattr(ReplicaSteps, "_unknown_zero", lambda self: 0.0)
    assert len(known_vectors()) == (1 if count else 2)


def test_the_sum_within_a_program_is_the_strategys(strategy, monkeypatch):
    x, y = images(4 * BATCHES)  # other ones for each replica
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    own = trained(strategy, data, 1)
    monkeypatch.setattr(vector, "SIZE", 20)  # several of them
    # Outside of XLA a sum keeps the shape that it had in another test.
    monkeypatch.setattr(distribution, "_groups", {(): 1})
    monkeypatch.setattr(engine.Engine, "_sums_within_xla", lambda self: True)
    within = trained(strategy, data, 1)
    for a, b in zip(own[1], within[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
