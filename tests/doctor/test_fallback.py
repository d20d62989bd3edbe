"""`search` on models with planted layers, each of which breaks training in half by itself."""

import dataclasses
import math
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfmp
from tfmp import doctor, errors, policies
from tfmp.doctor.fallback import judge
from tfmp.doctor.fallback.trial import Run, Steps

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 8)).astype("float32"), RNG.integers(0, 3, 16)
HALF = "mixed_float16"
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")


class Overflows(layers.Layer):
    """The identity, by way of numbers beyond float16's: infinite."""

    def call(self, x):
        return x * 2.0**20 / 2.0**20


class Flushes(layers.Layer):
    """The identity, by way of numbers below float16's: zeros."""

    def call(self, x):
        return x * 2.0**-15 * 2.0**-15 * 2.0**15 * 2.0**15


class OverflowsBackward(layers.Layer):
    """The identity, whose gradient goes beyond float16's at any loss scale."""

    def call(self, x):
        @tf.custom_gradient
        def identity(x):
            return tf.identity(x), lambda g: g * 2.0**15 * 2.0**15 / 2.0**30

        return identity(x)


class Normalizes(layers.UnitNormalization):
    """Keras' own, of values whose squares are beyond float16's: zeros, in float16 all of them."""

    def call(self, x):
        return super().call(x * 30000)


class Huge(layers.Layer):
    """Two of them go beyond float32's numbers."""

    def call(self, x):
        return x * 1e30


KINDS = (Overflows, Flushes, OverflowsBackward, Normalizes)


def network(n, planted):
    """So many layers, of which those planted are of a kind that breaks; and a head."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8,))
    for index in range(n):
        if index in planted:
            x = planted[index](name=f"layer{index}")(x)
        elif index % 5 == 0:
            x = layers.Dense(12, name=f"layer{index}")(x)
        else:
            x = layers.Activation("tanh", name=f"layer{index}")(x)
    return keras.Model(inputs, layers.Dense(3, dtype="float32", name="head")(x))


def compiled(model, optimizer="sgd"):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


@pytest.mark.parametrize(("n", "k"), [(10, 1), (20, 2), (40, 3), (60, 5)])
def test_exactly_the_planted_layers_are_found_in_few_short_tries(n, k):
    # Behind a layer with weights, or what spoils gradients alone would spoil nothing.
    places = np.random.default_rng(n).choice(range(1, n), k, replace=False).tolist()
    planted = {place: KINDS[(place + k) % len(KINDS)] for place in places}
    model = compiled(network(n, planted))
    before = [np.array(v) for v in model.variables]
    began = time.process_time()  # other programs don't count
    found = doctor.search(model, (X, Y), findings=[])
    assert (time.process_time() - began) / len(found.trials) < 1
    assert found.float32 == tuple(f"layer{place}" for place in sorted(planted))
    assert len(found.trials) <= 4 * k * math.log2(n) + 10
    assert found.trials[0].problem and len(found.candidates) == n
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    assert {x.dtype_policy.name for x in model.layers} == {"float32"}


def test_the_same_seed_gives_the_same_tries():
    runs = []
    model = network(8, {4: Flushes, 6: lambda name: layers.Dropout(0.5, name=name)})
    compiled(model, "adam")
    for _ in range(2):
        found = doctor.search(model, (X, Y), seed=3)
        runs.append([dataclasses.replace(trial, seconds=0) for trial in found.trials])
        assert found.float32 == ("layer4",)
    assert runs[0] == runs[1]


def test_the_doctor_suspects_come_first_and_the_file_mends_the_model(tmp_path):
    with policies.scope(HALF):
        model = compiled(network(12, {10: Overflows}))
    found = doctor.search(model, (X, Y))
    assert found.suspected == 1 and found.candidates[0] == "layer10"
    assert len(found.trials) == 3  # nothing, all, and the suspect
    policies.save(found.policy_map, tmp_path / "layers.json")
    mended = policies.set_policy(model, policies.load(tmp_path / "layers.json", HALF))
    tfmp.compile(mended, "sgd", loss=model.loss)
    assert math.isfinite(mended.fit(X, Y, verbose=0).history["loss"][-1])
    assert model.get_layer("layer10").compute_dtype == "float16"


class Block(layers.Layer):
    """A composite layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.bad = layers.Dense(8, name="dense"), Overflows(name="bad")

    def call(self, x):
        return self.bad(self.first(x))


