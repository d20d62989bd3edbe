"""What recipes of segmentation share: the training step, its loss and its metrics.

Metrics are of the confusion matrix of all pixels, summed over batches and, since Keras adds up
what the replicas keep, over replicas before the ratios are taken: what an epoch or an evaluation
logs is the same for any number of replicas and any size of the batch. (Only what a progress bar
shows within an epoch is the mean of the replicas' own ratios.)
"""

import keras
import tensorflow as tf

from tfmp.data import augment
from tfmp.training.learner import Learner


class Segmenter(Learner):
    """A model that gives each pixel its class: augmentation of images and masks alike, and loss.

    Metrics are the accuracy of pixels, and means over the classes of the intersection over the
    union and of Dice's coefficient.

    Args:
        model: Keras model, images [batch, height, width, channels] of 0-255 -> logits [batch,
            height, width, classes] float32. It is trained in place and saved on its own.
        augmentation: Function of (images float32, seed int64 [2]) -> images that only moves pixels,
            one of `tfmp.data.augment.OF_MASKS`.
        seed: Seed of the random augmentation, which is a function of it, the step and the replica.
        dice: Weight of the Dice loss beside the cross entropy; 0: cross entropy alone.
    """

    monitor = "mean_iou"
    monitor_mode = "max"

    def __init__(self, model, augmentation, *, seed=0, dice=0.0):
        super().__init__(model, seed=seed, name="segmenter")
        self.augmentation = augmentation
        self.dice = dice
        self.classes = model.output_shape[-1]

    def prepare(self, images, masks):
        """Augmented float32 images and masks of a replica's batch.

        Args:
            images: [batch, height, width, channels] uint8.
            masks: [batch, height, width] integers; what is below 0 is of no class.

        Returns:
            (images [batch, height, width, channels] float32, masks [batch, height, width]).
        """
        images = tf.cast(images, tf.float32)
        return augment.with_masks(self.augmentation, images, masks, self.draw_seed())

    def make_loss(self):
        """Cross entropy of each pixel, and the Dice loss."""
        return PixelLoss(self.dice)

    def make_metrics(self):
        """Accuracy, mean intersection over union and mean Dice coefficient."""
        return [
            PixelAccuracy(name="accuracy"),
            MeanIoU(self.classes),
            MeanDice(self.classes),
        ]


@keras.saving.register_keras_serializable(package="tfmp")
class PixelLoss(keras.losses.Loss):
    """Cross entropy of each pixel plus `dice` times the Dice loss of its image, in float32.

    The Dice loss is one less the mean over the classes of each image's soft coefficient. (Of a
    whole batch it would depend on how the batch is parted among replicas.) A class that an image
    doesn't have counts as found where the model doesn't see it either. Pixels below 0 are of no
    class and don't count: an image's cross entropy is the mean of its others.

    Args:
        dice: Weight of the Dice loss.

    References:
        Milletari et al. 2016, V-Net, arXiv:1606.04797, section 3 (there with squares in the
            denominator).
    """

    # Added above and below the line, in pixels, so that nothing is divided by zero.
    SMOOTH = 1.0

    def __init__(self, dice=0.0):
        # Float32 whatever the global policy: sums over an image pass the largest float16.
        super().__init__("pixel_loss", reduction="mean_with_sample_weight", dtype="float32")
        self.dice = dice

    def call(self, masks, logits):
        """Losses [batch, height, width] of masks [batch, height, width] and their logits."""
        masks = tf.cast(masks, tf.int32)
        known = tf.cast(masks >= 0, logits.dtype)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(masks, 0), logits)
        share = tf.reduce_mean(known, [1, 2], keepdims=True)
        losses = tf.math.divide_no_nan(losses * known, share)
        if not self.dice:
            return losses
        shares = tf.nn.softmax(logits) * known[..., None]
        truth = tf.one_hot(masks, logits.shape[-1], dtype=shares.dtype)
        common, sizes = (tf.reduce_sum(x, [1, 2]) for x in (shares * truth, shares + truth))
        found = (2 * common + self.SMOOTH) / (sizes + self.SMOOTH)
        missed = 1 - tf.reduce_mean(found, axis=-1)
        return losses + self.dice * missed[:, None, None]

    def get_config(self):
        """What the loss is made of."""
        return {"dice": self.dice}


class PixelAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """Share of the pixels of a class, those of 0 and above, whose class is found."""

    def update_state(self, masks, logits, sample_weight=None):
        """Adds masks [batch, height, width] and their logits, with weights of the same shape."""
        known = tf.cast(masks >= 0, tf.float32)
        if sample_weight is not None:
            known *= tf.cast(sample_weight, tf.float32)
        super().update_state(masks, logits, known)


class _OfConfusion(keras.metrics.Metric):
    """A mean over classes, of the confusion matrix of all pixels since the last reset.

    Args:
        classes: Number of classes.
        name: Name of the metric.
    """

    def __init__(self, classes, name):
        super().__init__(name=name, dtype="float32")
        self.classes = classes
        # Counts are exact up to 2**24 pixels, and beyond it to a relative 1e-7 for each batch.
        self.confusion = self.add_variable((classes, classes), "zeros", name="confusion")

    def update_state(self, masks, logits, sample_weight=None):
        """Adds masks [batch, height, width] and their logits, with weights of the same shape."""
        # Ones and zeros, whose products any precision of matrix products has exact. What is of no
        # class has zeros alone.
        truth = tf.one_hot(tf.reshape(masks, [-1]), self.classes)
        found = tf.one_hot(tf.reshape(tf.argmax(logits, -1), [-1]), self.classes)
        if sample_weight is not None:
            truth *= tf.reshape(tf.cast(sample_weight, tf.float32), [-1, 1])
        self.confusion.assign_add(tf.matmul(truth, found, transpose_a=True))

    def result(self):
        """The mean over classes that occur, in the masks or in what was predicted."""
        confusion = tf.convert_to_tensor(self.confusion)
        common = tf.linalg.diag_part(confusion)
        sizes = tf.reduce_sum(confusion, 0) + tf.reduce_sum(confusion, 1)
        occurs = tf.cast(sizes > 0, tf.float32)
        ratios = tf.math.divide_no_nan(*self.ratio(common, sizes))
        return tf.math.divide_no_nan(tf.reduce_sum(ratios), tf.reduce_sum(occurs))


class MeanIoU(_OfConfusion):
    """Mean over classes of pixels in both over pixels in either, of the masks and predictions.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes):
        super().__init__(classes, "mean_iou")

    def ratio(self, common, sizes):
        """(numerator, denominator) of each class."""
        return common, sizes - common


class MeanDice(_OfConfusion):
    """Mean over classes of twice the pixels in both over the sum of the pixels of each.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes):
        super().__init__(classes, "mean_dice")

    def ratio(self, common, sizes):
        """(numerator, denominator) of each class."""
        return 2 * common, sizes
