"""A few training steps of a model under one policy, always from the same state."""

import contextlib
import dataclasses
import math
import random
import time
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator  # of layers without a seed

from tfmp import loss_scale
from tfmp.doctor.draws import same_draws
from tfmp.policies.temporary import under

# A step whose gradients overflow is run again with this part of the loss scale, as a training would
# get there after some skipped steps.
LOWER = 1 / 32


@dataclasses.dataclass(frozen=True)
class Run:
    """What a few training steps did.

    Attributes:
        losses: Loss of each step, up to the first that is not finite; empty where the model's
            `train_step` returns none.
        gradients: The first step's, unscaled: list of float32 arrays, in the order in which the
            optimizers got them; None where there is none.
        names: Paths of their variables.
        problem: What ended it or was not finite, in a few words; None: nothing.
        seconds: Time of the steps.
    """

    losses: tuple[float, ...]
    gradients: tuple[np.ndarray | None, ...]
    names: tuple[str, ...]
    problem: str | None
    seconds: float


class Steps:
    """Trains a model without XLA, each time from the state that it has now.

    All but the optimizers' updates runs eagerly. An optimizer of `compile` without loss scaling is
    given it, as `tfmp.accelerate` does, where the model's `train_step` is Keras' own. Use it as a
    context: on leaving, the model and its optimizers have their variables, and the model its
    optimizer, as before.

    Args:
        model: A compiled Keras model.
        data: A batch as its `train_step` takes it, such as (inputs, labels).
        part: The model whose layers change: this one, or one in it.
        count: Number of steps.
        seed: Seed of all that is random.
    """

    def __init__(self, model, data, part, count, seed):
        self.model, self.data, self.part = model, _tensors(data), part
        self.count, self.seed = count, seed
        self._optimizer = model.optimizer
        self._applied: list = []
        self._updates: dict = {}

    def __enter__(self):
        """Remembers the state."""
        own = type(self.model).train_step is not keras.Model.train_step
        if not own and self._optimizer is not None:
            self.model.optimizer = loss_scale.wrap(self._optimizer)
        self._optimizers = loss_scale.optimizers_of(self.model)
        if self.model.optimizer is not None and not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        # Not in each run: it makes TensorFlow forget its compiled kernels and functions.
        keras.utils.set_random_seed(self.seed)
        self._state = _values([self.model, *self._optimizers])
        generator = global_seed_generator()
        self._state.append((generator.state, tf.identity(generator.state.value)))
        return self

    def __exit__(self, *_):
        """Puts the state back."""
        _assign(self._state)
        self.model.reset_metrics()
        self.model.optimizer = self._optimizer

    def run(self, policy, rounded: str | None = None, judge=lambda run: run.problem) -> Run:
        """Trains under a policy.

        Args:
            policy: Its name, or a map of `tfmp.policies.with_float32`.
            rounded: A half dtype that the weights are rounded to before the first step.
            judge: Function of a `Run` so far that gives its problem; one ends it.
        """
        losses: list[float] = []
        first: list = []
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.enter_context(under(self.part, policy))
            stack.enter_context(same_draws())
            stack.enter_context(np.errstate(all="ignore"))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # what `fit` says once would come in every trial
            for optimizer in self._optimizers:
                stack.enter_context(self._overheard(optimizer))
            _assign(self._state)
            if rounded:
                for variable in self.model.trainable_variables:
                    variable.assign(tf.cast(tf.cast(variable, rounded), variable.dtype))
            for step in range(self.count):
                loss, problem = self._step(step)
                losses += [] if loss is None else [loss]
                first = first or self._applied
                if problem or judge(_run(losses, first, None, began)):
                    break
            else:
                problem = self._not_finite()
            run = _run(losses, first, problem, began)
            return dataclasses.replace(run, problem=judge(run))

    def _step(self, step):
        """(loss, what is wrong) of one update at the largest loss scale that it bears."""
        before = _values([self.model, *self._optimizers])
        while True:
            random.seed(self.seed + step)
            np.random.seed(self.seed + step)
            self.model.reset_metrics()
            self._applied = []
            loss = loss_of(self.model.train_step(self.data))
            if loss is not None and not math.isfinite(loss):
                return loss, f"the loss of step {step + 1} is {loss}"
            bad = [name for name, x in self._applied if x is not None and not np.isfinite(x).all()]
            if not bad:
                return loss, None
            lower = [x for x in self._optimizers if loss_scale.is_dynamic(x) and _scale(x) > 1]
            if not lower:
                return loss, f"the gradient of {bad[-1]} in step {step + 1} is not finite"
            _assign(before)
            for optimizer in lower:
                optimizer.dynamic_scale.assign(max(1.0, _scale(optimizer) * LOWER))
            # The scale of later steps, too.
            before = [x for x in before if all(x[0] is not y.dynamic_scale for y in lower)]

    @contextlib.contextmanager
    def _overheard(self, optimizer):
        """Gradients that an optimizer gets are noted, unscaled."""

        def apply(grads, trainable_variables=None):
            grads = list(grads)
            if trainable_variables is None:
                variables = list(optimizer._trainable_variables)
            else:
                variables = list(trainable_variables)
            if not optimizer.built:
                optimizer.build(variables)
                self._state += _values([optimizer])
            scale = _scale(optimizer)
            for gradient, variable in zip(grads, variables, strict=True):
                value = None
                if gradient is not None:
                    value = np.float32(tf.convert_to_tensor(gradient)) / np.float32(scale)
                self._applied.append((variable.path, value))
            self._update(optimizer, variables)(grads)

        vars(optimizer)["apply"] = apply
        try:
            yield
        finally:
            del vars(optimizer)["apply"]

    def _update(self, optimizer, variables):
        """An optimizer's update of variables, as a graph: it is the same in all precisions."""
        key = (id(optimizer), *map(id, variables))
        if key not in self._updates:
            self._updates[key] = tf.function(
                lambda grads: type(optimizer).apply(optimizer, grads, variables), autograph=False
            )
        return self._updates[key]

    def _not_finite(self):
        """What the steps left that is not finite: a weight, or an output for the same inputs."""
        for variable in self.model.variables:
            if not _is_finite(variable.value):
                return f"{variable.path} is not finite"
        if self.part is not self.model:
            return None  # what it takes, only the model around it knows
        inputs = self.data[0] if isinstance(self.data, tuple) else self.data
        try:
            outputs = self.model(inputs, training=False)
        except NotImplementedError:  # a model that is its `train_step` only
            return None
        finite = all(map(_is_finite, keras.tree.flatten(outputs)))
        return None if finite else "the outputs are not finite"


def _run(losses, applied, problem, began):
    names, gradients = zip(*applied, strict=True) if applied else ((), ())
    return Run(tuple(losses), gradients, names, problem, time.monotonic() - began)


def loss_of(logs) -> float | None:
    """The loss in the logs of a step: "loss", or the sum of all whose names end in "_loss"."""
    if "loss" in logs:
        return float(np.mean(logs["loss"]))  # of each example, in some train_step
    losses = [float(np.mean(x)) for name, x in logs.items() if name.endswith("_loss")]
    return sum(losses) if losses else None


def _scale(optimizer) -> float:
    return float(loss_scale.scale(optimizer))


def _is_finite(x) -> bool:
    return not x.dtype.is_floating or bool(tf.reduce_all(tf.math.is_finite(x)))


def _tensors(data):
    def one(value):
        value = tf.convert_to_tensor(value)
        return tf.cast(value, "float32") if value.dtype == tf.float64 else value

    return keras.tree.map_structure(one, data)


def _values(holders):
    """(variable, value) of all that models and optimizers hold, each once."""
    variables = {id(v): v for holder in holders for v in holder.variables}
    return [(v, tf.identity(v.value)) for v in variables.values()]


def _assign(values):
    for variable, value in values:
        variable.assign(value)
