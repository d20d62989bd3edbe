"""Loss scales that are missing, or that don't reach the gradients."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import tfmp
from cases import Bad

HALF = "mixed_float16"


def tiny_loss(y, predicted):
    """Gradients of 1e-9 an example, which float16 rounds to zero."""
    return ops.mean(predicted, axis=-1) * 1e-9


def chain(first=HALF, second="float32", **kwargs):
    inputs = keras.Input((1,))
    x = layers.Dense(4, use_bias=False, kernel_initializer="ones", dtype=first, name="first")(
        inputs
    )
    x = layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype=second, name="head")(x)
    return keras.Model(inputs, x, **kwargs)


def sgd(**kwargs):
    return keras.optimizers.SGD(1e6, **kwargs)


def compiled(model, optimizer=None, by=None, **kwargs):
    (by or type(model).compile)(
        model, optimizer or sgd(), loss=tiny_loss, run_eagerly=True, **kwargs
    )
    return model


def stands_still(model):
    """Whether a step of gradient descent leaves the first layer as it was."""
    before = model.get_layer("first").get_weights()[0]
    model.fit(np.ones((4, 1)), np.ones((4, 1)), batch_size=4, verbose=0)
    return (model.get_layer("first").get_weights()[0] == before).all()


def by_map():
    policy = keras.dtype_policies.DTypePolicyMap(HALF)
    policy["head"] = keras.DTypePolicy("float32")
    with tfmp.policies.scope(policy):
        return chain(policy, policy)


def mixed(**kwargs):
    with tfmp.policies.scope(HALF):
        return chain(**kwargs)


class Unscaled(keras.Model):
    """https://github.com/keras-team/keras/issues/20894."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(1, kernel_initializer="ones", dtype=HALF, name="first")

    def call(self, x):
        return ops.cast(self.first(x), "float32")

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = ops.mean(self(data[0]))
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


class Scaled(Unscaled):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.optimizer.scale_loss(ops.mean(self(data[0])))
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


class Clipped(Unscaled):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.optimizer.scale_loss(ops.mean(self(data[0])))
        gradients = tape.gradient(loss, self.trainable_variables)
        gradients = [tf.clip_by_norm(g, 1.0) for g in gradients]
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


class WeightsClipped(Scaled):
    """As in a Wasserstein GAN."""

    def train_step(self, data):
        logs = self.scaled_step(data)
        for v in self.trainable_variables:
            v.assign(tf.clip_by_value(v, -1.0, 1.0))
        return logs

    def scaled_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.optimizer.scale_loss(ops.mean(self(data[0])))
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


class Logged(Unscaled):
    """Leaves the work to Keras."""

    def train_step(self, data):
        return super(Unscaled, self).train_step(data)


def stepped(cls, optimizer=None):
    with tfmp.policies.scope(HALF):
        model = cls()
        model(np.ones((1, 1)))
    model.compile(optimizer or keras.optimizers.SGD(1e-2), loss="mse", run_eagerly=True)
    return model


def barely_moves(model):
    """Whether a step of gradient 1 and learning rate 0.01 moves less than a tenth of it."""
    before = float(model.first.kernel.numpy().squeeze())
    model.fit(np.ones((4, 1)), np.ones((4, 1)), batch_size=4, verbose=0)
    return abs(float(model.first.kernel.numpy().squeeze()) - before) < 1e-3


class Gan(keras.Model):
    """Two optimizers and no `call`."""

    def __init__(self, first, second):
        super().__init__()
        self.generator = chain(name="generator")
        self.discriminator = chain(name="discriminator")
        self.g_optimizer, self.d_optimizer = first, second

    def compile(self):
        super().compile(optimizer=None, run_eagerly=True)

    def train_step(self, data):
        x = data[0]
        for model, optimizer in (
            (self.generator, self.g_optimizer),
            (self.discriminator, self.d_optimizer),
        ):
            with tf.GradientTape() as tape:
                loss = optimizer.scale_loss(tiny_loss(None, model(x)))
                loss = ops.mean(loss)
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}

    def get_layer(self, name):
        return self.generator.get_layer(name)


