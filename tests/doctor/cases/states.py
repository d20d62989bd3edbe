"""State that half holds, or that is read in half: statistics, slots, weights of a checkpoint."""

import keras
import numpy as np
from keras import layers, ops

import tfmp
from cases import Bad

HALF = "mixed_float16"


class Running(layers.Layer):
    """A state of a dtype that moves by a part of the way to the mean in each call."""

    def __init__(self, state, rate, **kwargs):
        super().__init__(**kwargs)
        self.state, self.rate = state, rate

    def build(self, shape):
        self.mean = self.add_weight(
            shape=shape[-1:],
            initializer="ones",
            trainable=False,
            dtype=self.state,
            autocast=False,
            name="mean",
        )

    def call(self, inputs):
        mean = ops.cast(ops.mean(ops.cast(inputs, "float32"), axis=0), self.state)
        self.mean.assign(self.mean + self.rate * (mean - self.mean))
        return inputs - ops.cast(self.mean, inputs.dtype)

    def get_config(self):
        return super().get_config() | {"state": self.state, "rate": self.rate}


class Counting(Running):
    """A count of its calls."""

    def call(self, inputs):
        self.mean.assign_add(ops.ones_like(self.mean))
        return inputs / ops.cast(self.mean, inputs.dtype)


class Last(Running):
    """The last two inputs: a state that only moves."""

    def call(self, inputs):
        self.mean.assign(ops.cast(ops.concatenate([self.mean[1:], inputs[0, :1]]), self.state))
        return inputs + ops.cast(self.mean, inputs.dtype)


def normalized(state, rate=1e-3, kind=Running):
    inputs = keras.Input((3,))
    x = kind(state, rate, dtype=HALF, name="running")(inputs)
    return keras.Model(inputs, layers.Dense(1, dtype="float32")(x))


def stops_on_its_way(model):
    """From 1 to 1.2: float16 is 2^-10 apart there, and a step is 2e-4."""
    for _ in range(3):
        model(np.full((4, 3), 1.2, "float32"))
    return (model.get_layer("running").mean.numpy() == 1).all()


def stops_counting(model):
    mean = model.get_layer("running").mean
    mean.assign(ops.full_like(mean, 2048))
    model(np.ones((4, 3), "float32"))
    return (np.float32(mean.numpy()) == 2048).all()


@keras.saving.register_keras_serializable(package="cases")
class Averaging(layers.Layer):
    """A cell that follows its inputs slowly."""

    state_size = output_size = 2

    def call(self, inputs, states):
        state = states[0] + 0.002 * (inputs - states[0])
        return state, [state]


def slow_cell(dtype=HALF):
    inputs = keras.Input((1000, 2))
    cell = Averaging(dtype=dtype, name="averaging")
    return keras.Model(inputs, layers.RNN(cell, dtype=dtype, name="rnn")(inputs))


def stays_behind(model):
    """22 (1 - exp(-2)) is 19.0; float16 stops at 18.1."""
    return np.abs(model.predict(np.full((1, 1000, 2), 22.0), verbose=0) - 19.0).max() > 0.2


class MeanTeacher(keras.Model):
    """A teacher whose weights follow a student's."""

    def __init__(self, policy, rate):
        super().__init__()
        self.student = keras.Sequential([layers.Dense(2, dtype=HALF, name="one")], name="student")
        self.teacher = keras.Sequential(
            [layers.Dense(2, dtype=policy, name="one")], name="teacher", trainable=False
        )
        self.rate = rate

    def call(self, x):
        return ops.cast(self.teacher(x), "float32") + ops.cast(self.student(x), "float32")

    def train_step(self, data):
        for new, old in zip(self.student.variables, self.teacher.variables, strict=True):
            value = ops.convert_to_tensor(old)
            old.assign(value + self.rate * (ops.cast(new, old.dtype) - value))
        return {"loss": ops.zeros(())}


def taught(policy, rate=1e-4):
    model = MeanTeacher(policy, rate)
    model(np.ones((1, 2), "float32"))
    model.teacher.set_weights([np.ones((2, 2)), np.ones(2)])
    model.compile(tfmp.wrap("sgd"), run_eagerly=True)
    return model


def learns_nothing(model):
    model.student.set_weights([np.full((2, 2), 1.5), np.full(2, 1.5)])
    model.fit(np.ones((1, 2)), np.ones((1, 2)), verbose=0)
    return all((np.float32(x) == 1).all() for x in model.teacher.get_weights())


