"""An optimizer that scales the loss, and that no replica can break."""

import contextlib
import inspect

import keras
import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # no public way to ask for XLA's context

from tfmp import distribution
from tfmp.errors import UserError

# Variables that Keras' own class lacks; they follow its own.
COUNTERS = ("skipped_steps", "consecutive_skips", "last_overflow_step", "hysteresis_left")

OWN_ARGUMENTS = (
    "min_scale",
    "max_scale",
    "growth_factor",
    "backoff_factor",
    "hysteresis",
    "static_scale",
)


@keras.saving.register_keras_serializable(package="tfmp")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Scales the loss so that float16 gradients don't underflow, and skips steps that overflow.

    The loss is multiplied by the scale before the backward pass and the gradients are divided by
    it after they are summed over the replicas. Then, of each step:

    - All gradients finite: `inner_optimizer` clips and applies them. After
      `dynamic_growth_steps` such steps in a row the scale is multiplied by `growth_factor`, up
      to `max_scale`.
    - Any gradient of any replica infinite or NaN: no replica changes a weight, a slot, a moving
      average or `iterations`. The scale is multiplied by `backoff_factor`, down to `min_scale`,
      once `hysteresis` such steps have come since it last grew.

    Without an overflow the weights are, bit for bit, those of Keras' own class. It differs in
    what follows an overflow: there is one verdict for all replicas, made from the summed
    gradients; the scale has a floor and a ceiling; clipping by global norm sees the sum and not
    each replica's part; and it counts. What happens in `train_step` before `apply` (BatchNorm
    statistics, metrics) is undone by `tfmp.accelerate`.

    Args:
        inner_optimizer: Keras optimizer that applies the gradients.
        initial_scale: First scale.
        dynamic_growth_steps: Good steps in a row before the scale grows.
        min_scale: Floor of the scale.
        max_scale: Ceiling of the scale.
        growth_factor: Factor above 1.
        backoff_factor: Factor between 0 and 1.
        hysteresis: Overflows since the last growth that it takes to lower the scale; 1: each one
            does.
        static_scale: A scale that never changes, in place of the dynamic one. Steps that
            overflow are skipped and counted all the same; 1.0 is for policies that need no
            scaling.
        name: Name of the optimizer.

    Attributes:
        dynamic_scale: The scale; float32 scalar variable, once built, as all that follow.
        step_counter: Good steps since the scale last changed or a step overflowed; int64.
        skipped_steps: Steps skipped so far; int64.
        consecutive_skips: Steps skipped since the last good one; int64.
        last_overflow_step: Number of the last step skipped, counted from 1; 0: none; int64.

    Raises:
        ValueError: An argument is out of its range, or `inner_optimizer` scales the loss itself.

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.
        Hysteresis: Shoeybi et al., "Megatron-LM", 2019, its dynamic loss scaler.
    """

    def __init__(
        self,
        inner_optimizer,
        initial_scale=2.0**15,
        dynamic_growth_steps=2000,
        min_scale=1.0,
        max_scale=2.0**24,
        growth_factor=2.0,
        backoff_factor=0.5,
        hysteresis=1,
        static_scale=None,
        name=None,
        **kwargs,
    ):
        if isinstance(inner_optimizer, keras.optimizers.LossScaleOptimizer):
            raise UserError(
                "Expected an optimizer without loss scaling. Received: "
                f"{type(inner_optimizer).__name__}; use its inner_optimizer."
            )
        if static_scale is not None:
            initial_scale = static_scale
            min_scale, max_scale = min(min_scale, static_scale), max(max_scale, static_scale)
        for label, value, good, expected in (
            (
                "static_scale",
                static_scale,
                static_scale is None or 0 < static_scale < 2.0**128,
                "above 0, finite",
            ),
            ("min_scale", min_scale, min_scale > 0, "above 0"),
            (
                "max_scale",
                max_scale,
                min_scale <= max_scale < 2.0**128,
                "finite, min_scale or more",
            ),
            (
                "initial_scale",
                initial_scale,
                min_scale <= initial_scale <= max_scale,
                f"from min_scale ({min_scale}) to max_scale ({max_scale})",
            ),
            ("growth_factor", growth_factor, 1 < growth_factor < 2.0**128, "finite, above 1"),
            ("backoff_factor", backoff_factor, 0 < backoff_factor < 1, "between 0 and 1"),
            ("dynamic_growth_steps", dynamic_growth_steps, dynamic_growth_steps >= 1, "1 or more"),
            ("hysteresis", hysteresis, hysteresis >= 1, "1 or more"),
        ):
            if not good:
                raise UserError(f"Expected {label} {expected}. Received: {value}.")
        super().__init__(inner_optimizer, initial_scale, dynamic_growth_steps, name=name, **kwargs)
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.growth_factor = growth_factor
        self.backoff_factor = backoff_factor
        self.hysteresis = hysteresis
        self.static_scale = static_scale

    def build(self, var_list):
        """Makes the variables.

        Args:
            var_list: The trainable variables.
        """
        inner = self.inner_optimizer
        if inner.built:  # optimizers other than Keras' own may make their slots anew
            inner.__dict__["build"] = lambda var_list: None
        try:
            super().build(var_list)
        finally:
            inner.__dict__.pop("build", None)
        # Keras' own build keeps what the inner one assigns, as Nadam's product, from its state.
        for value in vars(inner).values():
            if isinstance(value, keras.Variable) and all(value is not v for v in inner.variables):
                inner._track_variable(value)
        for counter in COUNTERS:
            first = self.hysteresis if counter == "hysteresis_left" else 0
            initializer = keras.initializers.Constant(first)
            # int64: TensorFlow keeps int32 variables on the host, where XLA on a GPU can't
            # reach them.
            variable = self.add_variable((), initializer, dtype="int64", name=counter)
            setattr(self, counter, variable)

    def scale_loss(self, loss):
        """The loss times the scale.

        Args:
            loss: Scalar float tensor.
        """
        return keras.ops.multiply(loss, self.dynamic_scale if self.built else self.initial_scale)

    def apply(self, grads, trainable_variables=None):
        """Applies gradients of the scaled loss, or skips the step.

        Args:
            grads: List of gradients, each a tensor, `tf.IndexedSlices` or None. Within
                `strategy.run` those of this replica: they are summed over all replicas, so the
                loss is to be divided by their number.
            trainable_variables: Variables of the gradients; by default those of `build`.

        Raises:
            ValueError: It is called in a strategy's scope, but not within `strategy.run`; or,
                before `build`, in a `tf.function` on several replicas.
        """
        grads = list(grads)
        if not self.built:
            if tf.inside_function() and tf.distribute.get_strategy().num_replicas_in_sync > 1:
                raise UserError(
                    "LossScaleOptimizer.apply: expected a built optimizer, since a tf.function "
                    "can't make one's variables on several replicas. Call "
                    "optimizer.build(model.trainable_variables) in the strategy's scope first."
                )
            with keras.name_scope(self.name):
                self.build(list(trainable_variables))
        variables = list(
            self._trainable_variables if trainable_variables is None else trainable_variables
        )
        if not tf.distribute.has_strategy():
            self._apply_summed(grads, variables)
            return
        if tf.distribute.in_cross_replica_context():
            raise UserError(
                "LossScaleOptimizer.apply: expected a call within strategy.run. Received one in "
                "the strategy's scope outside of it."
            )
        context = tf.distribute.get_replica_context()
        present = [g for g in grads if g is not None]
        summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present) if present else ())
        grads = [g if g is None else next(summed) for g in grads]
        context.merge_call(self._apply_on_each_replica, args=(grads, variables))

    def _apply_on_each_replica(self, strategy, grads, variables):
        """Applies summed gradients to each replica's copies, which stay equal bit for bit."""
        touched = {id(v): v for v in [*variables, *self.variables] if hasattr(v, "_value")}
        optimizers = [self, self.inner_optimizer]
        for index, device in enumerate(distribution.devices(strategy)):
            local = [
                g if g is None else strategy.experimental_local_results(g)[index] for g in grads
            ]
            with (
                tf.device(device),
                distribution.on_replica(strategy, index, touched.values(), optimizers),
            ):
                self._apply_summed(local, variables)

    def _apply_summed(self, grads, variables):
        finite = self.check_finite(grads)
        if not control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
            keras.ops.cond(finite, lambda: self._on_finite(grads, variables), self._on_overflow)
            return
        # In an XLA program on a GPU the host would wait at the condition for all that is before
        # it, and launch nothing ahead; choosing between both outcomes costs no more than a read.
        state = [*variables, *self.variables]
        before = {id(v): tf.convert_to_tensor(v) for v in state}
        own = [self.step_counter, self.dynamic_scale, *(getattr(self, x) for x in COUNTERS)]
        self._on_overflow()  # of all the state it changes these alone
        skipped = before | {id(v): tf.convert_to_tensor(v) for v in own}
        _assign(own, [before[id(v)] for v in own])
        self._on_finite(grads, variables)
        _assign(state, [tf.where(finite, tf.convert_to_tensor(v), skipped[id(v)]) for v in state])

    def _on_finite(self, grads, variables):
        scale = tf.convert_to_tensor(self.dynamic_scale)
        unscaled = [
            g
            if g is None or self._overwrite_variable_with_gradient(v)
            else keras.ops.divide(g, scale)
            for g, v in zip(grads, variables, strict=True)
        ]
        with _learning_rate_once(self.inner_optimizer):
            self.inner_optimizer.apply(unscaled, variables)
        self.consecutive_skips.assign(0)
        good = self.step_counter + 1
        if self.static_scale is not None:
            self.step_counter.assign(good)
            return
        grow = good >= self.dynamic_growth_steps
        self.step_counter.assign(keras.ops.where(grow, 0, good))
        grown = keras.ops.minimum(scale * self.growth_factor, self.max_scale)
        self.dynamic_scale.assign(keras.ops.where(grow, grown, scale))
        left = keras.ops.where(grow, self.hysteresis, self.hysteresis_left)
        self.hysteresis_left.assign(left)

    def _on_overflow(self):
        self.step_counter.assign(0)
        self.skipped_steps.assign_add(1)
        self.consecutive_skips.assign_add(1)
        self.last_overflow_step.assign(steps(self))
        if self.static_scale is not None:
            return
        left = keras.ops.maximum(self.hysteresis_left - 1, 0)
        lowered = keras.ops.maximum(self.dynamic_scale * self.backoff_factor, self.min_scale)
        self.hysteresis_left.assign(left)
        self.dynamic_scale.assign(keras.ops.where(left > 0, self.dynamic_scale, lowered))

    def load_own_variables(self, store):
        """Restores the state; also that of Keras' own class, which lacks the counters."""
        counters = {id(getattr(self, name)) for name in COUNTERS}
        keras_own = [v for v in self.variables if id(v) not in counters]
        if len(store.keys()) != len(keras_own):
            super().load_own_variables(store)
            return
        for index, variable in enumerate(keras_own):
            variable.assign(store[str(index)])

    def get_config(self):
        """The arguments, serializable: those that Keras' own class lacks only if set."""
        parameters = inspect.signature(LossScaleOptimizer).parameters
        own = {name: getattr(self, name) for name in parameters if name in OWN_ARGUMENTS}
        changed = {n: value for n, value in own.items() if value != parameters[n].default}
        return super().get_config() | changed


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def is_dynamic(optimizer):
    """Whether the optimizer scales the loss by a factor that it adapts."""
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return scaled and getattr(optimizer, "static_scale", None) is None


