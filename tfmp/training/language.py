"""The training steps of models of text: the next token at every place, or one label a text."""

import math

import keras

from tfmp.training.attention import in_parts
from tfmp.training.cross_entropy import is_top_one
from tfmp.training.learner import Learner

# Contexts from this length on compute attention in parts, unless told otherwise.
LONG_CONTEXT = 512
PART = 256


class LanguageModel(Learner):
    """A language model: cross entropy of the next token, its accuracy, bits and perplexity.

    The loss is in nats a token. Each token of a window counts, also the first ones, before which
    the model has seen little.

    Args:
        model: Keras model, tokens [batch, context] integers -> logits [batch, context, vocabulary]
            float32. It is trained in place and saved on its own.
        attention_part: Queries that attention takes at a time; 0: all at once. None: all, or 256
            in contexts of 512 and more.
        seed: Seed of what the step draws.
    """

    def __init__(self, model, *, attention_part=None, seed=0):
        super().__init__(model, seed=seed, name="language_model")
        long = model.input_shape[1] >= LONG_CONTEXT
        self.attention_part = (PART if long else 0) if attention_part is None else attention_part

    def make_metrics(self):
        """The share of next tokens that got the highest logit."""
        return [keras.metrics.MeanMetricWrapper(is_top_one, name="accuracy")]

    def derived(self, means):
        """Bits a token, where tokens are bytes of a text its bits a byte, and perplexity."""
        loss = means["loss"]
        bits = {"bits_per_token": loss / math.log(2)}
        return bits | {"perplexity": math.exp(loss) if loss < 700 else math.inf}

    def train_step(self, data):
        """One update; returns the running means of the metrics since the epoch's begin."""
        with in_parts(self.model, self.attention_part):
            return super().train_step(data)

    def test_step(self, data):
        """Running means over the evaluated tokens."""
        with in_parts(self.model, self.attention_part):
            return super().test_step(data)


class TextClassifier(Learner):
    """A classifier of texts: cross entropy and accuracy.

    Args:
        model: Keras model, tokens [batch, length] integers -> logits [batch, classes] float32. It
            is trained in place and saved on its own.
        seed: Seed of what the step draws.
    """

    monitor = "accuracy"
    monitor_mode = "max"

    def __init__(self, model, *, seed=0):
        super().__init__(model, seed=seed, name="text_classifier")

    def make_metrics(self):
        """The share of texts whose label got the highest logit."""
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
