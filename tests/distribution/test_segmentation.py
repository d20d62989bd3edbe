"""Segmentation on two replicas: what is logged is of all replicas' pixels together."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import NONE, assert_close

from tfmp.data import augment
from tfmp.training import TrainingConfig, compile_learner, optimizers
from tfmp.training.segmentation import Segmenter

pytestmark = pytest.mark.replicas(2)
CLASSES = 3


def segmenter(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                keras.layers.Conv2D(6, 3, padding="same", activation="relu"),
                keras.layers.Conv2D(CLASSES, 1),
            ]
        )
        config = TrainingConfig(epochs=1, warmup_epochs=0)
        learner = Segmenter(model, augment.none, dice=0.5)
        compile_learner(learner, optimizers.build(config, model, 4), jit_compile=False)
    return learner


def test_two_replicas_log_and_learn_what_one_does(strategy):
    rng = np.random.default_rng(0)
    masks = rng.integers(0, CLASSES, (24, 4, 4)).astype("int32")
    masks[::2] = 0  # replicas differ: a mean of their means would be another number
    images = (masks * 80 + rng.integers(0, 60, masks.shape)).astype("uint8")[..., None]
    training = tf.data.Dataset.from_tensor_slices((images, masks)).batch(6)
    ones = np.ones(24, "float32")
    test = tf.data.Dataset.from_tensor_slices((images, masks, ones)).batch(7)
    histories, logs, models = [], [], []
    for chosen in (NONE, strategy):
        learner = segmenter(chosen)
        histories.append(learner.fit(training, epochs=1, shuffle=False, verbose=0).history)
        logs.append(learner.evaluate(test, return_dict=True, verbose=0))
        models.append(learner.model)
    assert_close(*models)
    for name, (value,) in histories[0].items():
        assert histories[1][name] == [pytest.approx(value, rel=1e-5)], name
    assert logs[0].keys() == {"loss", "accuracy", "mean_iou", "mean_dice"}
    assert logs[1] == pytest.approx(logs[0], rel=1e-5)
