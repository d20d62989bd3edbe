"""The training step of an image classifier: augmentation, soft labels, and what is measured."""

import keras
import tensorflow as tf

from tfmp import distribution, loss_scale
from tfmp.data import augment
from tfmp.training.accelerate import accelerate


class Classifier(keras.Model):
    """A model together with what its training step does around it.

    The step augments the images and mixes the labels in float32 before the model, inside the
    function that XLA compiles.

    Args:
        model: Keras model, images [batch, height, width, channels] of 0-255 -> logits
            [batch, classes] float32. It is trained in place and saved on its own.
        augmentation: Function of (images float32, seed int64 [2]) -> images.
        seed: Seed of the random augmentation, which is a function of it, the step and the replica.
        label_smoothing: Share of each label that is spread over all classes.
        mixup: Parameter alpha of the mixup's Beta distribution; 0: no mixup.

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
        Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7 (label
        smoothing).
    """

    def __init__(self, model, augmentation, *, seed=0, label_smoothing=0.0, mixup=0.0):
        super().__init__(name="classifier", dtype=model.dtype_policy)
        self.model = model
        self.augmentation = augmentation
        self.seed = seed
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.classes = model.output_shape[-1]
        self.built = True

    @property
    def step(self):
        """Training steps so far, skipped ones too: a scalar int64 tensor."""
        return loss_scale.steps(self.optimizer)

    def call(self, images, training=False):
        """Logits [batch, classes] float32 of images [batch, height, width, channels]."""
        return self.model(images, training=training)

    def prepare(self, images, labels):
        """Augmented float32 images and soft labels of a replica's batch.

        Args:
            images: [batch, height, width, channels] uint8.
            labels: [batch] int32.

        Returns:
            (images [batch, height, width, channels] float32, labels [batch, classes] float32).
        """
        word = self.seed + distribution.replica_index() * 2**32
        seed = tf.stack([tf.constant(word, tf.int64), self.step])
        images = self.augmentation(tf.cast(images, tf.float32), seed)
        labels = tf.one_hot(labels, self.classes, dtype=tf.float32)
        if self.label_smoothing:
            labels = augment.label_smoothing(labels, self.label_smoothing)
        if self.mixup:
            images, labels = augment.mixup(images, labels, seed + 1, self.mixup)
        return images, labels

    def train_step(self, data):
        """One update; returns the running means of the metrics since the epoch's begin."""
        return super().train_step(self.prepare(*data))

    def test_step(self, data):
        """Running means over the evaluated images; padding has the weight 0."""
        images, labels, weights = data
        labels = tf.one_hot(labels, self.classes, dtype=tf.float32)
        logits = self(images, training=False)
        loss = self.compute_loss(images, labels, logits, weights, training=False)
        # Keras' own step would weight the loss by the padded size of the batch.
        self._loss_tracker.update_state(loss, sample_weight=tf.reduce_sum(weights))
        return self.compute_metrics(images, labels, logits, weights)


def compile_classifier(
    classifier,
    optimizer,
    *,
    jit_compile,
    fused_layers=None,
    steps_per_execution=1,
    microbatches=1,
    remat=False,
):
    """Compiles a `Classifier` with cross entropy, accuracy and, above 10 classes, top-5 accuracy.

    Call it in the scope of the strategy that the classifier was made in.

    Args:
        classifier: A `Classifier`.
        optimizer: A `tfmp.LossScaleOptimizer`.
        jit_compile: Whether XLA compiles the steps.
        fused_layers: Whether layers train fused; see `accelerate`.
        steps_per_execution: Steps that one call from the host runs.
        microbatches: Parts in which each replica computes its batch.
        remat: Whether activations are computed once more instead of kept; see `accelerate`.
    """
    metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
    if classifier.classes > 10:
        metrics.append(keras.metrics.TopKCategoricalAccuracy(k=5, name="top5_accuracy"))
    classifier.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=metrics,
        jit_compile=False,  # Keras' own functions are replaced
        steps_per_execution=steps_per_execution,
        auto_scale_loss=False,
    )
    accelerate(
        classifier,
        jit_compile=jit_compile,
        fused_layers=fused_layers,
        microbatches=microbatches,
        remat=remat,
    )
    optimizer.build(classifier.trainable_variables)
    # Keras would build these on what the data holds, before `prepare`.
    soft = keras.KerasTensor((None, classifier.classes))
    for part in (classifier._compile_metrics, classifier._compile_loss):
        part.build(soft, soft)
