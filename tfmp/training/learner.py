"""A model with its training step: what a recipe trains."""

from typing import ClassVar, Literal

import keras
import tensorflow as tf

from tfmp import distribution, loss_scale
from tfmp.errors import UserError
from tfmp.models import flops
from tfmp.training import tpu
from tfmp.training.accelerate import accelerate


class Learner(keras.Model):
    """A model together with what its training step does around it.

    What is learned is said by a subclass: `prepare`, `targets`, `make_loss`, `make_metrics`, and
    which metric tells the best epoch. Everything random in its step takes `draw_seed`.

    Args:
        model: Built Keras model with float32 outputs. It is trained in place and saved on its own.
        seed: Seed of what the step draws.
        name: Name of the learner.

    Attributes:
        monitor: Name of the metric, or derived figure, that early stopping and the best epoch go
            by.
        monitor_mode: Whether the best of it is its largest or its smallest value.
        falls: Whether the loss of a batch falls where training repeats it.
    """

    monitor: ClassVar[str] = "loss"
    monitor_mode: ClassVar[Literal["max", "min"]] = "min"
    falls: ClassVar[bool] = True

    def __init__(self, model, *, seed=0, name="learner"):
        # Or Keras would cast the features to the policy's dtype on their way to the model.
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.seed = seed
        self.built = True

    @property
    def step(self):
        """Training steps so far, skipped ones too: a scalar int64 tensor."""
        return loss_scale.steps(self.optimizer)

    def call(self, features, training=False):
        """What the model makes of a batch of features."""
        return self.model(features, training=training)

    def draw_seed(self):
        """Int64 [2] for TensorFlow's stateless random functions: of the seed, step and replica."""
        word = self.seed + distribution.replica_index() * 2**32
        return tf.stack([tf.cast(word, tf.int64), self.step])

    def prepare(self, features, labels):
        """What the model and the loss get of a replica's batch in a training step.

        It is compiled with the step.

        Args:
            features: Tensor [batch, ...] or a dict of them, as `Data.train` gives it.
            labels: Tensor [batch, ...].

        Returns:
            (features, targets).
        """
        return features, self.targets(labels)

    def targets(self, labels):
        """What loss and metrics compare the model's outputs with."""
        return labels

    def inputs(self, features):
        """What the model itself takes for a batch of features; by default these."""
        return features

    def target_spec(self):
        """`keras.KerasTensor` of `targets`; by default integers, one for each vector of logits."""
        return keras.KerasTensor(self.model.output_shape[:-1], "int64")

    def make_loss(self):
        """The Keras loss, a weighted mean; by default the cross entropy of integer labels.

        Of outputs [batch, ..., n] it has a value for each [batch, ...], as Keras' own: weights of
        padding have that shape. None where the step is the learner's own.
        """
        return keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )

    def make_plain_loss(self):
        """As `make_loss`, of labels as the data have them: `tfmp.load` compiles the model by it."""
        return self.make_loss()

    def make_metrics(self):
        """List of Keras metrics, new ones each time; by default none but the loss."""
        return []

    def derived(self, means):
        """Figures that follow from an epoch's means: a dict that goes to its logs, too.

        Args:
            means: Dict of floats, of "loss" and the metrics by name.
        """
        return {}

    def multiply_adds(self):
        """Multiply-adds for an example in a third of a training step, as in a forward pass."""
        return flops.multiply_adds(self.model)

    def train_step(self, data):
        """One update; returns the running means of the metrics since the epoch's begin."""
        return super().train_step(self.prepare(*data))

    def test_step(self, data):
        """Running means over the evaluated examples; padding has the weight 0."""
        features, labels, weights = data
        targets = self.targets(labels)
        outputs = self(features, training=False)
        # Of each vector of outputs, such as a pixel's logits: for Keras' losses and metrics the
        # last axis is one value's, whether the targets are integers or have that axis, too.
        weights = tf.reshape(weights, [-1] + [1] * (len(outputs.shape) - 2))
        weights = tf.broadcast_to(weights, tf.shape(outputs)[:-1])
        loss = self.compute_loss(features, targets, outputs, weights, training=False)
        loss *= tf.distribute.get_strategy().num_replicas_in_sync  # by which Keras divides it
        # Keras' own step would weight the loss by the padded size of the batch.
        self._loss_tracker.update_state(loss, sample_weight=tf.reduce_sum(weights))
        return self.compute_metrics(features, targets, outputs, weights)


