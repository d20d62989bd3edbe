"""What one replica runs: functions to be traced, each around the model's own `train_step`."""

import contextlib
import math

import keras
import numpy as np
import tensorflow as tf

from tfmp import distribution, loss_scale
from tfmp.errors import UserError
from tfmp.training import logs as logs_of
from tfmp.training import vector as vectors
from tfmp.training.cross_entropy import closed_cross_entropy
from tfmp.training.cudnn_attention import cudnn_attention
from tfmp.training.fused import deterministic_pooling, fused_layers
from tfmp.training.gelu import closed_gelu
from tfmp.training.layer_maxima import ACTIVATIONS, GRADIENTS, UNSEEN
from tfmp.training.remat import recomputing
from tfmp.training.watch import Watch

# Odd and large, so that the seeds of two replicas stay apart.
SEED_STRIDE = 0x9E3779B9

EMPTY_PART = "a replica gets no example"


class ReplicaSteps:
    """Builds the functions that run on a replica, seeing its copies of the variables only.

    Args:
        model: A compiled Keras model.
        microbatches: Parts in which a replica computes its batch.
    """

    def __init__(self, model, microbatches=1):
        self.model = model
        self.microbatches = microbatches
        self.jit_compile = self.fused_layers = self.remat = False
        self.maxima = None  # `Maxima` of a traced step, which returns them with its logs
        self._variables = []  # of the recorded gradients, in their order
        self._has_gradient = []
        self._logs = {}  # specs by name

    @property
    def replicas(self):
        """Number of replicas of all processes."""
        return self.model.distribute_strategy.num_replicas_in_sync

    @property
    def local_replicas(self):
        """Number of replicas of this process, which are counted from 0 here."""
        return len(distribution.devices(self.model.distribute_strategy))

    def evaluation(self, index):
        """A function of the replica's data: `test_step` -> logs."""

        def evaluation(data):
            with self._on(index):
                if self.replicas == 1:
                    return logs_of.flatten(self.model.test_step(data))
                metrics = self._metric_variables()
                before = _values(metrics)
                logs = logs_of.flatten(self.model.test_step(_filled(data)))
                of_metrics = logs_of.of_metrics(self.model, logs)
                # Of the last examples a replica may get none.
                _assign(metrics, _select(_count(data) > 0, _values(metrics), before))
                return logs_of.with_metrics(self.model, logs, of_metrics)

        return evaluation

    def whole(self, data):
        """The step of an only replica: the model's own, and the way back from a skipped one."""
        with self._on(0):
            state = self._statistics() + self._metric_variables()
            before, skipped = _values(state), self._skipped_steps()
            scales = self._scales()
            watches, logs = self._watched_step(data)
            measured = self._measured(watches, scales)
            if skipped is None:
                return logs | measured
            of_metrics = logs_of.of_metrics(self.model, logs)
            good = tf.equal(skipped, self._skipped_steps())
            _assign(state, _select(good, _values(state), before))
            return logs_of.with_metrics(self.model, logs, of_metrics) | measured

    def forward_backward(self, index, native=False, in_one=True):
        """A function of the replica's data that changes nothing for good.

        It returns vectors to be summed over the replicas, values that this replica is to keep, and
        what a traced step has measured. The vectors have the gradients of the scaled loss, the
        changes of statistics, both weighted by the number of examples, that number, and the logs,
        as they are and as they are if the step is skipped. (The number, and not a share that the
        host has worked out: for a scalar from the host a GPU step would have to wait until the
        former one has ended. The logs, since the host would wait for a mean over devices at the
        end of each step.)

        Args:
            index: Position of the replica in this process.
            native: Run in the strategy's own replica context, where layers can talk to the other
                replicas. What they say to each other has to be weighted in the loss.
            in_one: Whether it is to be one vector.
        """

        def forward_backward(data):
            count = tf.cast(_count(data), self._dtype())
            share = _share(count) if native else 1.0
            with contextlib.nullcontext() if native else self._on(index):
                statistics, metrics = self._statistics(), self._metric_variables()
                before, metrics_before = _values(statistics), _values(metrics)
                seeds = [v for v in statistics if v.name == "seed_generator_state"]
                position = distribution.first_replica(self.model.distribute_strategy) + index
                _shift(seeds, position)
                # Inside a strategy Keras divides the loss by the number of replicas.
                weight = share * self.replicas if native else 1.0
                several = self.replicas > 1
                data = data if native or not several else _filled(data)
                gradients, logs, measured = self._gradients(data, weight)
                of_metrics = logs_of.of_metrics(self.model, logs)
                _shift(seeds, -position)
                after = _values(statistics)
                changes = [
                    (new - old) * tf.cast(share, old.dtype)
                    for old, new in zip(before, after, strict=True)
                    if old.dtype.is_floating
                ]
                parts = [*self._flat(changes), *gradients]
                kept = [x for x in after if not x.dtype.is_floating]
                metrics_after = _select(count > 0, _values(metrics), metrics_before)
                _assign(metrics, metrics_after)
                done = logs_of.with_metrics(self.model, logs, of_metrics)
                _assign(statistics + metrics, before + metrics_before)
                undone = logs_of.with_metrics(self.model, logs, of_metrics)
                weights = tf.ones_like(count) / self.replicas
                if several and not native:
                    parts, weights = [_weighed(count, x) for x in parts], count
                done, self._logs = logs_of.pack(done, self._dtype())
                undone, _ = logs_of.pack(undone, self._dtype())
                rest = [tf.reshape(weights, [1]), done, undone]
                if several and not in_one:
                    zero = self._unknown_zero()
                    parts, rest = ([x + zero for x in some] for some in (parts, rest))
                return vectors.join(parts, rest, in_one), kept + metrics_after, measured

        return forward_backward

    def commit(self, index):
        """A function of the vectors of `forward_backward`, summed, and what to keep: updates."""

        def commit(summed, kept):
            with self._on(index):
                size = logs_of.size(self._logs)
                _, weights, done, undone = tf.split(summed[-1], [-1, 1, size, size])
                statistics, metrics = self._statistics(), self._metric_variables()
                floating = [v for v in statistics if tf.as_dtype(v.dtype).is_floating]
                rest = [v for v in statistics if not tf.as_dtype(v.dtype).is_floating]
                means = summed if self.replicas == 1 else [x / weights for x in summed]
                means = vectors.split(means, floating + self._variables)
                count = len(floating)
                gradients = [
                    g if has else None
                    for g, has in zip(means[count:], self._has_gradient, strict=True)
                ]
                skipped = self._skipped_steps()
                measured = {}
                if self.maxima:
                    applied = gradients, self._variables, loss_scale.scale(self.model.optimizer)
                    measured = {GRADIENTS: self.maxima.gradients([applied])}
                self.model.optimizer.apply(gradients, self._variables)
                state = floating + rest + metrics
                before = _values(state)
                after = [a + b for a, b in zip(before, means[:count], strict=False)] + kept
                if skipped is None:
                    _assign(state, after)
                    return logs_of.unpack(done / self.replicas, self._logs) | measured
                good = tf.equal(skipped, self._skipped_steps())
                _assign(state, _select(good, after, before))
                chosen = tf.where(good, done, undone) / self.replicas
                return logs_of.unpack(chosen, self._logs) | measured

        return commit

    # --- gradients

    def _watched_step(self, data, weight=None):
        """Runs `train_step`; with a weight it records gradients instead of applying them."""
        with contextlib.ExitStack() as stack:
            optimizers = loss_scale.optimizers_of(self.model)
            watches = [stack.enter_context(Watch(x, weight)) for x in optimizers]
            stack.enter_context(
                changed_layers(
                    self.model,
                    jit_compile=self.jit_compile,
                    fused=self.fused_layers,
                    remat=self.remat,
                )
            )
            if self.maxima:  # around what the others change
                stack.enter_context(self.maxima.recording())
            logs = logs_of.flatten(self.model.train_step(data))
        for watch in watches:
            watch.check(self.model)
        return watches, logs

    def _gradients(self, data, weight):
        """Gradients of the scaled loss times `weight`, flat, as a list; logs; what was measured."""
        if self.microbatches == 1:
            gradients, logs = self._recorded_step(data, weight)
            return gradients, logs, self._activations()
        parts = keras.tree.map_structure(self._split, data)
        weight /= self.microbatches

        def add(index, total, most):
            part = keras.tree.map_structure(lambda x: x if x is None else x[index], parts)
            total += tf.concat(self._recorded_step(part, weight)[0], 0)
            return index + 1, total, tf.nest.map_structure(tf.maximum, most, self._activations())

        size = sum(math.prod(v.shape) for v in self.model.trainable_variables)
        none = {ACTIVATIONS: tf.fill([len(self.maxima.layers)], UNSEEN)} if self.maxima else {}
        _, total, most = tf.while_loop(
            lambda index, *_: index < self.microbatches,
            add,
            (0, tf.zeros([size], self._dtype()), none),
            maximum_iterations=self.microbatches,
            parallel_iterations=1,
        )
        return tf.split(total, [math.prod(v.shape) for v in self._variables]), {}, most

    def _split(self, x):
        if x is None:
            return x
        with tf.name_scope("split_into_microbatches"):
            x = tf.convert_to_tensor(x)
            size = tf.shape(x)[0] // self.microbatches
            static = x.shape[0] and x.shape[0] // self.microbatches
            parts = tf.reshape(x, [self.microbatches, size, *x.shape[1:]])
            return tf.ensure_shape(parts, [self.microbatches, static, *x.shape[1:]])

    def _recorded_step(self, data, weight):
        watches, logs = self._watched_step(data, weight)
        _refuse_sums(self.model)
        (watch, *_), model = watches, self.model
        times = sum(len(x.applied) for x in watches)
        if times != 1 or not watch.applied:
            raise UserError(
                "Expected a train_step that applies gradients once, by self.optimizer: all that "
                "accelerate can run with several replicas or microbatches. "
                f"{type(model).__name__}.train_step does so {times} times. Train it on one "
                "replica with microbatches=1."
            )
        ((gradients, self._variables),) = watch.applied
        self._has_gradient = [g is not None for g in gradients]
        if not any(self._has_gradient):
            raise UserError("No gradients: no trainable weight has a part in the loss.")
        # TensorFlow may not know a gradient's shape where it doesn't know the number of examples.
        dense = [
            tf.zeros(v.shape, v.dtype)
            if g is None
            else tf.ensure_shape(tf.convert_to_tensor(g), v.shape)
            for g, v in zip(gradients, self._variables, strict=True)
        ]
        flat = self._flat(dense)
        return flat if watch.scaled else [x * tf.cast(weight, x.dtype) for x in flat], logs

    # --- what a traced step measures

    def _activations(self):
        return {ACTIVATIONS: self.maxima.activations()} if self.maxima else {}

    def _scales(self):
        """The optimizers' loss scales, where they are to be known."""
        optimizers = loss_scale.optimizers_of(self.model) if self.maxima else ()
        return [tf.convert_to_tensor(loss_scale.scale(x)) for x in optimizers]

    def _measured(self, watches, scales):
        if not self.maxima:
            return {}
        applied = [
            (gradients, variables, scale)
            for watch, scale in zip(watches, scales, strict=True)
            for gradients, variables in watch.applied
        ]
        return self._activations() | {GRADIENTS: self.maxima.gradients(applied)}

    # --- vectors

    def _flat(self, tensors):
        return [tf.reshape(tf.cast(x, self._dtype()), [-1]) for x in tensors]

    def _unknown_zero(self):
        """A scalar 0, of which XLA doesn't know that it is.

        XLA takes what it knows for the same in all replicas, and doesn't add it up: the gradients
        of a weight that has none, or of no example; and other replicas would wait for this one.
        """
        steps = loss_scale.steps(loss_scale.optimizers_of(self.model)[0])
        return tf.cast(tf.minimum(steps, 0), self._dtype())

    def _dtype(self):
        """Type of the vectors that are summed over the replicas."""
        wide = any(v.dtype == "float64" for v in self.model.variables)
        return tf.float64 if wide else tf.float32

    # --- state

    def _on(self, index):
        """The context of a replica, for all variables and optimizers of the model."""
        optimizers = loss_scale.optimizers_of(self.model)
        optimizers += [x.inner_optimizer for x in optimizers if loss_scale.inner(x) is not x]
        variables = [*self.model.variables, *self._metric_variables()]
        variables += [v for x in optimizers for v in x.variables]
        unique = {id(v): v for v in variables}.values()
        return distribution.on_replica(self.model.distribute_strategy, index, unique, optimizers)

    def _skipped_steps(self):
        """Steps skipped so far by any optimizer; None where none of them skips."""
        scaled = loss_scale.scaled_optimizers_of(self.model)
        return tf.add_n([loss_scale.skipped_steps(x) for x in scaled]) if scaled else None

    @contextlib.contextmanager
    def on_copies(self, index, state):
        """The context of a replica whose variables stand for copies, as for one more look.

        Args:
            index: Position of the replica.
            state: List of (Keras variable, value of its copy).
        """
        with self._on(index):
            state = [*state, *((v, v.value) for v in self._metric_variables())]
            former = [(v, v._value) for v, _ in state]
            for variable, value in state:
                variable._value = tf.Variable(value, trainable=variable.trainable)
            seeds = [v for v in self._statistics() if v.name == "seed_generator_state"]
            _shift(seeds, index)
            try:
                yield
            finally:
                for variable, value in former:
                    variable._value = value

    def parts(self, data):
        """The microbatches of a replica's data, one after the other; none where it is empty."""
        if not int(_count(data)):
            return
        parts = keras.tree.map_structure(self._split, data)
        for index in range(self.microbatches):
            yield keras.tree.map_structure(lambda x, i=index: x if x is None else x[i], parts)

    def _statistics(self):
        """What a forward pass changes, BatchNorm's statistics and seeds, without frozen weights."""
        frozen = {id(v) for x in self.model._flatten_layers() for v in x._trainable_variables}
        return [v for v in self.model.non_trainable_variables if id(v) not in frozen]

    def _metric_variables(self):
        return [v for metric in self.model.metrics for v in metric.variables]


