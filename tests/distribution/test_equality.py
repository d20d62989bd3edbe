"""Two replicas train as one device does on the whole batch, in float32 and without dropout."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    NONE,
    assert_close,
    assert_replicas_agree,
    assert_same,
    build,
    images,
    make,
    snapshot,
)

import tfmp
from tfmp import distribution, errors
from tfmp.training.accelerate import uses_xla

pytestmark = pytest.mark.replicas(2)
BATCH = 8


def plain():
    return build(batch_norm=False, dropout=0)


def normalized():
    return build(dropout=0)


def fit(model, x=None, y=None, count=4 * BATCH, **kwargs):
    """Trains an epoch on `count` examples; returns the logs of the epochs."""
    if x is None:
        x, y = images(count)
    return model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, **kwargs).history


def assert_equal_logs(one, other):
    assert one.keys() == other.keys() and "loss" in one
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=2e-5, err_msg=name)


def compare(strategy, make_model, fit=fit, **accelerate):
    """Trains on one device in plain Keras and on two replicas; asserts that they are equal.

    Args:
        strategy: That of the replicas.
        make_model: Function of a strategy that returns a compiled model.
        fit: Function of a compiled model that returns the logs.
        **accelerate: Arguments of `tfmp.accelerate`.
    """
    one, two = make_model(NONE), make_model(strategy)
    begin = [v.numpy() for v in one.trainable_variables]
    tfmp.accelerate(two, **{"jit_compile": False} | accelerate)
    logs = fit(one), fit(two)
    assert_equal_logs(*logs)
    assert_close(one, two)
    assert_replicas_agree(two)
    for before, v in zip(begin, one.trainable_variables, strict=True):
        assert (before != v.numpy()).any(), f"{v.path} was not trained"
    return one, two


# --- models and data


# 33: of the last batch the second replica gets nothing. 37: 3 and 2 examples.
@pytest.mark.parametrize(("count", "jit_compile"), [(33, True), (33, False), (37, False)])
def test_without_batch_norm(strategy, count, jit_compile):
    x, y = images(count)
    compare(
        strategy,
        lambda s: make(s, model=plain),
        lambda model: fit(model, x, y, epochs=2, validation_data=(x, y)),
        jit_compile=jit_compile,
    )


def test_means_of_float16_variables_are_taken_before_they_are_rounded(strategy):
    """A sum of two would be infinite."""

    def loss(labels, outputs):
        return outputs[..., 0]

    def make_model(strategy):
        with strategy.scope():
            zeros = keras.layers.Dense(
                1, use_bias=False, kernel_initializer="zeros", dtype="float16"
            )
            model = keras.Sequential([keras.Input((1,)), zeros])
            optimizer = tfmp.wrap(keras.optimizers.SGD(2.0**-10), static_scale=1.0)
            model.compile(optimizer, loss)
        return model

    x = np.full((4, 1), 40_000.0, np.float32)
    for place in (NONE, strategy):
        model = tfmp.accelerate(make_model(place), jit_compile=False)
        model.fit(x, np.zeros(4), batch_size=4, verbose=0)
        np.testing.assert_allclose(model.get_weights()[0], [[-40_000 / 2**10]], rtol=1e-3)


def synchronized(strategy):
    """With batch statistics of all replicas; on one device Keras' own BatchNormalization."""
    change = distribution.synchronize_batch_norm if strategy is not NONE else None
    return make(strategy, model=normalized, change=change)


def test_with_synchronized_batch_norm(strategy):
    x, y = images(37)
    _, two = compare(
        strategy,
        synchronized,
        lambda model: fit(model, x, y, epochs=2, validation_data=(x, y)),
        jit_compile=True,
    )
    assert not uses_xla(two)


def test_synchronized_batch_norm_refuses_a_batch_of_which_a_replica_gets_nothing(strategy):
    model = tfmp.accelerate(synchronized(strategy))
    with pytest.raises(errors.UserError, match="an example for each replica"):
        fit(model, count=33)
    fit(model, count=32)  # nothing hangs after it


def test_plain_batch_norm_does_differ(strategy):
    """Or the test before would show nothing."""
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        compare(strategy, lambda s: make(s, model=normalized))


@pytest.mark.parametrize("setting", ["jit_compile", "fused_layers"])
def test_with_and_without(strategy, setting):
    models = [make(strategy, model=normalized) for _ in range(2)]
    logs = [
        fit(tfmp.accelerate(model, **{setting: on}))
        for model, on in zip(models, (True, False), strict=True)
    ]
    assert_equal_logs(*logs)
    assert_close(*models)
    assert_replicas_agree(models[0])
    changed = [
        (a.numpy() != b.numpy()).any()
        for a, b in zip(*(m.trainable_variables for m in models), strict=True)
    ]
    assert any(changed)  # another computation, not the same twice