def gan(wrap):
    model = Gan(wrap(sgd()), wrap(sgd()))
    model.compile()
    return model


class OfExamples(Gan):
    """Its `compile` leaves Keras' default optimizer, unused, beside its own."""

    def compile(self):
        keras.Model.compile(self)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.g_optimizer.scale_loss(ops.mean(self.generator(data[0])))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        with tf.GradientTape() as tape:
            loss = self.d_optimizer.scale_loss(ops.mean(self.discriminator(data[0])))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}


def gan_compiled_by_keras():
    model = OfExamples(*(tfmp.LossScaleOptimizer(sgd()) for _ in range(2)))
    model.compile()
    return model


def frozen_backbone():
    """Nothing in float16 has a gradient."""
    model = chain()
    model.get_layer("first").trainable = False
    return compiled(model)


def on_replicas(wrap):
    # Without collectives, whose keys those of another strategy in this process may have.
    by_copies = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=by_copies)
    with strategy.scope():
        model = chain()
        model.compile(wrap(keras.optimizers.SGD()), "mse", auto_scale_loss=False)
    return model


def overflow_is_applied(model):
    """A second replica whose gradients overflow."""
    x = np.array([[1.0], [1.0], [1e4], [1e4]], "float32")
    y = np.array([[3.99], [3.99], [-1e9], [-1e9]], "float32")
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    return not np.isfinite(model.get_layer("first").get_weights()[0]).all()


BAD = {
    "policy_of_a_layer": Bad(
        lambda: compiled(chain()),
        "no_loss_scale",
        None,
        stands_still,
        lambda: compiled(chain(), by=tfmp.compile),
        "error",
    ),
    "policy_map": Bad(
        lambda: compiled(by_map()),
        "no_loss_scale",
        None,
        stands_still,
        lambda: compiled(by_map(), by=tfmp.compile),
        "error",
    ),
    "auto_scale_loss_false": Bad(
        lambda: compiled(mixed(), auto_scale_loss=False),
        "no_loss_scale",
        None,
        stands_still,
        lambda: compiled(mixed(), tfmp.LossScaleOptimizer(sgd())),
        "error",
    ),
    "gan": Bad(
        lambda: gan(lambda x: x),
        "no_loss_scale",
        None,
        stands_still,
        lambda: gan(tfmp.LossScaleOptimizer),
        "error",
    ),
    "unscaled_train_step": Bad(
        lambda: stepped(Unscaled),
        "unscaled_loss",
        None,
        barely_moves,
        lambda: stepped(Scaled),
        "error",
    ),
    "clipped_while_scaled": Bad(
        lambda: stepped(Clipped),
        "clipped_before_unscaling",
        None,
        barely_moves,
        lambda: stepped(Scaled, keras.optimizers.SGD(1e-2, clipnorm=1.0)),
        "error",
    ),
    "replicas": Bad(
        lambda: on_replicas(keras.optimizers.LossScaleOptimizer),
        "replicas_loss_scale",
        None,
        overflow_is_applied,
        lambda: on_replicas(tfmp.wrap),
        "error",
    ),
}

CLEAN = {
    "compiled_by_keras": lambda: compiled(mixed()),
    "static_scale": lambda: compiled(chain(), sgd(loss_scale_factor=1024.0)),
    "frozen_backbone": frozen_backbone,
    "bfloat16": lambda: compiled(chain("mixed_bfloat16")),
    "float32": lambda: compiled(chain("float32")),
    "weights_clipped": lambda: stepped(WeightsClipped),
    "keras_own_step_within": lambda: stepped(Logged),
    "clipped_by_the_inner_optimizer": lambda: stepped(Scaled, keras.optimizers.Adam(clipnorm=1.0)),
    "gan_with_scales": lambda: gan(tfmp.LossScaleOptimizer),
    "gan_as_in_keras_examples": gan_compiled_by_keras,
    "not_compiled": mixed,
}
