"""What a DCGAN learns: two networks against each other, each with an optimizer of its own."""

import keras
import tensorflow as tf
from keras import ops

from tfmp.models import flops
from tfmp.training.learner import Learner


class GanLearner(Learner):
    """A generator against a discriminator, and a fixed judge of what the generator makes.

    A step updates the discriminator on real images and generated ones, and then the generator
    against it. Either has its own optimizer with a loss scale, which overflows, skips and counts by
    itself: the other's update is made all the same. (Metrics and the statistics of
    BatchNormalization of such a step are left as they were, of both networks.) Noise is a function
    of the seed and the step.

    Evaluation generates as many images as there are real ones, always of the same noise:

    - `frechet`: squared Frechet distance of the judge's features of both.
    - `confidence`: mean of the judge's largest probability for generated images.
    - `classes`: how many classes they seem to have: the exponential of the entropy, in nats, of
      the judge's mean prediction. Of images that all look alike it is 1.
    - `judge_accuracy`: share of the real images whose class the judge finds. One that finds no
      more than chance says nothing by the three others either.

    Args:
        model: Generator, Keras model: [batch, latent] float32 -> images of 0-255, float32.
        discriminator: Keras model: images of 0-255 -> logits [batch, 1] float32.
        discriminator_optimizer: A `tfmp.LossScaleOptimizer`; the generator's is that of `compile`.
        judge: Frozen Keras model: images -> (features [batch, n], probabilities [batch, classes]).
        seed: Seed of the noise.

    References:
        Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, section 3 (with its loss of
        the generator that does not saturate).
        Radford et al., "Unsupervised Representation Learning with DCGANs", ICLR 2016.
    """

    monitor = "frechet"
    monitor_mode = "min"
    falls = False  # what one network gains, the other loses

    def __init__(self, model, discriminator, discriminator_optimizer, judge, *, seed=0):
        super().__init__(model, seed=seed, name="gan")
        self.latent = model.input_shape[-1]
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.discriminator_optimizer.name = "discriminator"
        self.judge = judge
        self.discriminator_loss = keras.metrics.Mean(name="discriminator_loss")
        features, probabilities = judge.output
        self.evaluated = [
            FrechetDistance(features.shape[-1]),
            keras.metrics.Mean(name="confidence"),
            EffectiveClasses(probabilities.shape[-1]),
            keras.metrics.SparseCategoricalAccuracy(name="judge_accuracy"),
        ]

    def compile(self, optimizer, **kwargs):
        """As Keras', and builds the discriminator's optimizer."""
        optimizer.name = "generator"
        super().compile(optimizer, **kwargs)
        self.discriminator_optimizer.build(self.discriminator.trainable_variables)

    def make_loss(self):
        """None: the step has its own."""
        return

    def inputs(self, features):
        """Noise for as many images."""
        return self.noise(tf.shape(features)[0], [self.seed, 0])

    def noise(self, count, seed):
        """What images are made of: [count, latent] float32, a function of the seed, int64 [2]."""
        drawn = tf.random.stateless_normal([count, self.latent], seed)
        return tf.ensure_shape(drawn, [None, self.latent])

    def multiply_adds(self):
        """Multiply-adds for an example in a third of a training step.

        The discriminator's update takes one pass of the generator and six of its own size (forward
        and twice as much backward, of real and of generated images), the generator's three of its
        own and two of the discriminator, which gets no gradients.
        """
        made, judged = map(flops.multiply_adds, (self.model, self.discriminator))
        return round((4 * made + 8 * judged) / 3)

    def train_step(self, data):
        """An update of each network; returns the running means of their losses."""
        images, _ = data
        seed = self.draw_seed()
        noise = self.noise(tf.shape(images)[0], seed)
        self._update_discriminator(images, self.model(noise, training=True))
        self._update_generator(self.noise(tf.shape(images)[0], seed + 2**31))
        return {m.name: m.result() for m in (self._loss_tracker, self.discriminator_loss)}

    def _update_discriminator(self, images, generated):
        optimizer, variables = (
            self.discriminator_optimizer,
            self.discriminator.trainable_variables,
        )
        with tf.GradientTape() as tape:
            real = self.discriminator(images, training=True)
            fake = self.discriminator(tf.stop_gradient(generated), training=True)
            loss = _cross_entropy(1.0, real) + _cross_entropy(0.0, fake)
            scaled = optimizer.scale_loss(loss)
        self.discriminator_loss.update_state(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)

    def _update_generator(self, noise):
        optimizer, variables = self.optimizer, self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.discriminator(self.model(noise, training=True), training=True)
            loss = _cross_entropy(1.0, logits)
            scaled = optimizer.scale_loss(loss)
        self._loss_tracker.update_state(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)

    def test_step(self, data):
        """Running figures over the evaluated examples; padding has the weight 0."""
        images, labels, weights = data
        distance, confidence, classes, accuracy = self.evaluated
        # Of another word than the seeds of training steps.
        place = tf.cast(distance.count, tf.int64)
        noise = self.noise(tf.shape(images)[0], tf.stack([-1 - self.seed, place]))
        features, found = self.judge(images)
        accuracy.update_state(labels, found, weights)
        generated, probabilities = self.judge(self.model(noise, training=False))
        distance.update_state(features, generated, weights)
        confidence.update_state(tf.reduce_max(probabilities, -1), weights)
        classes.update_state(probabilities, weights)
        return {metric.name: metric.result() for metric in self.evaluated}