def test_activations_computed_twice(strategy):
    compare(strategy, lambda s: make(s, model=plain), jit_compile=True, remat=True)


def test_sample_weights_and_class_weights(strategy):
    x, y = images(4 * BATCH + 3)
    weights = np.random.default_rng(1).random(len(x), np.float32)
    weights[:BATCH] *= 10  # the replicas' shares weigh differently
    compare(
        strategy,
        lambda s: make(s, model=plain),
        lambda model: fit(model, x, y, sample_weight=weights, validation_data=(x, y, weights)),
    )
    classes = {label: 0.2 * label + 0.1 for label in range(10)}
    compare(
        strategy,
        lambda s: make(s, model=plain),
        lambda model: fit(model, x, y, class_weight=classes),
    )


@keras.saving.register_keras_serializable("tests")
class MeanActivity(keras.layers.Layer):
    """Adds a loss of its input."""

    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def two_by_two():
    """Two inputs, two outputs, a loss of a layer's own, regularizers."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image, number = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="number")
    x = layers.Flatten()(layers.Conv2D(4, 3, kernel_regularizer="l2")(image))
    x = layers.Concatenate()([x, layers.Dense(4, activity_regularizer="l2")(number)])
    x = MeanActivity()(layers.Dense(8, activation="tanh")(x))
    outputs = {"label": layers.Dense(10, name="label")(x), "size": layers.Dense(1, name="size")(x)}
    return keras.Model({"image": image, "number": number}, outputs)


def test_several_inputs_and_outputs_and_losses_of_layers(strategy):
    x, y = images(4 * BATCH)
    number = np.random.default_rng(1).random((len(x), 3), np.float32)
    kwargs = dict(
        loss={
            "label": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "size": "mean_squared_error",
        },
        loss_weights={"label": 1.0, "size": 0.3},
        weighted_metrics={"label": "accuracy", "size": "mean_absolute_error"},
    )
    compare(
        strategy,
        lambda s: make(s, model=two_by_two, **kwargs),
        lambda model: fit(
            model, {"image": x, "number": number}, {"label": y, "size": number.sum(-1)}
        ),
    )


def embedding():
    """Its first gradient is sparse."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((5,)), layers.Embedding(20, 4), layers.Flatten(), layers.Dense(10)]
    )


@pytest.mark.parametrize("accelerated", [True, False])
def test_embeddings(strategy, accelerated):
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 20, (4 * BATCH, 5)), generator.integers(0, 10, 4 * BATCH)
    one, two = make(NONE, model=embedding), make(strategy, optimizer=static, model=embedding)
    if accelerated:
        tfmp.accelerate(two, jit_compile=False)
    assert_equal_logs(fit(one, x, y), fit(two, x, y))
    assert_close(one, two)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_dense_layers_on_sequences(strategy, jit_compile):
    """TensorFlow doesn't know the shapes of their gradients where batches differ in size."""

    def sequences():
        layers = keras.layers
        keras.utils.set_random_seed(0)
        rows = [keras.Input((8, 8, 1)), layers.Reshape((8, 8)), layers.Dense(6, "relu")]
        return keras.Sequential([*rows, layers.GlobalAveragePooling1D(), layers.Dense(10)])

    compare(
        strategy,
        lambda s: make(s, model=sequences),
        lambda model: fit(model, *images(37)),
        jit_compile=jit_compile,
    )


