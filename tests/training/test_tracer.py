"""Which layer overflowed, in which step; how near the others are; and the training is the same."""

import dataclasses
import json
import math
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import errors, loss_scale, policies
from tfmp.training import TrainingConfig, fit
from tfmp.training.rerun import packed, unpacked

layers = keras.layers
SIZE, STEPS, BAD = 8, 6, 4  # the fourth step is bad
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(SIZE * STEPS, 4)).astype("float32")
LABELS = RNG.integers(2, size=(SIZE * STEPS, 1)).astype("float32")
EXAMPLE = SIZE * (BAD - 1) + 3


class Square(layers.Layer):
    """Overflows forward, in float16, from 256 on."""

    def call(self, inputs):
        return keras.ops.square(inputs)


class Root(layers.Layer):
    """Overflows backward at zero."""

    def call(self, inputs):
        return keras.ops.sqrt(keras.ops.abs(inputs))


class Block(layers.Layer):
    """Layers in a layer, and an operation of its own."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, use_bias=False, name="dense")
        self.inner = inner

    def call(self, inputs):
        return self.inner(self.dense(inputs)) * 0.5


class Subclassed(keras.Model):
    """A model of one's own."""

    def __init__(self, inner):
        super().__init__()
        self.encoder = Block(inner, name="encoder")
        self.head = layers.Dense(1, dtype="float32", name="head")

    def call(self, inputs):
        return self.head(self.encoder(inputs))