class OwnStep(keras.Model):
    """Subclassed, with two optimizers in a `train_step` of its own and an unsound sublayer."""

    def __init__(self):
        super().__init__()
        self.block, self.head = Block(name="block"), layers.Dense(1, dtype="float32", name="head")

    def call(self, x):
        return self.head(self.block(x))

    def compile(self, body, head):
        super().compile()
        self.body_optimizer, self.head_optimizer = body, head

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True)[:, 0] - y) ** 2)
            scaled = self.body_optimizer.scale_loss(loss)
        parts = (
            (self.body_optimizer, self.block.trainable_variables),
            (self.head_optimizer, self.head.trainable_variables),
        )
        gradients = tape.gradient(scaled, [v for _, variables in parts for v in variables])
        for optimizer, variables in parts:
            mine, gradients = gradients[: len(variables)], gradients[len(variables) :]
            optimizer.apply_gradients(zip(mine, variables, strict=True))
        return {"main_loss": loss}


def test_a_subclassed_model_with_a_step_of_its_own():
    with policies.scope(HALF):
        model = OwnStep()
        model(X)
    model.compile(*(tfmp.LossScaleOptimizer(keras.optimizers.Adam()) for _ in range(2)))
    found = doctor.search(model, (X, Y.astype("float32")), findings=[])
    assert found.float32 == ("block/bad",)
    assert found.candidates == ("block/dense", "block/bad", "block")  # what holds others is last
    assert len(found.reference.losses) == 3
    assert model.body_optimizer.iterations.numpy() == 0


def test_a_loss_scale_that_is_too_high_is_no_fault():
    """Gradients overflow at the first scale, and not at a lower one, to which training would go."""
    with policies.scope(HALF):
        model = compiled(network(3, {}))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", lambda y, logits: 200 * loss(y, logits))
    found = doctor.search(model, (X, Y), findings=[], tolerance=0.5)
    assert found.float32 == ()
    with Steps(model, (X, Y), model, 1, 0) as training:
        assert training.run(HALF).problem is None
        assert float(training.model.optimizer.dynamic_scale) < 2**15


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: network(3, {}), errors.UserError, "Expected a compiled model"),
        (
            lambda: compiled(keras.Sequential([keras.Input((8,)), layers.Rescaling(1.0)])),
            errors.UserError,
            "layers that compute in half",
        ),
        (
            lambda: compiled(network(3, dict.fromkeys((1, 2), Huge))),
            errors.NonFiniteError,
            "In float32, too, the loss of step 1 is nan",
        ),
    ],
)
def test_what_can_not_be_searched(make, error, said):
    with policies.scope("float32"):
        model = make()
    with pytest.raises(error, match=said):
        doctor.search(model, (X, Y), findings=[])


class Unmendable(keras.Model):
    """Computes in half by itself, outside of its layers."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3, dtype="float32")
        self.body = layers.Dense(3, name="body")

    def call(self, x):
        return self.head(self.body(ops.cast(x, self.compute_dtype) * 2.0**20 / 2.0**20))


def test_what_no_layer_can_mend_is_said():
    model = Unmendable()
    model(X)
    with pytest.raises(errors.DifferentError, match="With all 2 layers in float32, the loss"):
        doctor.search(compiled(model), (X, Y), findings=[])


def run(losses=(1.0, 0.5), gradients=((3.0, 4.0), (1.0,)), problem=None):
    arrays = tuple(None if x is None else np.array(x, "float32") for x in gradients)
    return Run(tuple(losses), arrays, ("a", "b"), problem, 0.1)


@pytest.mark.parametrize(
    ("trial", "rounded", "said"),
    [
        (run(), run(), None),
        (run(problem="a is not finite"), run(), "a is not finite"),
        (run(losses=(1.0, 0.54)), run(), None),
        (run(losses=(1.0, 0.56)), run(), "loss of step 2 is 0.56, 12% off float32's 0.5"),
        (run(losses=(1.0, 0.56)), run(losses=(1.0, 0.52)), None),
        (run(gradients=((3.0, 2.0), (1.0,))), run(), None),
        (run(gradients=((3.0, 4.0), (0.0,))), run(), "first gradient of b is 100% off"),
        (run(gradients=((0.0, 0.0), (1.0,))), run(), "first gradient of a is 100% off"),
        (run(gradients=((3.0, 4.0), (0.0,))), run(gradients=((3.0, 4.0), (0.7,))), None),
        (run(gradients=(None, (1.0,))), run(), None),
    ],
)
def test_verdicts(trial, rounded, said):
    problem = judge.problem(trial, run(), rounded, 0.1)
    assert problem is None if said is None else said in problem


def test_gradients_that_are_next_to_nothing_do_not_count():
    theirs = np.array([1.0]), np.array([9e-4])
    assert judge.gradients_off((np.array([1.0]), np.array([0.0])), theirs) == {0: 0.0}
