"""Trains a classifier of texts, a transformer encoder or a bidirectional LSTM, in mixed precision.

Examples:
    python -m tfmp.recipes.text_classifier
    python -m tfmp.recipes.text_classifier --model=lstm
    python -m tfmp.recipes.text_classifier --dataset=csv:FILE --length=128
    python -m tfmp.recipes.text_classifier --dataset=imdb_reviews --model=encoder_small --length=512

Evidence (commands, versions and more in recipes/text_classifier/README.md):
    docstrings of Python 3.11.7, no flags but --measure_inference=false, two cores of a shared CPU:
    test accuracy 0.725, 59 s of CPU time (n = 1). Trivial model on the same split: always the
    largest class of training 0.362. Counts of words do better on so few texts: naive Bayes 0.786.

References:
    Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    Graves and Schmidhuber, "Framewise Phoneme Classification with Bidirectional LSTM", 2005.
    Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

import dataclasses
import functools
import time

from tfmp import cli
from tfmp.data import labeled_text
from tfmp.models import text_classifier
from tfmp.training import TrainingConfig, language, recipe

changed = functools.partial(cli.default, TrainingConfig)


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the recipe; the defaults are for the docstrings and two CPU cores."""

    dataset: str = cli.flag(
        "docstrings",
        "docstrings (from which module of Python's library is it?), csv:FILE (columns text and "
        "label), synthetic, or a set of tensorflow-datasets with texts and a label, such as "
        "imdb_reviews, ag_news_subset.",
        group="Data",
    )
    length: int = cli.flag(
        64, "Tokens of a text: further ones are cut off, missing ones filled up.", group="Data"
    )
    vocabulary: int = cli.flag(
        8192, "Different tokens, on which words are spread by their CRC-32.", group="Data"
    )
    model: str = cli.flag(
        "encoder_micro", "lstm is bidirectional.", group="Model", choices=text_classifier.MODELS
    )
    dropout: float = cli.flag(
        0.3, "Share of features dropped, behind the embedding too.", group="Training"
    )

    optimizer: str = changed("optimizer", "adamw")
    learning_rate: float = changed("learning_rate", 2e-2)
    weight_decay: float = changed("weight_decay", 0.1)
    clip_norm: float = changed("clip_norm", 1.0)
    epochs: int = changed("epochs", 6)
    batch_size: int = changed("batch_size", 32)

    def __post_init__(self):
        """Checks the ranges that the types don't hold."""
        super().__post_init__()
        self.check("length", lambda value: value > 0, "above 0")
        self.check("vocabulary", lambda value: value > 1, "above 1")
        self.check("dropout", lambda value: 0 <= value < 1, "from 0 to below 1")


def prepare(config):
    """All that comes before the first step: (session, data, compiled classifier, epoch's steps)."""
    sizes = {"length": config.length, "vocabulary": config.vocabulary}
    return recipe.prepare(
        "text_classifier",
        config,
        load=lambda: labeled_text.load(
            config.dataset,
            **sizes,
            data_dir=config.data_dir,
            manual_dir=config.manual_dir,
            validation_fraction=config.validation_fraction,
        ),
        build=lambda data: text_classifier.MODELS[config.model](
            **sizes, classes=len(data.class_names), dropout=config.dropout, name=config.model
        ),
        learn=lambda model, data: language.TextClassifier(model, seed=config.seed),
    )


def run(config):
    """Trains and evaluates as `config` says; returns the dict in `results.json`."""
    began = time.perf_counter()
    return recipe.run(config, prepare(config), began)


if __name__ == "__main__":
    cli.run(Config, run)
