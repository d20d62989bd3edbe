"""The training step of an image classifier: augmentation, soft labels, and what it counts."""

import keras
import tensorflow as tf

from tfmp import loss_scale
from tfmp.data import augment


class Classifier(keras.Model):
    """A model together with what its training step does around it.

    The step augments the images and mixes the labels in float32 before the model, inside the
    function that XLA compiles. It counts on the device, without a sync to the host:

    - `step`: training steps run so far. Random augmentation is a function of `seed` and `step`.
    - `skipped_steps`: steps whose update the loss scale skipped.
    - `bad_steps`: consecutive last steps that were skipped or had a non-finite loss.
    - `first_bad_step`: the step at which those began.

    Args:
        model: Keras model, images [batch, height, width, channels] of 0-255 -> logits
            [batch, classes] float32. It is trained in place and saved on its own.
        augmentation: Function of (images float32, seed int64 [2]) -> images.
        seed: Seed of the random augmentation.
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
        # int64: TensorFlow keeps int32 variables on the host, where XLA on a GPU can't reach them.
        for name in ("step", "skipped_steps", "bad_steps", "first_bad_step"):
            counter = self.add_weight(
                shape=(), dtype="int64", initializer="zeros", trainable=False, name=name
            )
            setattr(self, name, counter)
        self.built = True

    # Keras' own setter refuses XLA under op determinism, for layers whose XLA kernels might not
    # be deterministic; TensorFlow itself raises at such an operation.
    @property
    def jit_compile(self):
        """Whether the compiled functions are XLA programs."""
        return self._xla

    @jit_compile.setter
    def jit_compile(self, value):
        self._xla = value

    def call(self, images, training=False):
        """Logits [batch, classes] float32 of images [batch, height, width, channels]."""
        return self.model(images, training=training)

    def prepare(self, images, labels):
        """Augmented float32 images and soft labels of a batch.

        Args:
            images: [batch, height, width, channels] uint8.
            labels: [batch] int32.

        Returns:
            (images [batch, height, width, channels] float32, labels [batch, classes] float32).
        """
        seed = tf.stack([tf.constant(self.seed, tf.int64), self.step.value])
        images = self.augmentation(tf.cast(images, tf.float32), seed)
        labels = tf.one_hot(labels, self.classes, dtype=tf.float32)
        if self.label_smoothing:
            labels = augment.label_smoothing(labels, self.label_smoothing)
        if self.mixup:
            images, labels = augment.mixup(images, labels, seed + 1, self.mixup)
        return images, labels

    def train_step(self, data):
        """One update; returns the running means of the metrics since the epoch's begin."""
        images, labels = self.prepare(*data)
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            logits = self(images, training=True)
            loss = self.compute_loss(images, labels, logits)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        before = tf.identity(loss_scale.applied_steps(self.optimizer))
        self.optimizer.apply(gradients, variables)
        skipped = tf.equal(before, loss_scale.applied_steps(self.optimizer))
        self._count(skipped, loss)
        finite = tf.math.is_finite(loss)
        self._update_loss(tf.where(finite, loss, 0.0), tf.cast(finite, tf.float32))
        return self.compute_metrics(images, labels, logits)

    def test_step(self, data):
        """Running means over the evaluated images; padding has the weight 0."""
        images, labels, weights = data
        labels = tf.one_hot(labels, self.classes, dtype=tf.float32)
        logits = self(images, training=False)
        loss = self.compute_loss(images, labels, logits, weights, training=False)
        self._update_loss(loss, tf.reduce_sum(weights))
        return self.compute_metrics(images, labels, logits, weights)

    def _update_loss(self, loss, weight):
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=weight)

    def _count(self, skipped, loss):
        bad = skipped | ~tf.math.is_finite(loss)
        begins = bad & tf.equal(self.bad_steps.value, 0)
        self.first_bad_step.assign(tf.where(begins, self.step.value, self.first_bad_step.value))
        self.bad_steps.assign(tf.where(bad, self.bad_steps.value + 1, 0))
        self.skipped_steps.assign_add(tf.cast(skipped, tf.int64))
        self.step.assign_add(1)


def compile_classifier(classifier, optimizer, *, jit_compile, steps_per_execution=1):
    """Compiles a `Classifier` with cross entropy, accuracy and, above 10 classes, top-5 accuracy.

    Args:
        classifier: A `Classifier`.
        optimizer: Keras optimizer, with its loss scaling where that is needed.
        jit_compile: Whether XLA compiles the steps.
        steps_per_execution: Steps that one call from the host runs.
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
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
        auto_scale_loss=False,
    )
    optimizer.build(classifier.trainable_variables)
