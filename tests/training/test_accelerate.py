"""On one replica `accelerate` trains as stock Keras' `fit` does, bit for bit in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp
from tfmp import policies

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(20, 4)).astype("float32")
OTHER = RNG.normal(size=(20, 3)).astype("float32")
CLASSES = RNG.integers(2, size=(20, 1))
VALUES = RNG.normal(size=(20, 1)).astype("float32")
WEIGHTS = RNG.uniform(size=20).astype("float32")
WORDS = RNG.integers(7, size=(20, 5))

layers = keras.layers


class Penalty(layers.Layer):
    """Adds a loss of its own."""

    def call(self, inputs):
        self.add_loss(keras.ops.mean(keras.ops.square(inputs)))
        return inputs


class Unbuilt(keras.Model):
    """Makes its variables in its first call."""

    def __init__(self):
        super().__init__()
        self.dense, self.normalization = layers.Dense(5), layers.BatchNormalization()
        self.head = keras.Sequential([layers.Dropout(0.3), layers.Dense(1, dtype="float32")])

    def call(self, inputs, training=False):
        return self.head(self.normalization(self.dense(inputs), training=training))


class OwnStep(keras.Model):
    """With a `train_step` and a metric of its own."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1, dtype="float32")
        self.largest = keras.metrics.MeanMetricWrapper(
            lambda y, p: keras.ops.max(keras.ops.abs(p)), name="largest"
        )

    def call(self, inputs):
        return self.dense(inputs)

    def train_step(self, data):
        images, labels = data
        with tf.GradientTape() as tape:
            outputs = self(images, training=True)
            loss = self.compute_loss(images, labels, outputs)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.largest.update_state(labels, outputs)
        return {"loss": loss, "largest": self.largest.result()}


def network(*, dropout=0.3, outputs=1, **kwargs):
    """A small network with all kinds of state; its output is float32."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, **kwargs),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(dropout),
            layers.Dense(outputs, dtype="float32"),
        ]
    )


def weighted():
    model = network()
    auc = keras.metrics.AUC(name="auc", num_thresholds=20, from_logits=True)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=[auc], weighted_metrics=["mae"]
    )
    return model, {
        "x": IMAGES,
        "y": CLASSES,
        "sample_weight": WEIGHTS,
        "validation_data": (IMAGES[:8], CLASSES[:8], WEIGHTS[:8]),
    }


def class_weighted():
    model = network(outputs=2, dropout=0.0)
    model.layers[0].trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(0.1, global_clipnorm=0.5), loss, metrics=["accuracy"])
    return model, {"x": IMAGES, "y": CLASSES, "class_weight": {0: 1.0, 1: 3.0}}


def several():
    first, second = keras.Input((4,), name="first"), keras.Input((3,), name="second")
    hidden = layers.Dense(5)(layers.Concatenate()([first, second]))
    outputs = {
        "classes": layers.Dense(1, "sigmoid", dtype="float32", name="classes")(hidden),
        "values": layers.Dense(1, dtype="float32", name="values")(hidden),
    }
    model = keras.Model({"first": first, "second": second}, outputs)
    model.compile(
        keras.optimizers.Nadam(0.01),
        {"classes": "binary_crossentropy", "values": "mse"},
        loss_weights={"classes": 0.5, "values": 2.0},
        metrics={"classes": ["accuracy"], "values": ["mae", "mse"]},
    )
    return model, {
        "x": {"first": IMAGES, "second": OTHER},
        "y": {"classes": CLASSES, "values": VALUES},
        "sample_weight": {"classes": WEIGHTS, "values": WEIGHTS[::-1]},
    }


def losses_of_layers():
    model = network(kernel_regularizer="l2", activity_regularizer="l1")
    model.add(Penalty())
    model.compile("adam", "mse", metrics=["mse"], steps_per_execution=3)
    return model, {"x": IMAGES, "y": VALUES, "validation_data": (IMAGES, VALUES)}


def accumulating():
    model = network()
    optimizer = keras.optimizers.Adam(0.1, gradient_accumulation_steps=2, use_ema=True)
    model.compile(optimizer, "mse")
    return model, {"x": IMAGES, "y": VALUES}


def subclass():
    model = Unbuilt()
    model.compile("sgd", "mse", metrics=["mae"])
    return model, {"x": IMAGES, "y": VALUES, "validation_split": 0.25}


def own_step():
    model = OwnStep()
    model.compile("adam", "mse")
    return model, {"x": IMAGES, "y": VALUES}


def words():
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(7, 3),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1, dtype="float32"),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(keras.optimizers.Adagrad(schedule), "mse")
    return model, {"x": WORDS, "y": VALUES}


CASES = [
    *(weighted, class_weighted, several, losses_of_layers, accumulating),
    *(subclass, own_step, words),
]


class Progress(keras.callbacks.Callback):
    """Keeps what each step and each epoch logs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((batch, logs))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, logs))


def trained(case, policy, accelerated):
    keras.utils.set_random_seed(0)
    with policies.scope(policy):
        model, data = case()
        model.jit_compile = True
        model.optimizer.initial_scale = 64.0  # no overflow, where it scales the loss
        if accelerated:
            tfmp.accelerate(model)
        progress = Progress()
        model.fit(**data, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[progress])
    return model, progress.seen


def assert_equal(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), err_msg=b.path, **tolerance)


@pytest.mark.parametrize("case", CASES)
def test_float32_equals_keras_bit_for_bit(case):
    (stock, expected), (model, seen) = (trained(case, "float32", x) for x in (False, True))
    assert seen == expected
    assert_equal(model.variables, stock.variables, rtol=0)
    assert_equal(model.optimizer.variables, stock.optimizer.variables, rtol=0)


@pytest.mark.parametrize("case", [several, subclass])
def test_mixed_float16_equals_keras_to_float32_rounding(case):
    (stock, expected), (model, seen) = (trained(case, "mixed_float16", x) for x in (False, True))
    assert type(stock.optimizer) is keras.optimizers.LossScaleOptimizer
    assert type(model.optimizer) is tfmp.LossScaleOptimizer
    assert model.optimizer.iterations.numpy() == stock.optimizer.iterations.numpy() > 0
    rounding = 4 * float(np.finfo("float32").eps)
    assert_equal(model.variables, stock.variables, rtol=rounding, atol=1e-8)
    for (_, logs), (_, wanted) in zip(seen, expected, strict=True):
        assert logs == pytest.approx(wanted, rel=rounding)


def test_single_batches_evaluation_and_prediction_equal_keras():
    found = []
    for accelerated in (False, True):
        keras.utils.set_random_seed(0)
        with policies.scope("mixed_float16"):
            model, data = several()
        model.optimizer.initial_scale = 64.0
        model.jit_compile = True
        if accelerated:
            tfmp.accelerate(model)
        arrays = data["x"], data["y"], data["sample_weight"]
        logs = [model.train_on_batch(*arrays, return_dict=True) for _ in range(3)]
        logs.append(model.test_on_batch(*arrays, return_dict=True))
        logs.append(model.evaluate(**data, batch_size=10, verbose=0, return_dict=True))
        found.append((logs, model.predict(data["x"], verbose=0), model))
    (expected, predicted, stock), (logs, ours, model) = found
    for a, b in zip(logs, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=0)
    for name, values in predicted.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-6)
    assert_equal(model.variables, stock.variables, rtol=1e-6)
