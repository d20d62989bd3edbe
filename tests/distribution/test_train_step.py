"""A `train_step` of one's own on two replicas, and what can't run there: the error says why."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import NONE, assert_close, assert_replicas_agree, build, images, make

import tfmp
from tfmp import distribution, errors

pytestmark = pytest.mark.replicas(2)


class Usual(keras.Sequential):
    """Trains in the manner of Keras' guide."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=outputs)
            scaled = self.optimizer.scale_loss(loss)
        gradients = self.changed(tape.gradient(scaled, self.trainable_variables))
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=tf.shape(x)[0])
            else:
                metric.update_state(y, outputs)
        return {metric.name: metric.result() for metric in self.metrics}

    def changed(self, gradients):
        return gradients


class Unscaled(Usual):
    """Doesn't scale the loss: fine without loss scaling, and refused with it."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        return {"loss": self._loss_tracker.result()}


class Decaying(Usual):
    """Changes the gradients by what is not in the loss."""

    def changed(self, gradients):
        return [g + 0.1 * v for g, v in zip(gradients, self.trainable_variables, strict=True)]


def fit(model, epochs=2):
    x, y = images(21)  # of the last batch 3 and 2 examples
    return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history


@pytest.mark.parametrize(
    ("policy", "cls"), [("float32", Usual), ("mixed_float16", Usual), ("float32", Unscaled)]
)
def test_it_trains_as_the_standard_one_does(strategy, policy, cls):
    metrics = {"weighted_metrics": []} if cls is Unscaled else {}
    own = make(strategy, policy, model=lambda: build(cls=cls), **metrics)
    standard = make(strategy, policy, **metrics)
    logs = [fit(tfmp.accelerate(x, jit_compile=False)) for x in (own, standard)]
    tolerance = dict(rtol=1e-4, atol=1e-6) if cls is Unscaled else dict(rtol=0, atol=0)
    assert_close(own, standard, **tolerance)
    for name, values in logs[0].items():
        np.testing.assert_allclose(values, logs[1][name], rtol=1e-5, err_msg=name)
    assert_replicas_agree(own)


def test_what_it_adds_to_the_gradients_is_weighted_with_them(strategy):
    """Also of a last batch of which the replicas get 3 and 2 examples."""

    def model():
        return build(batch_norm=False, dropout=0, cls=Decaying)

    one, two = (make(x, model=model, weighted_metrics=None) for x in (NONE, strategy))
    for trained in (one, two):
        fit(tfmp.accelerate(trained, jit_compile=False))
    assert_close(one, two)


# --- what can't run


class Twice(Usual):
    """Applies gradients of the same loss a second time."""

    def train_step(self, data):
        super().train_step(data)
        return super().train_step(data)


class Never(Usual):
    """Only evaluates."""

    def train_step(self, data):
        return self.test_step(data)


class OnTheHost(Usual):
    """Asks for a number while it is traced."""

    def train_step(self, data):
        logs = super().train_step(data)
        if float(logs["loss"].numpy()) > 1:
            logs["loss"] = logs["loss"] * 0
        return logs


class Strings(keras.layers.Layer):
    """Does what XLA can't."""

    def call(self, inputs):
        return inputs + tf.cast(tf.strings.length(tf.strings.as_string(inputs)), inputs.dtype)


class Silent(Unscaled):
    """Logs nothing and has no metrics."""

    metrics = ()

    def train_step(self, data):
        return super().train_step(data) and {}


def test_a_train_step_may_log_nothing(strategy):
    model = tfmp.accelerate(make(strategy, model=lambda: build(cls=Silent)), jit_compile=False)
    before = model.get_weights()
    assert fit(model, epochs=1) == {}
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    assert_replicas_agree(model)


class Both(keras.metrics.SparseCategoricalAccuracy):
    """Gives two results."""

    def result(self):
        return {"mean": super().result(), "twice": 2 * super().result()}


def test_a_metric_of_several_results_with_microbatches(strategy):
    with strategy.scope():
        metrics = [Both()]
    model = make(strategy, model=lambda: build(batch_norm=False), metrics=metrics)
    x, y = images(8)
    accelerated = tfmp.accelerate(model, jit_compile=False, microbatches=2)
    logs = accelerated.fit(x, y, batch_size=8, verbose=0).history
    assert logs["twice"][0] == pytest.approx(2 * logs["mean"][0]) and logs["mean"][0] != 0


