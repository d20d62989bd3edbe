"""What `accelerate` can't run is said by name, with the way out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import policies
from tfmp.errors import UserError

layers = keras.layers
IMAGES, LABELS = np.ones((6, 4), "float32"), np.ones((6, 1), "float32")
FIT = {"batch_size": 2, "verbose": 0, "shuffle": False}


class Letters(layers.Layer):
    """Uses operations that XLA does not have."""

    def call(self, inputs):
        letters = tf.strings.length(tf.strings.as_string(inputs))
        return inputs + tf.cast(letters, inputs.dtype)


class OwnStep(keras.Model):
    """A model whose step is changed a bit."""

    def __init__(self, kind="whole"):
        super().__init__()
        self.dense, self.kind = layers.Dense(1, dtype="float32"), kind

    def call(self, images):
        return self.dense(images)

    def train_step(self, data):
        images, labels = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(images, labels, self(images, training=True))
            scaled = loss if self.kind == "unscaled" else self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        if self.kind == "numpy":
            print(loss.numpy())
        if self.kind == "float":
            print(float(loss))
        if self.kind == "if" and loss > 1:
            loss = loss * 2
        if self.kind == "clipped":
            gradients = [tf.clip_by_norm(g, 1.0) for g in gradients]
        for _ in range(0 if self.kind == "none" else 2 if self.kind == "twice" else 1):
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def fit_own(kind, policy="float32", optimizer="sgd", **accelerating):
    keras.utils.set_random_seed(0)
    with policies.scope(policy):
        model = OwnStep(kind)
    model.compile(optimizer, "mse")
    tfmp.accelerate(model, **accelerating).fit(IMAGES, LABELS, **FIT)
    return model.get_weights()


def nested(layer):
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layer])
    model = keras.Sequential([keras.Input((4,)), inner, layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("name", ["letters", "stage_2"])
def test_a_layer_that_xla_refuses_is_named(name):
    model = tfmp.accelerate(nested(Letters(name=name)))
    said = rf"XLA can't compile AsString in layer {name} \(Letters\).*jit_compile=False"
    with pytest.raises(UserError, match=said):
        model.fit(IMAGES, LABELS, **FIT)
    with pytest.raises(UserError, match=said):
        model.evaluate(IMAGES, LABELS, verbose=0)
    tfmp.accelerate(model, jit_compile=False).fit(IMAGES, LABELS, **FIT)


def test_layers_that_say_so_themselves_are_named_before_the_first_step():
    images = np.ones((6, 4, 4, 1), "float32")
    parts = [layers.RandomRotation(0.1, name="turn"), layers.RandomZoom(0.1, name="zoom")]
    model = keras.Sequential([keras.Input((4, 4, 1)), *parts, layers.Flatten(), layers.Dense(1)])
    model.compile("sgd", "mse")
    tfmp.accelerate(model)
    said = r"Received: turn \(RandomRotation\), zoom \(RandomZoom\)\. .*jit_compile=False"
    with pytest.raises(UserError, match=said):
        model.fit(images, LABELS, **FIT)
    tfmp.accelerate(model, jit_compile=False).fit(images, LABELS, **FIT)


@pytest.mark.parametrize("kind", ["numpy", "float", "if"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_train_step_that_is_no_graph_is_named(kind, microbatches):
    with pytest.raises(UserError, match=r"OwnStep.train_step can't be compiled.*\.numpy\(\)"):
        fit_own(kind, microbatches=microbatches)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_train_step_that_forgets_scale_loss_is_named(microbatches):
    said = r"OwnStep\.train_step to scale the loss.*self\.optimizer\.scale_loss\(loss\)"
    with pytest.raises(UserError, match=said):
        fit_own("unscaled", "mixed_float16", microbatches=microbatches)
    # Without loss scaling it may.
    for a, b in zip(fit_own("unscaled", microbatches=microbatches), fit_own("whole"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(("kind", "times"), [("twice", 2), ("none", 0)])
def test_microbatches_of_a_train_step_that_does_not_apply_once(kind, times):
    with pytest.raises(UserError, match=f"OwnStep.train_step does so {times} times"):
        fit_own(kind, microbatches=2)
    assert all(np.isfinite(weights).all() for weights in fit_own(kind))


@pytest.mark.parametrize("size", [3, 4])  # no batch of 3 divides; of 6 examples the last 2 don't
def test_a_batch_that_does_not_divide_into_microbatches(size):
    parts = {3: 2, 4: 4}[size]
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    tfmp.accelerate(model, microbatches=parts)
    said = f"divide by {parts} microbatches on each of 1 replicas.*drop_remainder=True"
    with pytest.raises(UserError, match=said):
        model.fit(IMAGES, LABELS, **FIT | {"batch_size": size})


@pytest.mark.parametrize("jit_compile", [True, False])
def test_errors_of_the_users_own_stay_as_they_are(jit_compile):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    tfmp.accelerate(model, jit_compile=jit_compile)
    with pytest.raises(ValueError, match="incompatible with the layer"):
        model.fit(np.ones((6, 3)), LABELS, **FIT)


@pytest.mark.parametrize("microbatches", [0, -1])
def test_microbatches_out_of_range(microbatches):
    with pytest.raises(UserError, match=f"microbatches.*Received: {microbatches}"):
        tfmp.accelerate(OwnStep(), microbatches=microbatches)


def test_a_model_that_was_not_compiled():
    model = tfmp.accelerate(keras.Sequential([keras.Input((4,)), layers.Dense(1)]))
    with pytest.raises(ValueError, match="compile"):
        model.fit(IMAGES, LABELS, **FIT)
