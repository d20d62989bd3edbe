"""Images changed a little, on purpose, so that a model errs: FGSM, PGD and noise of the same size.

Images are float32 of 0-255 and stay in that range, and are not rounded to whole numbers. Epsilon
is in 1/255 of the range, as the papers count, which is one step of an 8-bit image: the largest
change of a pixel (linf), or the Euclidean length of the change of all pixels and channels (l2).

References:
    Goodfellow et al. 2015, "Explaining and harnessing adversarial examples", section 4 (FGSM).
    Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", equation
        in section 2.1 (PGD), appendix B (l2), and step sizes of 2.5 epsilon over the steps.
"""

import tensorflow as tf

from tfmp.evaluation.predictions import traced

NORMS = ("linf", "l2")
STEP_SHARE = 2.5


def ascent(model, *, plain=False):
    """The function (images, labels) -> gradient of the loss by the images.

    The gradient of the cross-entropy by the logits is the probabilities less 1 for the true class,
    which rounds to 0 where the model is sure: attacks then find no way. Only directions count
    here, so each example's is divided by the probability that it is wrong, and comes to the
    probabilities among the other classes, less 1 for the true one.

    Args:
        model: Built Keras model to logits, which computes under its own policy.
        plain: The gradient as it is, as whoever attacks without such care takes it, and without a
            loss scale, so that in half precision it underflows the sooner.

    Returns:
        A function of images [batch, height, width, channels] float32 and labels [batch] int64,
        whose gradient is [batch, height, width, channels] float32.

    References:
        Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section
        IV-A (gradients that vanish where the logits are large).
    """

    def gradient(images, labels):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = tf.cast(model(images, training=False), tf.float32)
        true = tf.one_hot(labels, logits.shape[-1])
        others = logits if plain else tf.where(true > 0, logits.dtype.min, logits)
        by_logits = tf.nn.softmax(others) - true
        return tf.cast(tape.gradient(logits, images, by_logits), tf.float32)

    return gradient


def stepper(gradient, norm, *, jit_compile):
    """One step of an attack, compiled; the steps are counted outside.

    (A loop inside the program was 8 times slower under XLA on a CPU, which runs what is in a loop
    on one core, and saves nothing elsewhere: a step takes far longer than its call.)

    Args:
        gradient: What `ascent` gives.
        norm: One of `NORMS`.
        jit_compile: Whether XLA compiles it.

    Returns:
        A function of changed images, images [batch, height, width, channels] float32 of 0-255,
        labels [batch] int64, and scalars epsilon and step float32: the ball's radius and the
        length of the step. It gives images changed further.
    """

    def uphill(changed, images, labels, epsilon, step):
        direction = _direction(gradient(changed, labels), norm)
        moved = _project(changed + step * direction - images, epsilon, norm)
        return _clip(images + moved)

    return traced(uphill, jit_compile=jit_compile)


def fgsm(uphill, images, labels, epsilon):
    """One step as long as the ball's radius.

    Args:
        uphill: What `stepper` gives.
        images: [batch, height, width, channels] float32 of 0-255.
        labels: [batch] int64.
        epsilon: Scalar float32.
    """
    return uphill(images, images, labels, epsilon, epsilon)


def pgd(uphill, images, labels, epsilon, *, norm, steps, seed):
    """Many steps, from a random place in the ball; arguments as for `fgsm`, and more.

    Args:
        uphill: What `stepper` gives.
        images: [batch, height, width, channels] float32 of 0-255.
        labels: [batch] int64.
        epsilon: Scalar float32.
        norm: One of `NORMS`.
        steps: Their number.
        seed: int64 [2], decides the place.
    """
    changed = _clip(images + _inside(tf.shape(images), epsilon, norm, seed))
    for _ in range(steps):
        changed = uphill(changed, images, labels, epsilon, STEP_SHARE * epsilon / steps)
    return changed


def noise(images, epsilon, norm, seed):
    """Images changed as much as an attack may, but at random: signs, or a direction.

    Args:
        images: [batch, height, width, channels] float32 of 0-255.
        epsilon: Scalar float32.
        norm: One of `NORMS`.
        seed: int64 [2].
    """
    drawn = tf.random.stateless_normal(tf.shape(images), seed, alg="philox")
    return _clip(images + epsilon * _direction(drawn, norm))


def _inside(shape, epsilon, norm, seed):
    """Uniform in the ball, as Madry starts."""
    if norm == "linf":
        return tf.random.stateless_uniform(shape, seed, -epsilon, epsilon, alg="philox")
    drawn = tf.random.stateless_normal(shape, seed, alg="philox")
    share = tf.random.stateless_uniform([shape[0], 1, 1, 1], seed + 1, alg="philox")
    size = tf.cast(tf.reduce_prod(shape[1:]), tf.float32)
    return epsilon * share ** (1 / size) * _direction(drawn, norm)


def _direction(gradient, norm):
    """The change of length 1 that follows the gradient best; 0 where it is 0 or not finite."""
    known = tf.reduce_all(tf.math.is_finite(gradient), (1, 2, 3), keepdims=True)
    gradient = tf.where(known, gradient, 0.0)
    if norm == "linf":
        return tf.sign(gradient)
    # The squares of small gradients would underflow.
    largest = tf.reduce_max(tf.abs(gradient), (1, 2, 3), keepdims=True)
    scaled = tf.math.divide_no_nan(gradient, largest)
    return tf.math.divide_no_nan(scaled, _length(scaled))


def _project(change, epsilon, norm):
    if norm == "linf":
        return tf.clip_by_value(change, -epsilon, epsilon)
    return change * epsilon / tf.maximum(_length(change), epsilon)


def _length(change):
    return tf.sqrt(tf.reduce_sum(change**2, (1, 2, 3), keepdims=True))


def _clip(images):
    return tf.clip_by_value(images, 0.0, 255.0)