class OfRows(keras.Model):
    """Takes ragged rows of numbers."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(10)

    def call(self, inputs):
        return self.dense(tf.reduce_sum(inputs, 1, keepdims=True))


def of_ragged():
    keras.utils.set_random_seed(0)
    model = OfRows()
    model(tf.ones((1, 1)))
    return model


def of_sparse():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,), sparse=True), keras.layers.Dense(10)])


# (Of sparse ones TensorFlow itself can't give a replica none.)
@pytest.mark.parametrize(("kind", "count"), [("ragged", 33), ("ragged", 37), ("sparse", 37)])
def test_rows_that_are_no_dense_tensors(strategy, kind, count):
    x, y = np.random.default_rng(0).random((count, 6), np.float32), images(count)[1]
    if kind == "ragged":
        x = tf.RaggedTensor.from_tensor(x, lengths=np.arange(count) % 5 + 1)
    else:
        x = tf.sparse.from_dense(x * (x > 0.5))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    compare(
        strategy,
        lambda s: make(s, model={"ragged": of_ragged, "sparse": of_sparse}[kind]),
        lambda model: model.fit(data, validation_data=data, shuffle=False, verbose=0).history,
    )


# --- optimizers and steps


def static():
    """As the default of `make`, within an optimizer that may skip steps."""
    return tfmp.wrap(keras.optimizers.SGD(0.1, momentum=0.9), static_scale=1.0)


def sgd(**kwargs):
    """Not Adam, which would hide a factor on the gradients."""
    return keras.optimizers.SGD(0.5, momentum=0.9, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "scaled"),
    [
        ({"gradient_accumulation_steps": 2}, False),
        ({"gradient_accumulation_steps": 2, "clipnorm": 0.05}, True),
        ({"global_clipnorm": 0.1, "use_ema": True, "ema_momentum": 0.9}, False),
        ({"weight_decay": 0.1, "use_ema": True, "ema_overwrite_frequency": 3}, True),
    ],
)
def test_what_keras_optimizers_can_do(strategy, kwargs, scaled):
    def make_model(strategy):
        def optimizer():
            wrapped = scaled and strategy is not NONE
            return tfmp.wrap(sgd(**kwargs), static_scale=1.0) if wrapped else sgd(**kwargs)

        return make(strategy, optimizer=optimizer, model=plain)

    compare(strategy, make_model)


def test_nadam_within_a_loss_scale(strategy):
    def make_model(strategy):
        def optimizer():
            nadam = keras.optimizers.Nadam(0.01)
            return nadam if strategy is NONE else tfmp.wrap(nadam, static_scale=1.0)

        return make(strategy, optimizer=optimizer, model=plain)

    compare(strategy, make_model)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_clipping_by_global_norm_sees_the_sum_of_all_replicas(strategy, policy):
    model = make(
        strategy, policy, lambda: keras.optimizers.SGD(1.0, global_clipnorm=0.01), model=plain
    )
    before = [v.numpy() for v in model.trainable_variables]
    x, y = images(BATCH)
    tfmp.accelerate(model, jit_compile=False).fit(x, y, batch_size=BATCH, verbose=0)
    after = [v.numpy() for v in model.trainable_variables]
    norm = sum(((a - b) ** 2).sum() for a, b in zip(after, before, strict=True)) ** 0.5
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_microbatches(strategy):
    compare(strategy, lambda s: make(s, model=plain), microbatches=2)


@pytest.mark.parametrize("replicas", [1, 2])
def test_steps_per_execution_changes_no_bit(strategy, replicas):
    """5 steps an epoch end within an execution of 2 and within one of 3."""
    x, y = images(5 * BATCH)
    states, logs = [], []
    executions = (1, 2, 3) if replicas == 1 else (1, 3)  # (of several they are slow to trace)
    for steps in executions:
        model = make(strategy if replicas == 2 else NONE, steps_per_execution=steps)
        tfmp.accelerate(model, jit_compile=False)
        logs.append(fit(model, x, y, epochs=2, validation_data=(x, y)))
        states.append({name.split()[0]: value for name, value in snapshot(model).items()})
        assert model.optimizer.iterations.numpy() == 10
    for state, log in zip(states[1:], logs[1:], strict=True):
        assert_same(states[0], state)
        assert logs[0] == log


def test_frozen_weights_stay_as_they_were(strategy):
    """A weighted mean over the replicas would not leave them so: 0.6 of a number and 0.4 of it."""

    def freeze(model):
        model.layers[0].trainable = model.layers[1].trainable = False

    model = make(strategy, model=normalized, change=freeze)
    frozen = [v for layer in model.layers[:2] for v in layer.variables]
    before = [v.numpy() for v in frozen]
    assert len(frozen) == 6
    assert any((0.6 * v + v * 0.4 != v).any() for v in before)
    x, y = images(15)
    tfmp.accelerate(model, jit_compile=False).fit(x, y, batch_size=5, verbose=0)
    for value, v in zip(before, frozen, strict=True):
        for copy in distribution.copies(strategy, v):
            np.testing.assert_array_equal(copy.numpy(), value, err_msg=v.path)


def test_batches_of_a_call_wait_on_the_devices(strategy):
    """A call finds all of its own there, and what is copied meanwhile keeps none waiting."""
    made = []

    def generate():
        for index in range(50):
            made.append(index)
            yield np.full(4, index, np.float32)

    spec = tf.TensorSpec((4,), tf.float32)
    for count in (1, 10):
        made.clear()
        batches = tf.data.Dataset.from_generator(generate, output_signature=spec)
        iterator = iter(distribution.placed_ahead(strategy, batches, count))
        first = strategy.experimental_local_results(next(iterator))
        np.testing.assert_array_equal(tf.concat(first, 0), np.zeros(4))
        end = time.monotonic() + 20
        least = 2 * (count + 1)  # of both replicas
        while len(made) < least and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)
        assert least <= len(made) < least + 9
