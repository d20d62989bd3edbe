"""A small classifier on the embedded digits, for tests of the training parts."""

import keras
import pytest

from tfmp import data, policies
from tfmp.training import Classifier, TrainingConfig, compile_learner, optimizers


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


def build_tiny_model(dropout=0.1):
    """A few thousand weights, with BatchNorm and Dropout: all kinds of state."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 128, dtype="float32"),
            keras.layers.Conv2D(8, 3, strides=2, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(10, dtype="float32"),
        ],
        name="tiny",
    )


@pytest.fixture
def tiny_model():
    return build_tiny_model()


@pytest.fixture(scope="session")
def make_classifier():
    """A function of a policy and a config that returns a compiled `Classifier`."""

    def make(policy="float32", config=None, steps_per_epoch=20, augmentation="shift", **kwargs):
        config = config or TrainingConfig(epochs=2, warmup_epochs=1)
        keras.utils.set_random_seed(config.seed)
        with policies.scope(policy):
            model = build_tiny_model()
        function = data.augment.AUGMENTATIONS.get(augmentation, augmentation)
        classifier = Classifier(model, function, seed=config.seed, **kwargs)
        compile_learner(
            classifier,
            optimizers.build(config, model, steps_per_epoch),
            jit_compile=config.jit_compile == "true",
            steps_per_execution=config.steps_per_execution or 1,
            microbatches=config.gradient_accumulation_steps,
        )
        return classifier

    return make
