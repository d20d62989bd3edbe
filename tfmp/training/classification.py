"""What the recipes of image classifiers share: settings, training step, and preparation."""

import dataclasses
import functools

import keras
import tensorflow as tf

from tfmp import cli, models
from tfmp.data import augment, load
from tfmp.training import recipe
from tfmp.training.config import TrainingConfig
from tfmp.training.learner import Learner


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(TrainingConfig):
    """Settings of every image classifier; a recipe's `Config` adds its model's."""

    image_size: int | None = cli.flag(
        None, "Height and width of the images in pixels; none: the data's own.", group="Data"
    )
    augmentation: str = cli.flag(
        "auto",
        "Random changes of the training images; auto: what suits the data.",
        group="Data",
        choices=["auto", *augment.AUGMENTATIONS],
    )
    mixup: float = cli.flag(
        0.0, "Alpha of the mixup's Beta distribution; 0: none.", group="Training"
    )
    label_smoothing: float = cli.flag(
        0.1, "Share of each label spread over all classes; 0 to 1.", group="Training"
    )

    def __post_init__(self):
        """Checks the ranges that the types don't hold."""
        super().__post_init__()
        self.check("image_size", lambda value: value > 0, "above 0")
        self.check("mixup", lambda value: value >= 0, "0 or more")
        self.check("label_smoothing", lambda value: 0 <= value < 1, "from 0 to below 1")


class Classifier(Learner):
    """An image classifier: augmentation, soft labels, cross entropy.

    The step augments the images and mixes the labels in float32 before the model, inside the
    function that XLA compiles. Metrics are accuracy and, above 10 classes, top-5 accuracy.

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

    monitor = "accuracy"
    monitor_mode = "max"

    def __init__(self, model, augmentation, *, seed=0, label_smoothing=0.0, mixup=0.0):
        super().__init__(model, seed=seed, name="classifier")
        self.augmentation = augmentation
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.classes = model.output_shape[-1]

    def prepare(self, images, labels):
        """Augmented float32 images and soft labels of a replica's batch.

        Args:
            images: [batch, height, width, channels] uint8.
            labels: [batch] int32.

        Returns:
            (images [batch, height, width, channels] float32, labels [batch, classes] float32).
        """
        seed = self.draw_seed()
        images = self.augmentation(tf.cast(images, tf.float32), seed)
        labels = self.targets(labels)
        if self.label_smoothing:
            labels = augment.label_smoothing(labels, self.label_smoothing)
        if self.mixup:
            images, labels = augment.mixup(images, labels, seed + 1, self.mixup)
        return images, labels

    def targets(self, labels):
        """One-hot labels [batch, classes] float32."""
        return tf.one_hot(labels, self.classes, dtype=tf.float32)

    def target_spec(self):
        """`keras.KerasTensor` of `targets`."""
        return keras.KerasTensor((None, self.classes))

    def make_loss(self):
        """Cross entropy of soft labels."""
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )

    def make_plain_loss(self):
        """Cross entropy of integer labels."""
        return super().make_loss()

    def make_metrics(self):
        """Accuracy and, above 10 classes, top-5 accuracy."""
        metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
        if self.classes > 10:
            metrics.append(keras.metrics.TopKCategoricalAccuracy(k=5, name="top5_accuracy"))
        return metrics


def load_images(config):
    """The `tfmp.data.Data` of a config with the settings of images."""
    return load(
        config.dataset,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
        validation_fraction=config.validation_fraction,
        image_size=config.image_size,
    )


def make_learner(config, model, data):
    """A `Classifier` of a model, not compiled.

    Args:
        config: A `ClassifierConfig`.
        model: Built Keras model.
        data: A `tfmp.data.Data`.
    """
    augmentation = data.augmentation if config.augmentation == "auto" else config.augmentation
    return Classifier(
        model,
        augment.AUGMENTATIONS[augmentation],
        seed=config.seed,
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
    )


def prepare(name, config, build, load_weights=models.load_weights):
    """All that comes before the first step.

    Args:
        name: The recipe's name.
        config: A `ClassifierConfig`.
        build: `build(classes=..., input_shape=...)` returns a built model of the global policy.
        load_weights: `load_weights(model, file)` loads `config.weights`.

    Returns:
        What `tfmp.training.recipe.prepare` does.

    Raises:
        UserError: A setting that can't be met; the message says what to do.
    """
    return recipe.prepare(
        name,
        config,
        load=functools.partial(load_images, config),
        build=lambda data: build(classes=len(data.class_names), input_shape=data.input_shape),
        learn=functools.partial(make_learner, config),
        load_weights=load_weights,
    )