def _cross_entropy(label, logits):
    """Mean cross entropy of logits that all have one label."""
    labels = tf.fill(tf.shape(logits), label)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


class FrechetDistance(keras.metrics.Metric):
    """`tfmp.metrics.frechet.frechet_distance` of two sets of features that come in batches.

    Args:
        size: Number of features.
        name: Name of the metric.
    """

    def __init__(self, size, name="frechet"):
        super().__init__(name=name)
        self.count = self.add_variable((), "zeros", name="count")
        self._sums = [self.add_variable((size,), "zeros", name=x) for x in ("sum", "other_sum")]
        self._products = [
            self.add_variable((size, size), "zeros", name=x) for x in ("products", "other_products")
        ]

    def update_state(self, features, others, sample_weight):
        """Adds a batch of both, [batch, size], with weights [batch]."""
        self.count.assign_add(ops.sum(sample_weight))
        for i, x in enumerate((features, others)):
            weighted = x * sample_weight[:, None]
            self._sums[i].assign_add(ops.sum(weighted, axis=0))
            self._products[i].assign_add(ops.matmul(ops.transpose(weighted), x))

    def result(self):
        """A scalar float32."""
        (mean, covariance), (mean2, covariance2) = map(self._moments, range(2))
        values, vectors = tf.linalg.eigh(covariance)
        root = ops.matmul(vectors * ops.sqrt(ops.maximum(values, 0.0)), ops.transpose(vectors))
        cross = tf.linalg.eigvalsh(ops.matmul(ops.matmul(root, covariance2), root))
        cross = ops.sum(ops.sqrt(ops.maximum(cross, 0.0)))
        trace = ops.trace(covariance) + ops.trace(covariance2) - 2 * cross
        return ops.sum(ops.square(mean - mean2)) + trace

    def _moments(self, i):
        count = ops.maximum(self.count, 1.0)
        mean = self._sums[i] / count
        return mean, self._products[i] / count - ops.outer(mean, mean)


class EffectiveClasses(keras.metrics.Metric):
    """The exponential of the entropy of a mean prediction: from 1 to the number of classes.

    Args:
        classes: Number of classes.
        name: Name of the metric.
    """

    def __init__(self, classes, name="classes"):
        super().__init__(name=name)
        self._sum = self.add_variable((classes,), "zeros", name="sum")

    def update_state(self, probabilities, sample_weight):
        """Adds a batch of probabilities [batch, classes], with weights [batch]."""
        self._sum.assign_add(ops.sum(probabilities * sample_weight[:, None], axis=0))

    def result(self):
        """A scalar float32."""
        share = self._sum / ops.maximum(ops.sum(self._sum), 1e-30)
        return ops.exp(-ops.sum(share * ops.log(ops.maximum(share, 1e-30))))


class Samples(keras.callbacks.Callback):
    """Writes a picture of 64 generated images after each epoch, always of the same noise.

    Args:
        folder: Path of the pictures' folder, `epoch-001.png` and on; made if need be.
        side: Images along a side of the picture.
        shortest: Pixels that an image's side shall have at least: it is a multiple of its own.
    """

    def __init__(self, folder, side=8, shortest=32):
        super().__init__()
        self._folder = folder
        self._side = side
        self._shortest = shortest

    def on_epoch_end(self, epoch, logs=None):
        """Writes the picture."""
        learner, side = self.model, self._side
        images = learner.model(learner.noise(side**2, [learner.seed, -1]), training=False)
        height, width, channels = images.shape[1:]
        grid = tf.reshape(images, [side, side, height, width, channels])
        grid = tf.reshape(tf.transpose(grid, [0, 2, 1, 3, 4]), [side * height, -1, channels])
        factor = -(-self._shortest // height)
        grid = tf.repeat(tf.repeat(grid, factor, 0), factor, 1)
        picture = tf.io.encode_png(tf.cast(tf.round(tf.clip_by_value(grid, 0, 255)), tf.uint8))
        self._folder.mkdir(exist_ok=True)
        (self._folder / f"epoch-{epoch + 1:03}.png").write_bytes(picture.numpy())
