"""Activations that are computed once more: the same training, with fewer of them kept."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import hardware, models, policies
from tfmp.training import remat

layers = keras.layers
EPS = {"float32": 2.0**-23, "mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-7}


class Feedforward(layers.Layer):
    """A layer made of layers, as transformers have them."""

    def __init__(self, width):
        super().__init__()
        self.wide, self.narrow = layers.Dense(4 * width, "gelu"), layers.Dense(width)
        self.drop = layers.Dropout(0.2)

    def build(self, input_shape):
        self.wide.build(input_shape)
        self.narrow.build((*input_shape[:-1], self.wide.units))

    def call(self, x, training=False):
        return x + self.drop(self.narrow(self.wide(x)), training=training)


def residual(activity_regularizer=None):
    inputs = x = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", kernel_regularizer="l2")(x)
    for index in range(3):
        y = layers.BatchNormalization(trainable=index != 1)(x)
        y = layers.ReLU()(y)
        y = layers.Conv2D(6, 3, padding="same", activity_regularizer=activity_regularizer)(y)
        y = layers.Dropout(0.3)(y)
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, dtype="float32")(x))


def of_blocks():
    stack = [Feedforward(8) for _ in range(4)]
    return keras.Sequential([keras.Input((8,)), *stack, layers.Dense(4, dtype="float32")])


def nested():
    def block():
        return keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), layers.Dense(8)])

    return keras.Sequential([keras.Input((8,)), *(block() for _ in range(4)), layers.Dense(4)])


def masked():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5, 8, mask_zero=True)(inputs)
    for _ in range(3):
        x = layers.Dropout(0.1)(layers.LayerNormalization()(layers.Dense(8, "relu")(x)))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


def of_two_inputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    x = layers.Concatenate()([layers.Dense(8, "relu")(a), b])
    shared = layers.Dense(12, "relu")
    for _ in range(3):
        x = layers.BatchNormalization()(shared(x))
    return keras.Model([a, b], [layers.Dense(4, name="one")(x)])


MODELS = {
    "residual": functools.partial(residual, activity_regularizer="l2"),
    "of_blocks": of_blocks,
    "nested": nested,
    "masked": masked,
    "of_two_inputs": of_two_inputs,
}


def batch_of(model, count=16):
    rng = np.random.default_rng(0)
    shapes = [(count, *x.shape[1:]) for x in model.inputs]
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, 5, size=shapes[0]), np.arange(count) % 4
    x = [rng.normal(size=shape).astype("float32") for shape in shapes]
    return x if len(x) > 1 else x[0], np.arange(count) % 4


def trained(make, policy="float32", epochs=2, **accelerate):
    """Losses of the epochs and all variables, after training; the same seeds each time."""
    keras.utils.set_random_seed(1)
    with policies.scope(policy):
        model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tfmp.compile(model, keras.optimizers.SGD(0.1), loss=loss)
    tfmp.accelerate(model, **accelerate)
    x, y = batch_of(model)
    history = model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return history.history["loss"], {v.path: v.numpy() for v in model.variables}


def assert_same(one, other, eps):
    np.testing.assert_allclose(one[0], other[0], rtol=16 * eps)
    # By their order: a model made anew has other names.
    for (path, expected), value in zip(one[1].items(), other[1].values(), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(value, expected, atol=16 * eps * scale, err_msg=path)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_trains_as_without(make):
    assert remat.can_recompute(make())
    assert_same(trained(make), trained(make, remat=True), EPS["float32"])


@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_in_half_precision(policy):
    assert_same(trained(residual, policy), trained(residual, policy, remat=True), EPS[policy])


def test_with_fused_layers_and_microbatches():
    settings = {"fused_layers": True, "microbatches": 2}
    one, other = (trained(residual, remat=remat, **settings)[1] for remat in (False, True))
    assert_same(([], one), ([], other), EPS["float32"])


def program(model, x, *, with_remat):
    """What XLA gets of the gradients of a model, as text."""

    @tf.function(jit_compile=True, autograph=False)
    def gradients(x):
        context = remat.recomputing(model) if with_remat else contextlib.nullcontext()
        with context, tf.GradientTape() as tape:
            y = tf.reduce_sum(model(x, training=True) ** 2)
        return tape.gradient(y, model.trainable_variables)

    return gradients.experimental_get_compiler_ir(x)(stage="hlo")


def test_the_program_computes_twice_with_a_barrier_between():
    stack = [layers.Dense(8, "tanh", use_bias=False) for _ in range(9)]
    model = keras.Sequential([keras.Input((8,)), *stack])
    kept, twice = (program(model, tf.ones((4, 8)), with_remat=x) for x in (False, True))
    assert [len(x.nodes) for x in remat._plan(model._functional).values()] == [3, 3]
    assert (kept.count(" tanh("), twice.count(" tanh(")) == (9, 9 + 3 + 3)
    # XLA for CPUs drops these early, and then what is computed twice.
    assert (kept.count(" opt-barrier("), twice.count(" opt-barrier(")) == (0, 2)


@pytest.mark.gpu
def test_takes_less_memory_on_a_gpu():
    shape = (64, 64, 32)
    stack = [layers.Conv2D(32, 3, padding="same", activation="gelu") for _ in range(16)]
    model = keras.Sequential([keras.Input(shape), *stack, layers.GlobalAveragePooling2D()])
    x, y = tf.random.normal((64, *shape)), tf.zeros((64, 32))
    peaks = []
    for with_remat in (True, False):  # the larger one last: the allocator keeps its memory
        tfmp.compile(model, "sgd", loss="mse")
        tfmp.accelerate(model, remat=with_remat)
        hardware.reset_peak_memory()
        model.fit(x, y, batch_size=64, verbose=0)
        peaks.append(hardware.peak_memory_bytes())
    assert peaks[0] < 0.75 * peaks[1]


def test_resnet50_is_cut_at_its_blocks():
    model = models.build("resnet50", classes=1000, input_shape=(224, 224, 3))
    segments = remat._plan(model).values()
    kept = sum(remat._bytes(x.start) for x in segments) + max(x.inner_bytes for x in segments)
    everything = sum(remat._bytes(x) for node in remat._nodes(model) for x in node.outputs)
    assert kept < everything / 4
    ends = [x.end._keras_history.operation.name for x in segments]
    assert all(name == "stem_pool" or name.endswith(("_out", "_add")) for name in ends)
    nodes = [id(node) for x in segments for node in x.nodes]
    assert len(set(nodes)) == len(nodes)


def test_outside_of_the_context_nothing_is_changed():
    model = residual()
    before = vars(model).keys() - {"_run_through_graph"}
    with remat.recomputing(model):
        assert "_run_through_graph" in vars(model)
    assert vars(model).keys() == before


def test_a_skipped_step_changes_nothing():
    keras.utils.set_random_seed(1)
    with policies.scope("mixed_float16"):
        model = residual()
    tfmp.compile(model, "sgd", loss="mse")
    tfmp.accelerate(model, remat=True)
    before = [v.numpy() for v in model.variables]
    x, _ = batch_of(model)
    history = model.fit(x, np.full((16, 4), 1e6), batch_size=16, verbose=0)
    assert model.optimizer.skipped_steps.numpy() == 1 and history.history["loss"][0] == 0
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


class Custom(keras.Model):
    """Layers that are called by code, which shows no place to cut."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, x):
        return self.dense(x)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="remat needs XLA"):
        tfmp.accelerate(residual(), remat=True, jit_compile=False)
    for model, words in ((Custom(), "nothing can be cut"), (nested(), "run_eagerly=True")):
        model.compile("sgd", "mse", run_eagerly=model.built)
        with pytest.raises(ValueError, match=words):
            tfmp.accelerate(model, remat=True).fit(np.ones((4, 8)), np.ones((4, 4)), verbose=0)