def with_layer(layer, **kwargs):
    return lambda: keras.Sequential([keras.Input((8, 8, 1)), layer(**kwargs), *build().layers])


def refused(strategy, model, **accelerate):
    """The error of a model that `fit` refuses."""
    with pytest.raises(errors.UserError) as error:
        fit(tfmp.accelerate(make(strategy, model=model), **accelerate), epochs=1)
    assert isinstance(error.value, ValueError)
    return str(error.value)


@pytest.mark.parametrize(("cls", "times"), [(Twice, 2), (Never, 0)])
def test_a_train_step_that_does_not_apply_gradients_once_is_refused(strategy, cls, times):
    said = refused(strategy, lambda: build(cls=cls), jit_compile=False)
    assert f"{cls.__name__}.train_step does so {times} times" in said


def test_a_train_step_of_gradients_that_are_not_scaled_is_refused_under_loss_scaling(strategy):
    model = make(strategy, "mixed_float16", model=lambda: build(cls=Unscaled))
    with pytest.raises(errors.UserError, match=r"self\.optimizer\.scale_loss"):
        fit(tfmp.accelerate(model))


def test_a_train_step_that_can_not_be_traced_is_named(strategy):
    said = refused(strategy, lambda: build(cls=OnTheHost))
    assert "OnTheHost.train_step" in said and "numpy" in said


def test_a_layer_that_xla_refuses_is_named(strategy):
    said = refused(strategy, with_layer(Strings, name="spelling"))
    assert "spelling (Strings)" in said and "jit_compile=False" in said
    said = refused(strategy, with_layer(keras.layers.RandomRotation, factor=0.1, name="turning"))
    assert "turning (RandomRotation)" in said and "jit_compile=False" in said


def test_a_batch_that_microbatches_can_not_share_is_refused(strategy):
    said = refused(strategy, build, jit_compile=False, microbatches=3)
    assert "divide by 3 microbatches on each of 2 replicas" in said


def test_microbatches_with_synchronized_batch_norm_are_refused(strategy):
    def synchronized():
        model = build()
        distribution.synchronize_batch_norm(model)
        return model

    assert "microbatches=1" in refused(strategy, synchronized, microbatches=2)


def test_a_model_made_outside_of_the_scope_is_refused(strategy):
    model = build()
    with strategy.scope(), pytest.raises(errors.UserError, match=r"with strategy\.scope"):
        model.compile("sgd", "mse")
        fit(tfmp.accelerate(model))


def test_an_optimizer_made_outside_of_the_scope_is_refused(strategy):
    with strategy.scope():
        model = build()
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    with pytest.raises(errors.UserError, match=r"with strategy\.scope"):
        fit(tfmp.accelerate(model))


def test_after_an_error_the_replicas_still_train(strategy):
    model = make(strategy, model=lambda: build(cls=Twice))
    with pytest.raises(errors.UserError):
        fit(tfmp.accelerate(model, jit_compile=False))
    assert keras.config.dtype_policy().name == "float32"
    assert not tf.distribute.has_strategy() and distribution.replica_index() == 0
    assert not {"apply", "scale_loss"} & set(vars(model.optimizer))
    fit(tfmp.accelerate(make(strategy), jit_compile=False))
    fit(make(NONE))


@pytest.mark.parametrize("reduction", ["sum", None])
def test_a_loss_that_is_no_mean_is_refused_where_a_batch_has_parts(strategy, reduction):
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction, name="entropy")
    for place, microbatches in ((strategy, 1), (NONE, 2)):
        model = make(place, model=lambda: build(batch_norm=False), loss=loss)
        with pytest.raises(errors.UserError, match=f"entropy with reduction={reduction!r}"):
            fit(tfmp.accelerate(model, jit_compile=False, microbatches=microbatches), epochs=1)
    model = make(NONE, model=lambda: build(batch_norm=False), loss=loss)
    fit(tfmp.accelerate(model, jit_compile=False), epochs=1)