class OwnStep(Subclassed):
    """With a step of its own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def functional(inner):
    inputs = keras.Input((4,))
    x = layers.Dense(4, use_bias=False, name="first")(inputs)
    x = inner(layers.Dropout(0.2, seed=1, name="drop")(x)) + 1.0
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="head")(x))


def pooled(inner):
    """Max pooling drops the NaN that BatchNormalization makes of infinity: the loss is finite."""
    inputs = keras.Input((4,))
    x = inner(layers.Reshape((2, 2, 1))(inputs))
    x = layers.MaxPooling2D(name="pool")(layers.BatchNormalization(name="norm")(x))
    outputs = layers.Dense(1, dtype="float32", name="head")(layers.Flatten()(x))
    return keras.Model(inputs, outputs)


class Mask(layers.Layer):
    """Infinite on purpose."""

    def call(self, inputs):
        return keras.ops.zeros_like(inputs) + keras.ops.convert_to_tensor(
            [0, 0, 0, -math.inf], inputs.dtype
        )


def masked(inner):
    inputs = keras.Input((4,))
    x = layers.Dense(4, use_bias=False, name="first")(inputs)
    weights = layers.Softmax()(x + Mask(name="mask")(x))
    outputs = layers.Dense(1, dtype="float32", name="head")(inner(x) * weights)
    return keras.Model(inputs, outputs)


def recurrent(inner):
    inputs = keras.Input((4,))
    x = layers.Reshape((2, 2))(inputs)
    lstm = layers.LSTM(3, "relu", kernel_initializer="ones", name="lstm")
    x = inner(layers.Bidirectional(lstm, name="both")(x))
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="head")(x))


def make(build, inner, *, compiling=None, policy="mixed_float16", **accelerate):
    keras.utils.set_random_seed(0)
    with policies.scope(policy):
        model = build(inner(name="planted"))
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=64.0)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **compiling or {})
    return tfmp.accelerate(model, **accelerate)


def trained(model, inputs, *callbacks):
    arguments = {"batch_size": SIZE, "shuffle": False, "verbose": 0}
    return model.fit(inputs, LABELS, callbacks=list(callbacks), **arguments).history


def poisoned(value):
    inputs = INPUTS.copy()
    inputs[EXAMPLE] = value
    return inputs


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    variables += loss_scale.inner(model.optimizer).variables
    return [v.numpy() for v in variables]


def written(folder):
    return json.loads((folder / "precision_trace.json").read_text())


@pytest.mark.parametrize(
    ("build", "inner", "value", "layer", "direction", "accelerate"),
    [
        (functional, Root, 0.0, "planted", "backward", {"microbatches": 2, "jit_compile": False}),
        (Subclassed, Square, 3e3, "encoder/planted", "forward", {"jit_compile": False}),
        (OwnStep, Root, 0.0, "encoder/planted", "backward", {}),
        (pooled, Square, 3e3, "planted", "forward", {"jit_compile": False}),
        (masked, Root, 0.0, "planted", "backward", {"jit_compile": False}),
        (recurrent, Square, 6e4, "both/forward_lstm", "forward", {}),
    ],
)
def test_the_layer_and_the_step_are_named(
    build, inner, value, layer, direction, accelerate, tmp_path, capsys
):
    model = make(build, inner, **accelerate)
    trained(model, poisoned(value), tfmp.Tracer(tmp_path, every=1))
    trace = written(tmp_path)
    (found,) = trace["overflows"]
    assert (found["step"], found["layer"], found["direction"]) == (BAD, layer, direction)
    assert trace["skipped"] == [[BAD, 1]]
    assert list(trace["loss_scale"].values()) == [[[0, 64.0], [BAD, 32.0]]]
    said = capsys.readouterr().err
    assert f"step {BAD} overflowed in the {direction} pass, first in layer {layer}" in said


@pytest.mark.parametrize("build", [functional, OwnStep])
def test_an_overflow_that_half_the_scale_would_mend_is_found_too(build, tmp_path):
    """As those are that a growing scale brings; when the step is run again, it is half already."""

    def skipped(scale, *callbacks):
        model = make(build, layers.Identity, jit_compile=False)
        model.optimizer.initial_scale = scale
        trained(model, INPUTS, *callbacks)
        return int(model.optimizer.skipped_steps.numpy())

    scale = next(2.0**k for k in range(12, 24) if skipped(2.0**k))
    assert skipped(scale, tfmp.Tracer(tmp_path, every=2)) == 1
    (found,) = written(tmp_path)["overflows"]
    assert (found["loss_scale"], found["direction"]) == (scale, "backward")
    assert found["layer"]


@pytest.mark.parametrize("accelerate", [{}, {"microbatches": 2, "jit_compile": False}])
def test_the_training_is_the_same(accelerate, tmp_path):
    found = []
    for tracers in ([], [tfmp.Tracer(tmp_path, every=2)]):
        model = make(functional, Square, **accelerate)
        history = trained(model, poisoned(3e3), *tracers)
        found.append([*state(model), history["loss"]])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    trace = written(tmp_path)
    assert trace["steps"] == [1, 3, 5]
    assert [(x["step"], x["layer"]) for x in trace["overflows"]] == [(BAD, "planted")]


def test_what_it_measures(tmp_path):
    """A layer that gives 1 to 1023, and gradients some of which float16 has no place for."""
    scale, flushed = 2.0**10, np.array([2.0**-36, 2.0**-30, 2.0**-24, 2.0**-20, 0.0], "float32")
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1, use_bias=False, name="dense")])
    model.layers[0].kernel.assign(np.ones((5, 1)))
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.SGD(0.0), initial_scale=scale)
    model.compile(optimizer, loss=lambda y, outputs: outputs)
    tfmp.accelerate(model, jit_compile=False)
    tracer = tfmp.Tracer(tmp_path, every=1)
    inputs = np.stack([flushed, flushed])
    model.fit(inputs, np.zeros(2), batch_size=2, verbose=0, callbacks=[tracer])
    trace = written(tmp_path)
    assert trace["headroom"] == {"dense": [pytest.approx(math.log2(65504 / flushed.sum()))]}
    assert trace["gradients"]["dense"] == {
        "headroom": [pytest.approx(math.log2(65504 / 2.0**-10))],
        "underflow": [0.25],  # 2**-36 * 2**10 is 2**-26
        "underflow_unscaled": [0.5],
        "zeros": [pytest.approx(0.2)],
    }
    assert trace["gradient_norm"] == [pytest.approx(np.linalg.norm(flushed))]


def test_a_layer_that_comes_near_to_the_limit_is_told_of_once(tmp_path, capsys):
    """The output doubles with each step."""
    with policies.scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input((1,)),
                layers.Dense(1, use_bias=False, kernel_initializer="ones", name="growing"),
                layers.Dense(1, kernel_initializer="zeros", dtype="float32", name="head"),
            ]
        )
    model.compile(tfmp.LossScaleOptimizer(keras.optimizers.SGD(0.0)), "mse")
    tfmp.accelerate(model, jit_compile=False)
    inputs = (2.0 ** np.arange(16)).astype("float32")[:, None]
    tracer = tfmp.Tracer(tmp_path, every=1, tensorboard=tmp_path / "board")
    model.fit(inputs, inputs * 0, batch_size=1, verbose=0, shuffle=False, callbacks=[tracer])
    (warning,) = written(tmp_path)["warnings"]
    # Of 2**i there are 16 - i bits; a line through eight of them reaches 0 within eight more.
    assert (warning["step"], warning["layer"]) == (9, "growing")
    assert capsys.readouterr().err.count("growing") == 1
    assert (tmp_path / "precision_trace.png").stat().st_size > 10_000
    names = scalars(tmp_path / "board")
    assert {"precision/headroom/growing", "precision/gradient_norm"} <= names
    assert any(name.startswith("precision/loss_scale/") for name in names)


def scalars(folder):
    """Names of what TensorBoard shows."""
    (file,) = folder.iterdir()
    found = set()
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        found |= {value.tag for value in event.summary.value}
    return found


def test_where_it_can_not_see_it_says_so_once(tmp_path, capsys):
    model = make(functional, Square, jit_compile=False, compiling={"steps_per_execution": 2})
    tracer = tfmp.Tracer(tmp_path, every=1)
    trained(model, poisoned(3e3), tracer)
    trained(model, poisoned(3e3), tracer)
    trace = written(tmp_path)
    # The second `fit` goes on with the file of the first.
    assert trace["steps"] == [2, 4, 6, 8, 10, 12]
    assert trace["skipped"] == [[BAD, 1], [STEPS + BAD, 1]] and not trace["overflows"]
    assert capsys.readouterr().err.count("steps_per_execution") == 1


class Stop(keras.callbacks.Callback):
    """Asks the run to stop after the sixth step."""

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.step) == 6:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_resumed_run_is_the_same_and_goes_on_with_its_file(make_classifier, digits, tmp_path):
    plain = TrainingConfig(epochs=2, warmup_epochs=1, batch_size=256, seed=5)
    traced = dataclasses.replace(plain, trace_every=2)
    whole, stopped, resumed = (make_classifier("mixed_float16", x) for x in (plain, traced, traced))
    fit(whole, digits, plain, tmp_path / "whole")
    with pytest.raises(errors.StoppedError):
        fit(stopped, digits, traced, tmp_path, extra_callbacks=[Stop()])
    trace = written(tmp_path)
    assert trace["steps"] == [1, 3, 5] and "conv2d" in list(trace["headroom"])[1]
    assert not any("/" in path for path in trace["headroom"])
    fit(resumed, digits, traced, tmp_path)
    assert written(tmp_path)["steps"] == [1, 3, 5, 7, 9]
    for one, other in zip(whole.model.variables, resumed.model.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


def test_keras_own_step_is_refused(tmp_path):
    model = functional(Square())
    model.compile("sgd", "mse")
    with pytest.raises(errors.UserError, match=r"tfmp\.accelerate"):
        model.fit(INPUTS, LABELS, callbacks=[tfmp.Tracer(tmp_path)], verbose=0)
    with pytest.raises(errors.UserError, match="every"):
        tfmp.Tracer(tmp_path, every=0)


def test_the_kept_state_is_a_copy_of_every_variable():
    """An old value that is held keeps XLA from updating a variable in its place."""
    variables = [
        keras.Variable(np.arange(6.0).reshape(2, 3), dtype="float32"),
        keras.Variable(7, dtype="int64"),
        keras.Variable(0.5, dtype="float32"),
        keras.Variable(np.zeros((0, 4)), dtype="float16"),
    ]
    kept = packed([v.value.read_value() for v in variables])
    before = [v.numpy() for v in variables]
    for variable in variables:
        variable.assign(variable + 1)
    for value, expected in zip(unpacked(variables, kept), before, strict=True):
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)
