"""One step builder: XLA in every replica, and a bad step that changes nothing anywhere.

One replica: the whole step is one XLA program, as with Keras' `jit_compile=True`; then what a
skipped step has changed is put back.

Several replicas: gradients and changes of statistics, weighted by the replica's number of examples,
are summed over the replicas. Each applies the sums to its copies of the variables: the same numbers
on all, so the same verdict and the same weights. On GPUs of their own all of that is one XLA
program a replica, in which NCCL adds up one part of the gradients after the other, while the
backward pass goes on; and the host can run ahead of them. Elsewhere there are two, forward and
backward pass and the update, with the strategy's sum of one vector between them, for which the host
waits.
"""

import contextlib
import copy
import functools
import itertools

import keras
import tensorflow as tf

from tfmp import distribution, loss_scale, policies
from tfmp.errors import UserError
from tfmp.training import executions, fused, remat
from tfmp.training import vector as vectors
from tfmp.training.explain import explaining_errors
from tfmp.training.layer_maxima import ACTIVATIONS, Maxima
from tfmp.training.replica import ReplicaSteps


def accelerate(model, *, jit_compile=True, fused_layers=None, microbatches=1, remat=False):
    """Makes `model.fit` run each replica's step as XLA programs, and skip bad steps whole.

    Works without a strategy and under OneDeviceStrategy, MirroredStrategy and
    MultiWorkerMirroredStrategy, with all that Keras' `fit` takes. What it adds to Keras:

    - XLA under a strategy of several replicas.
    - With a `tfmp.LossScaleOptimizer` a step that overflows on any replica leaves weights, slots,
      BatchNorm statistics, seeds and metrics of every replica as they were. An optimizer without
      loss scaling gets one if some layer computes in float16.
    - Under several replicas: gradients are those of the whole batch also where it does not
      divide evenly; each replica draws its own dropout masks; the moving statistics of
      BatchNorm are averaged and stay equal; `steps_per_execution` and Keras'
      `gradient_accumulation_steps` work.
    - On a GPU, layers that pass fewer times over its memory: BatchNormalization, max pooling,
      1x1 convolutions and dense layers on sequences (see `tfmp.training.fused`), and attention by
      cuDNN (see `tfmp.training.cudnn_attention`) compute the same up to rounding.

    A model with a `train_step` of its own is run as it is. With several replicas or microbatches
    that step has to apply gradients once, by `self.optimizer`, and what it reads of the weights
    after that is old. BatchNormalization with `synchronized=True` keeps forward and backward
    pass of several replicas out of XLA (see `uses_xla`).

    Args:
        model: Keras model, compiled before its next `fit`. Changed in place. Under a strategy:
            made, and compiled, in its scope.
        jit_compile: Whether XLA compiles the steps.
        fused_layers: Whether training steps run such layers fused; by default where XLA compiles
            them for a GPU.
        microbatches: Parts in which each replica computes its batch, one after the other, to
            save memory; their gradients make one update. Each replica's batch has to divide by
            it. Logs then hold metrics only.
        remat: Whether training keeps few activations and computes the others once more in the
            backward pass, to save memory (see `tfmp.training.remat`). Wants XLA, and a functional
            or Sequential model, or one inside of the model.

    Returns:
        The model.

    Raises:
        UserError: Also a `ValueError`: `microbatches` is below 1, or `remat` without XLA. In
            `fit`: a layer or a `train_step` that XLA refuses, a model made outside of its
            strategy's scope, a batch that doesn't divide, a model that `remat` can't cut, or with
            several replicas or microbatches a loss that is no mean.
    """
    if microbatches < 1:
        raise UserError(f"Expected microbatches of 1 or more. Received: {microbatches}.")
    if remat and not jit_compile:
        raise UserError(f"remat needs XLA. Received: jit_compile={jit_compile}.")
    made = Engine(model, jit_compile, fused_layers, microbatches, remat)
    model._maybe_symbolic_build = made.build
    model.make_train_function = made.make_train_function
    model.make_test_function = made.make_test_function
    model.train_function = model.test_function = None
    return model


