"""A judge of generated images: a small classifier, trained once and fixed."""

import warnings

import keras
import numpy as np
from sklearn.exceptions import ConvergenceWarning

FEATURES = 32
ABSENT = -1e4  # logit of a class that none of the images has: its probability is 0 in float32
MOST_IMAGES = 10_000


def build(images, labels, classes):
    """Trains a perceptron with one hidden layer on real images.

    Args:
        images: [examples, height, width, channels] of 0-255; the first 10,000 are used.
        labels: [examples] integers.
        classes: Number of classes; those that none of these images has get a probability of 0.

    Returns:
        A frozen Keras model in float32: images [batch, height, width, channels] of 0-255 to a pair
        of features [batch, 32], those of the hidden layer, and probabilities [batch, classes].
    """
    from sklearn.neural_network import MLPClassifier

    shape = images.shape[1:]
    pixels = images[:MOST_IMAGES].reshape(-1, np.prod(shape)) / 255
    fitted = MLPClassifier((FEATURES,), learning_rate_init=5e-3, max_iter=30, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it need not be the best there is
        fitted.fit(pixels, np.asarray(labels[:MOST_IMAGES]))
    inputs = keras.Input(shape, name="images")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(inputs)
    x = keras.layers.Flatten(dtype="float32")(x)
    hidden = keras.layers.Dense(FEATURES, "relu", dtype="float32", name="hidden")
    head = keras.layers.Dense(classes, "softmax", dtype="float32", name="head")
    features = hidden(x)
    probabilities = head(features)
    hidden.set_weights([fitted.coefs_[0], fitted.intercepts_[0]])
    head.set_weights(_of_all(classes, fitted.classes_, fitted.coefs_[1], fitted.intercepts_[1]))
    judge = keras.Model(inputs, [features, probabilities], name="judge")
    judge.trainable = False
    return judge


def _of_all(classes, present, weights, biases):
    """Scikit-learn's last layer, which has the present classes alone, as one of all classes."""
    kernel, bias = np.zeros((len(weights), classes)), np.full(classes, ABSENT)
    if weights.shape[1] == 1:  # one logit for two classes, that of the second one
        bias[present[0]] = 0
        present = present[1:]
    kernel[:, present], bias[present] = weights, biases
    return [kernel, bias]
