"""Trains a GPT, which predicts the next byte of a text, in mixed precision; and lets it write.

Examples:
    python -m tfmp.recipes.gpt
    python -m tfmp.recipes.gpt --dataset=text:FILE --context=128 --workdir=runs/text
    python -m tfmp.recipes.gpt --workdir=runs/text --sample=500 --prompt="The " --temperature=0.8
    python -m tfmp.recipes.gpt --dataset=wiki40b/en --model=gpt2_small --data_dir=DIR

Evidence (commands, versions and more in recipes/gpt/README.md):
    reference of Python 3.11.7, no flags, two cores of a shared CPU: 2.344 to 2.368 bits a byte over
    three seeds, 57 to 62 s of CPU time. Trivial models on the same split, of counts: bytes alone
    4.697, behind one byte 3.452, behind two 2.628.

References:
    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

import dataclasses
import functools
import pathlib
import time

from tfmp import cli, training
from tfmp.data import text
from tfmp.errors import UserError
from tfmp.evaluation import sampling
from tfmp.models import gpt
from tfmp.training import TrainingConfig, language, recipe

changed = functools.partial(cli.default, TrainingConfig)
# GPT-2's 50,257 tokens, with some unused to make a multiple of 64, which tensor cores like.
GPT2_VOCABULARY, GPT2_CONTEXT = 50_304, 1024
MICRO_CONTEXT = 64


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the recipe; the defaults are for the reference of Python and two CPU cores."""

    dataset: str = cli.flag(
        "python_reference",
        "python_reference (the reference of the language, in every Python), text:FILE, synthetic, "
        "or a set of tensorflow-datasets with a text, such as tiny_shakespeare, wiki40b/en, lm1b.",
        group="Data",
    )
    context: int | None = cli.flag(
        None,
        f"Tokens of an example; none: {MICRO_CONTEXT} for gpt_micro, else {GPT2_CONTEXT}.",
        group="Data",
    )
    model: str = cli.flag(
        "gpt_micro", "gpt2_small is GPT-2 of 124M parameters.", group="Model", choices=gpt.MODELS
    )
    vocabulary: int | None = cli.flag(
        None, "Different tokens; none: 256, or GPT-2's for it on synthetic ones.", group="Model"
    )
    dropout: float = cli.flag(
        0.0, "Share of features dropped behind embedding and branches.", group="Training"
    )
    attention_part: int | None = cli.flag(
        None,
        "Queries that attention takes at a time, to save memory; 0: all; none: all, or "
        f"{language.PART} in contexts of {language.LONG_CONTEXT} and more.",
        group="Training",
    )
    sample: int = cli.flag(
        0,
        "Train nothing; the model in --workdir (a run's, or a .keras file) writes so many bytes.",
        group="Sampling",
    )
    prompt: str = cli.flag("\n", "What the written text goes on from.", group="Sampling")
    temperature: float = cli.flag(
        1.0, "Below 1 likely bytes are still likelier; at 0 the likeliest.", group="Sampling"
    )

    optimizer: str = changed("optimizer", "adamw")
    learning_rate: float = changed("learning_rate", 6.4e-2)
    weight_decay: float = changed("weight_decay", 0.1)
    clip_norm: float = changed("clip_norm", 1.0)
    epochs: int = changed("epochs", 3)
    batch_size: int = changed("batch_size", 16)

    def __post_init__(self):
        """Checks the ranges that the types don't hold."""
        super().__post_init__()
        self.check("context", lambda value: value > 0, "above 0")
        self.check("vocabulary", lambda value: value >= text.BYTES, f"of {text.BYTES} or more")
        self.check("dropout", lambda value: 0 <= value < 1, "from 0 to below 1")
        for name in ("attention_part", "sample", "temperature"):
            self.check(name, lambda value: value >= 0, "0 or more")
        if self.sample and not self.workdir:
            raise UserError("--sample needs --workdir=PATH, a run's folder or a .keras file.")
        if not self.prompt:
            raise UserError("Expected a --prompt of one character or more. Received: none.")


def sizes(config):
    """The model's sizes that depend on other settings: a dict of `context` and `vocabulary`."""
    micro = config.model == "gpt_micro"
    usual = text.BYTES if micro or config.dataset != "synthetic" else GPT2_VOCABULARY
    return {
        "context": config.context or (MICRO_CONTEXT if micro else GPT2_CONTEXT),
        "vocabulary": config.vocabulary or usual,
    }


def prepare(config):
    """All that comes before the first step: (session, data, compiled model, epoch's steps)."""
    found = sizes(config)
    return recipe.prepare(
        "gpt",
        config,
        load=lambda: text.load(
            config.dataset,
            **found,
            data_dir=config.data_dir,
            manual_dir=config.manual_dir,
            validation_fraction=config.validation_fraction,
        ),
        build=lambda data: gpt.MODELS[config.model](
            **found, dropout=config.dropout, name=config.model
        ),
        learn=lambda model, data: language.LanguageModel(
            model, attention_part=config.attention_part, seed=config.seed
        ),
    )


def run(config):
    """Trains and evaluates as `config` says; returns the dict in `results.json`.

    With `--sample` it writes a text instead, and returns that.
    """
    began = time.perf_counter()
    if not config.sample:
        return recipe.run(config, prepare(config), began)
    path = pathlib.Path(config.workdir).expanduser()
    finished = path / "model.keras"
    model = training.load(finished if finished.is_file() else path)
    sampling.check(model, path)
    options = {"temperature": config.temperature, "seed": config.seed}
    return sampling.write(model, config.prompt, config.sample, **options)


if __name__ == "__main__":
    cli.run(Config, run)