def uses_xla(model):
    """Whether `accelerate` can compile the model's forward and backward pass with XLA.

    Args:
        model: A Keras model, made in the scope of its strategy.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync
    return replicas == 1 or not distribution.has_synchronized_batch_norm(model)


def engine_of(model):
    """What `accelerate` gave a model; None where it was not called.

    Args:
        model: A Keras model.
    """
    found = getattr(model.make_train_function, "__self__", None)
    return found if isinstance(found, Engine) else None


class Engine:
    """Builds the functions that Keras' `fit` and `evaluate` call.

    Attributes:
        tracer: A `tfmp.Tracer` that follows the training steps, or None.
        maxima: What its traced steps measure.
    """

    def __init__(self, model, jit_compile, fused_layers, microbatches, remat):
        self.model = model
        self.jit_compile = jit_compile
        self.fused_layers = fused_layers
        self.steps = ReplicaSteps(model, microbatches)
        self.steps.remat = remat
        self.own_train_step = type(model).train_step is not keras.Model.train_step
        self.tracer = self.maxima = None
        self._batch = None  # specs

    # --- what Keras calls

    def make_train_function(self, force=False):
        """Keras' hook: sets and returns the model's `train_function`."""
        if self.model.train_function is None or force:
            self._check()
            self._scale_loss()
            self.steps.jit_compile = self.jit_compile and self._may_use_xla()
            self.steps.fused_layers = self._fuses_layers()
            self._trace_own_train_step()
            self.model.train_function = self._train_function()
        return self.model.train_function

    def make_test_function(self, force=False):
        """Keras' hook: sets and returns the model's `test_function`."""
        if self.model.test_function is None or force:
            self._check()
            functions = [self.steps.evaluation(i) for i in range(self.steps.local_replicas)]
            step = self._on_each_replica([self._compiled(f) for f in functions])
            self.model.test_function = self._of_iterator(step)
        return self.model.test_function

    def _may_use_xla(self):
        """Whether XLA compiles the forward and backward pass, if `jit_compile` asks for it."""
        return uses_xla(self.model) and not self.model.run_eagerly

    def _fuses_layers(self):
        if not self._may_use_xla():
            return False
        if self.fused_layers is None:
            return fused.is_default(self.jit_compile)
        return self.fused_layers

    def _scale_loss(self):
        """Gives the optimizer of `compile` the loss scaling that it needs."""
        optimizer = self.model.optimizer
        keras_own = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if optimizer is not None and (keras_own or policies.uses_float16(self.model)):
            with self.model.distribute_strategy.scope():
                self.model.optimizer = loss_scale.wrap(optimizer)

    def _trace_own_train_step(self):
        """Makes the variables that a `train_step` of the model's own makes in its first call."""
        known = not self.own_train_step or _is_built(self.model)
        if known or self.steps.replicas > 1 or self._batch is None:
            return
        with self.model.distribute_strategy.scope(), self._explaining_errors():
            step = tf.function(self.model.train_step, autograph=False)
            step.get_concrete_function(self._batch)

    def _check(self):
        refused = [x for x in self.model._flatten_layers() if not x.supports_jit]
        if self.jit_compile and refused:
            names = ", ".join(f"{x.name} ({type(x).__name__})" for x in refused)
            raise UserError(
                f"Expected layers that XLA can compile. Received: {names}. Move them into the "
                "input pipeline, or take accelerate(model, jit_compile=False)."
            )
        if self.steps.microbatches > 1 and not uses_xla(self.model):
            raise UserError(
                "Expected microbatches=1 with synchronized BatchNormalization on several "
                f"replicas. Received: {self.steps.microbatches}."
            )
        if self.steps.remat:
            self._check_remat()

    def _check_remat(self):
        if not self._may_use_xla():
            raise UserError(
                "Expected a step that XLA compiles, for remat=True. Received: synchronized "
                "BatchNormalization on several replicas, or run_eagerly=True."
            )
        if not remat.can_recompute(self.model):
            raise UserError(
                "Expected a functional or Sequential model, or one inside of the model, that can "
                "be cut into parts, for remat=True. Received: "
                f"{self.model.name} ({type(self.model).__name__}), in which nothing can be cut."
            )

    # --- functions of an iterator

    def _of_iterator(self, step, several=None, kept=None):
        return executions.of_iterator(self.model, step, self._explaining_errors, several, kept)

    def build(self, iterator=None, data_batch=None):
        """Keras' hook: makes the variables that the first step would make.

        Keras' own takes a batch of the data for it, and fails where replicas get unequal parts.
        """
        model, strategy = self.model, self.model.distribute_strategy
        for variable in model.variables:
            distribution.copies(strategy, variable)
        if iterator is not None:
            data_batch = iterator._distributed_dataset.element_spec
        batch = keras.tree.map_structure(_spec, data_batch)
        with strategy.scope(), self._explaining_errors():
            if not self.own_train_step:
                with contextlib.suppress(RuntimeError):  # layers are built in `train_step` only
                    model._symbolic_build(data_batch=batch)
            elif self.steps.replicas > 1 and not _is_built(model):
                model._symbolic_build(data_batch=batch)
        self._batch = batch

    def _explaining_errors(self):
        return explaining_errors(self.steps, self.own_train_step)

    # --- what a tracer follows

    def _train_function(self):
        """The step as it is; or, for a tracer, of batches that it is shown, traced when it asks."""
        step, several = self._train_step(self.steps)
        kept = None
        if self._sums_within_xla():
            kept = executions.KeptLogs(distribution.devices(self.model.distribute_strategy)[0])
        plain = self._of_iterator(step, several, kept)
        traced = functools.cache(lambda: self._of_iterator(self._traced_step()))

        def function(iterator):
            if self.tracer is None:
                return plain(iterator)
            due = self.tracer.before_step()
            batches = list(itertools.islice(iterator, self.model.steps_per_execution))
            if not batches:
                raise StopIteration
            logs = (traced() if due else plain)(iter(batches))
            last = keras.tree.map_structure(executions.without_optionals, batches[-1])
            return self.tracer.after_step(logs, last)

        return function

    def _traced_step(self):
        steps = copy.copy(self.steps)
        self.maxima = steps.maxima = Maxima(self.model)
        return self._train_step(steps)[0]

    # --- steps of a global batch

    def _train_step(self, steps):
        """A function of a batch, and one of a list of batches, or None where XLA can't loop."""
        functions, whole = self._replica_steps(steps)

        def on_each_replica(functions):
            return self._on_each_replica(functions, same_logs=steps.replicas > 1)

        if not whole:
            return on_each_replica(functions), None
        step = on_each_replica([self._compiled(f) for f in functions])
        if not self.jit_compile or self.model.run_eagerly or not executions.loops_are_fast():
            return step, None
        return step, on_each_replica([self._compiled(executions.looped(f)) for f in functions])

    def _replica_steps(self, steps):
        """Functions of each replica's data, and whether each is a whole step, to be compiled."""
        if steps.replicas == steps.microbatches == 1:
            return [steps.whole], True
        indices = range(steps.local_replicas)
        native = not uses_xla(self.model)
        within_xla = self._sums_within_xla()
        whole = steps.replicas == 1 or within_xla
        forward = [steps.forward_backward(i, native, in_one=not whole) for i in indices]
        commit = [steps.commit(index) for index in indices]
        if not whole:
            forward = [executions.after_inputs(f) if native else self._compiled(f) for f in forward]
            commit = [self._compiled(function) for function in commit]

        def add_up(x, number):
            if within_xla:
                return distribution.sum_within_xla(x, number)
            return distribution.replica_sum(x)  # which numbers its sums itself

        def replica_step(index):
            def step(data):
                summed, kept, measured = forward[index](data)
                if steps.replicas > 1:
                    summed = vectors.add_up(summed, add_up)
                return commit[index](summed, kept) | measured

            return step

        return [replica_step(index) for index in indices], whole

    def _sums_within_xla(self):
        able = distribution.sums_within_xla(self.model.distribute_strategy)
        return able and self.jit_compile and self._may_use_xla()

    def _compiled(self, function):
        if self.model.run_eagerly:
            return function
        return tf.function(
            executions.after_inputs(function),
            jit_compile=self.jit_compile,
            reduce_retracing=True,
            autograph=False,
        )

    def _on_each_replica(self, functions, *, same_logs=False):
        """A function of a global batch, from one of its part for each replica.

        Its logs are means over the replicas, or those of any, if all have the same.
        """
        strategy = self.model.distribute_strategy
        devices = distribution.devices(strategy)
        first = distribution.first_replica(strategy)

        def alone(data):
            with tf.device(devices[0]) if devices[0] else contextlib.nullcontext():
                return functions[0](local(strategy, data))

        def together(data):
            def on_replica(data):
                return functions[distribution.replica_index() - first](data)

            def joined(name, x):
                values = strategy.experimental_local_results(x)
                if name == ACTIVATIONS:
                    return tf.reduce_max(tf.stack(values), 0)
                return values[0] if same_logs else tf.reduce_mean(tf.stack(values), 0)

            logs = strategy.run(on_replica, args=(data,))
            return {name: joined(name, x) for name, x in logs.items()}

        return alone if self.steps.replicas == 1 else together


def _is_built(model):
    parts = [model._compile_metrics, model._compile_loss, *loss_scale.optimizers_of(model)]
    return all(part is None or part.built for part in parts)


def _spec(x):
    """A replica's part of a batch, as a spec."""
    x = executions.without_optionals(x)
    if x is None or isinstance(x, (tf.experimental.Optional, tf.OptionalSpec)):
        return None
    if hasattr(x, "_value_specs"):  # of several replicas
        x = x._value_specs[0]
    return x if isinstance(x, tf.TypeSpec) else tf.TensorSpec(x.shape, x.dtype)


def local(strategy, data, index=0):
    """A replica's part of a batch; the only one's."""
    return keras.tree.map_structure(lambda x: strategy.experimental_local_results(x)[index], data)