@contextlib.contextmanager
def changed_layers(model, *, jit_compile, fused, remat):
    """A context in which a model's layers compute as training asks for; see the modules."""
    with contextlib.ExitStack() as stack:
        if fused:
            stack.enter_context(fused_layers(model))
            stack.enter_context(cudnn_attention())
            stack.enter_context(closed_gelu())
            stack.enter_context(closed_cross_entropy())
        elif jit_compile:
            stack.enter_context(deterministic_pooling(model))
        if remat:
            stack.enter_context(recomputing(model))
        yield


def _values(variables):
    return [tf.convert_to_tensor(v.value) for v in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _select(condition, ifs, elses):
    return [tf.where(condition, a, b) for a, b in zip(ifs, elses, strict=True)]


def _shift(seeds, index):
    """Moves the seeds to those of a replica, or back."""
    for seed in seeds if index else ():
        offset = tf.constant(np.array([index * SEED_STRIDE, 0]), tf.int64)
        seed.assign(seed.value + tf.cast(offset, seed.value.dtype))


def _share(count):
    """This replica's share of the examples of all, in a strategy's replica context."""
    some = tf.debugging.assert_positive(count, message=EMPTY_PART)
    with tf.control_dependencies([some]):
        count = tf.identity(count)
    context = tf.distribute.get_replica_context()
    return tf.cast(count / context.all_reduce(tf.distribute.ReduceOp.SUM, count), tf.float32)


def _weighed(count, x):
    """X times the number of examples; of none, x may be anything."""
    return tf.where(count > 0, x * count, tf.zeros_like(x))


def _count(data):
    """Number of examples: scalar int32, known to XLA when it compiles."""
    return tf.shape(next(x for x in keras.tree.flatten(data) if x is not None))[0]


def _refuse_sums(model):
    """Refuses a loss of `compile` that is no mean: of parts of a batch means are taken alone."""
    losses = getattr(getattr(model, "_compile_loss", None), "_flat_losses", None) or ()
    for _, loss, _, name in losses:
        reduction = getattr(loss, "reduction", "mean")
        if reduction in ("sum", "none", None):
            raise UserError(
                "Expected losses that are means over the batch, where several replicas or "
                f"microbatches have parts of it. Received: {name} with reduction={reduction!r}. "
                "Take reduction='sum_over_batch_size', and the learning rate times the batch size."
            )


def _filled(data):
    """The data, or one example of zeros where there is none: not every operation takes none."""
    missing = tf.maximum(1 - _count(data), 0)

    def filled(x):
        if x is None or not x.shape.rank or x.shape[0] is not None:
            return x
        if isinstance(x, tf.SparseTensor):
            rows = x.dense_shape[:1] + tf.cast(missing, tf.int64)
            shape = tf.concat([rows, x.dense_shape[1:]], 0)
            return tf.SparseTensor(x.indices, x.values, shape)
        if isinstance(x, tf.RaggedTensor):
            lengths = tf.pad(x.row_lengths(), [[0, missing]])
            return tf.RaggedTensor.from_row_lengths(x.values, lengths, validate=False)
        return tf.pad(x, [[0, missing], *[[0, 0]] * (x.shape.rank - 1)])

    return keras.tree.map_structure(filled, data)
