"""What a `train_step` does, read from its source."""

import keras
import pytest
import tensorflow as tf
from keras import ops

import tfmp
from tfmp.doctor import source


class Helper(keras.Model):
    """Scales and applies in methods of its own."""

    @tf.function
    def train_step(self, data):
        return self.apply_to(self.backward(data))

    def backward(self, data):
        with tf.GradientTape() as tape:
            loss = self.optimizer.scale_loss(ops.mean(self(data)))
        return tape.gradient(loss, self.trainable_variables)

    def apply_to(self, gradients):
        self.optimizer.apply(gradients, self.trainable_variables)
        return {}


class ClipsAll(Helper):
    def apply_to(self, gradients):
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        return super().apply_to(gradients)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.optimizer.scale_loss(ops.mean(self(data)))
        clipped, _ = tf.clip_by_global_norm(tape.gradient(loss, self.trainable_variables), 1.0)
        self.optimizer.apply(clipped, self.trainable_variables)


class ClipsInAMethod(Helper):
    def apply_to(self, gradients):
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        self.optimizer.apply(gradients, self.trainable_variables)


class ClipsInALoop(Helper):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.optimizer.scale_loss(ops.mean(self(data)))
        grads = tape.gradient(loss, self.trainable_variables)
        pairs = [(ops.clip(g, -1, 1), v) for g, v in zip(grads, self.weights, strict=True)]
        self.optimizer.apply_gradients(pairs)


class ClipsInALongLoop(Helper):
    def apply_to(self, gradients):
        clipped = []
        for g in gradients:
            clipped.append(tf.clip_by_norm(g, 1.0))
        self.optimizer.apply(clipped, self.trainable_variables)


class ClipsUnscaled(Helper):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = ops.mean(self(data)) * 1024.0
        gradients = tape.gradient(self.optimizer.scale_loss(loss), self.trainable_variables)
        gradients = [g / 1024.0 for g in gradients]
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        self.optimizer.apply(gradients, self.trainable_variables)


class ClipsActivations(Helper):
    def train_step(self, data):
        data = tf.clip_by_value(data, 0.0, 1.0)
        return super().train_step(data)


class OneOfTwo(Helper):
    def train_step(self, data):
        with tf.GradientTape(persistent=True) as tape:
            a = self.first.scale_loss(ops.mean(self.a(data)))
            b = ops.mean(self.b(data))
        self.first.apply(tape.gradient(a, self.a.trainable_variables))
        self.second.apply(tape.gradient(b, self.b.trainable_variables))


class ByLoop(Helper):
    def train_step(self, data):
        for model, optimizer in self.pairs:
            with tf.GradientTape() as tape:
                loss = optimizer.scale_loss(ops.mean(model(data)))
            optimizer.apply(tape.gradient(loss, model.trainable_variables))


class Clipping(keras.optimizers.LossScaleOptimizer):
    def apply(self, grads, trainable_variables=None):
        return super().apply([tf.clip_by_norm(g, 1.0) for g in grads], trainable_variables)


@pytest.mark.parametrize(
    ("cls", "unscaled", "clips"),
    [
        (Helper, (), None),
        (ClipsAll, (), "clip_by_global_norm"),
        (ClipsInAMethod, (), "clip_by_global_norm"),
        (ClipsInALoop, (), "clip"),
        (ClipsInALongLoop, (), "clip_by_norm"),
        (ClipsUnscaled, (), None),
        (OneOfTwo, ("self.second",), None),
        (ByLoop, (), None),
    ],
)
def test_a_step_is_read(cls, unscaled, clips):
    step = source.step(cls())
    assert (step.unscaled, step.clips_scaled) == (unscaled, clips)
    assert step.applies and step.where.endswith(".train_step")


def test_keras_own_step_and_what_leads_to_it_is_left_alone():
    assert source.step(keras.Model()) is None
    assert source.step(ClipsActivations()) is None


def test_an_optimizer_that_clips_before_it_unscales():
    assert source.clips_in_apply(Clipping(keras.optimizers.SGD())) == "clip_by_norm"
    assert source.clips_in_apply(tfmp.wrap(keras.optimizers.SGD(clipnorm=1.0))) is None