def inner(optimizer):
    """The optimizer that updates the weights: without its loss scaling, if it has any."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def scale(optimizer):
    """The factor on the loss now: a scalar float32 tensor, or 1.0 where there is none."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return 1.0
    if not optimizer.built:
        return optimizer.initial_scale
    return tf.convert_to_tensor(optimizer.dynamic_scale)


@contextlib.contextmanager
def _learning_rate_once(optimizer):
    """A context in which a schedule is computed once, not again for each weight that decays.

    Of an EfficientNetV2-S with AdamW those were 171 more conditions, with functions of their own
    for TensorFlow to trace and XLA to compile. Of Keras' own optimizers only: another may take
    several steps in an `apply`, or trace a function in it that outlives the step.
    """
    name = "_get_current_learning_rate"
    known = type(optimizer).__module__.startswith("keras.") and name not in vars(optimizer)
    schedule = keras.optimizers.schedules.LearningRateSchedule
    if not known or not isinstance(optimizer._learning_rate, schedule):
        yield
        return
    rate = optimizer.learning_rate
    vars(optimizer)[name] = lambda: rate
    try:
        yield
    finally:
        del vars(optimizer)[name]


def skipped_steps(optimizer):
    """Steps that the loss scale skipped: a scalar int64 tensor, or 0 where it doesn't count."""
    counted = isinstance(optimizer, LossScaleOptimizer) and optimizer.built
    return tf.convert_to_tensor(optimizer.skipped_steps) if counted else 0


def steps(optimizer):
    """Steps so far, applied, accumulated or skipped: a scalar int64 tensor.

    `Optimizer.iterations` would not do: it counts one for several accumulated steps, and none
    for a skipped one.
    """
    applied = inner(optimizer).variables[0]
    return tf.convert_to_tensor(applied) + skipped_steps(optimizer)