class Slots(keras.optimizers.Optimizer):
    """A gradient over the root of its mean square, or a momentum, in slots of a dtype."""

    def __init__(self, slot, square=True, **kwargs):
        super().__init__(learning_rate=1e-3, **kwargs)
        self.slot, self.square = slot, square

    def build(self, variables):
        super().build(variables)
        self.slots = [self.add_variable(v.shape, dtype=self.slot, name="slot") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        slot = self.slots[self._get_variable_index(variable)]
        half = ops.cast(gradient, self.slot)
        new = ops.square(half) if self.square else half
        slot.assign(0.9 * ops.convert_to_tensor(slot) + 0.1 * new)
        step = ops.cast(slot, "float32")
        if self.square:
            step = gradient / (ops.sqrt(step) + 1e-7)
        variable.assign_sub(ops.cast(learning_rate, "float32") * step)


def optimized(*args):
    inputs = keras.Input((1,))
    x = layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype=HALF, name="x")(inputs)
    model = keras.Model(inputs, layers.Activation("linear", dtype="float32")(x))
    return tfmp.compile(model, Slots(*args), loss="mse", run_eagerly=True)


def explodes(model):
    """Gradients of 1e-4, whose square is 0 in float16."""
    model.fit(np.ones((1, 1)), np.full((1, 1), 1 - 5e-5), verbose=0)
    return abs(float(model.get_weights()[0].squeeze()) - 1) > 0.1


def whitened(largest=1 / 3e-6, dtype=HALF):
    inputs = keras.Input((2,))
    whiten = layers.Dense(2, use_bias=False, trainable=False, dtype=dtype, name="whiten")
    model = keras.Model(inputs, layers.Dense(1, dtype="float32")(whiten(inputs)))
    whiten.kernel.assign([[largest, 0.0], [0.0, 1.0]])
    return model


def is_infinite(model):
    return not np.isfinite(model.predict(np.array([[3e-6, 1.0]]), verbose=0)).all()


def restored(policy):
    """A checkpoint with a variance of 1e5."""
    inputs = keras.Input((2,))
    x = layers.BatchNormalization(dtype=policy, name="norm")(inputs)
    model = keras.Model(inputs, layers.Activation("linear", dtype="float32")(x))
    model.get_layer("norm").set_weights([np.ones(2), np.zeros(2), np.zeros(2), np.full(2, 1e5)])
    return model


def gives_zeros(model):
    return not model.predict(np.full((1, 2), 300.0), verbose=0).any()


BAD = {
    "running_mean": Bad(
        lambda: normalized("float16"),
        "stalled_state",
        "running",
        stops_on_its_way,
        lambda: normalized("float32"),
        "error",
    ),
    "running_mean_in_bfloat16": Bad(
        lambda: normalized("bfloat16", 0.01),
        "stalled_state",
        "running",
        stops_on_its_way,
        lambda: normalized("float32", 0.01),
        "error",
    ),
    "count": Bad(
        lambda: normalized("float16", kind=Counting),
        "stalled_state",
        "running",
        stops_counting,
        lambda: normalized("float32", kind=Counting),
        "error",
    ),
    "cell": Bad(slow_cell, "stalled_state", "rnn/averaging", stays_behind, severity="error"),
    "teacher": Bad(
        lambda: taught("float16"),
        "stalled_state",
        "teacher/one",
        learns_nothing,
        lambda: taught(HALF),
        "error",
    ),
    "second_moment": Bad(
        lambda: optimized("float16"),
        "half_slots",
        None,
        explodes,
        lambda: optimized("float32"),
        "error",
    ),
    "whitening": Bad(whitened, "weight_overflow", "whiten", is_infinite, severity="error"),
    "variance_of_a_checkpoint": Bad(
        lambda: restored("float16"),
        "weight_overflow",
        "norm",
        gives_zeros,
        lambda: restored(HALF),
        "error",
    ),
}

CLEAN = {
    "running_mean_in_float32": lambda: normalized("float32"),
    "fast_mean_in_float16": lambda: normalized("float16", 0.1),
    "last_inputs_in_float16": lambda: normalized("float16", kind=Last),
    "cell_in_float32": lambda: slow_cell("float32"),
    "teacher_with_float32_weights": lambda: taught(HALF),
    "second_moment_in_float32": lambda: optimized("float32"),
    "momentum_in_bfloat16": lambda: optimized("bfloat16", False),
    "weights_that_fit": lambda: whitened(3e4),
    "variance_in_float32": lambda: restored(HALF),
}