def compile_learner(
    learner,
    optimizer,
    *,
    jit_compile,
    fused_layers=None,
    steps_per_execution=1,
    microbatches=1,
    remat=False,
):
    """Compiles a `Learner` with its own loss and metrics.

    Call it in the scope of the strategy that the learner was made in.

    Args:
        learner: A `Learner`.
        optimizer: A `tfmp.LossScaleOptimizer`.
        jit_compile: Whether XLA compiles the steps.
        fused_layers: Whether layers train fused; see `accelerate`.
        steps_per_execution: Steps that one call from the host runs.
        microbatches: Parts in which each replica computes its batch.
        remat: Whether activations are computed once more instead of kept; see `accelerate`.

    Raises:
        UserError: The learner's loss is no weighted mean, or of another shape than weights, or
            there is no metric of the name that it goes by.
    """
    loss, metrics = learner.make_loss(), learner.make_metrics()
    _check(learner, loss, metrics)
    on_tpu = distribution.is_tpu(learner.distribute_strategy)
    if on_tpu:
        optimizer = loss_scale.inner(optimizer)
    learner.compile(
        optimizer=optimizer,
        loss=loss,
        weighted_metrics=metrics,
        jit_compile=False,  # Keras' own functions are replaced
        steps_per_execution=steps_per_execution,
        auto_scale_loss=False,
    )
    if on_tpu:
        tpu.accelerate(learner)
    else:
        accelerate(
            learner,
            jit_compile=jit_compile,
            fused_layers=fused_layers,
            microbatches=microbatches,
            remat=remat,
        )
    optimizer.build(learner.model.trainable_variables)
    # Keras would build these on what the data holds, before `prepare`.
    targets, outputs = learner.target_spec(), keras.KerasTensor(learner.model.output_shape)
    for part in (learner._compile_metrics, learner._compile_loss):
        if part is not None:
            part.build(targets, outputs)


def _check(learner, loss, metrics):
    if loss is None:
        return
    if loss.reduction != "mean_with_sample_weight":
        raise UserError(
            "Expected a loss with reduction='mean_with_sample_weight': in any other mean the "
            f"padding of a last batch counts. Received: {type(loss).__name__} with "
            f"reduction={loss.reduction!r}."
        )
    names = ["loss", *(metric.name for metric in metrics)]
    names += learner.derived(dict.fromkeys(names, 1.0))
    if learner.monitor not in names:
        raise UserError(
            f"Expected {type(learner).__name__}.monitor out of {', '.join(names)}. Received: "
            f"{learner.monitor}."
        )
    shape, outputs = _loss_shape(learner, loss), learner.model.output_shape
    if not tf.TensorShape(outputs[:-1]).is_compatible_with(shape):
        raise UserError(
            f"Expected a loss for each of the outputs' vectors, {_dims(outputs[:-1])} of "
            f"{_dims(outputs)}, as weights of padding are. Received: {_dims(shape)} of "
            f"{type(loss).__name__}."
        )


def _loss_shape(learner, loss):
    """Shape of the losses, before their mean is taken."""
    compared = learner.target_spec(), keras.KerasTensor(learner.model.output_shape)
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in compared]
    return tf.function(loss.call).get_concrete_function(*specs).structured_outputs.shape


def _dims(shape):
    return f"[{', '.join('batch' if x is None else str(x) for x in shape)}]"
