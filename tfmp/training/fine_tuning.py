"""Fine-tuning in two phases: the head alone, then all weights.

Each phase is a whole training with its own optimizer, learning-rate schedule, checkpoints and
compiled step: the first in the sub-folder `head` of the run's folder, the second in the folder
itself. A run that goes on calls both again; each goes on at its last checkpoint, so a finished
first phase does no more than give its weights to the second.

While the head trains, gradients of the other weights are not computed, and BatchNorm is in
inference mode: its statistics are those of the weights that the run began with. The second phase
begins at the first loss scale: with a head in float32 the first has no gradient in float16, so its
scale would only have grown.
"""

import dataclasses
import math

import keras

from tfmp import cli
from tfmp.files import read_metrics
from tfmp.training import classification, loading, loop, recipe, results


@dataclasses.dataclass(frozen=True)
class FineTuningConfig(classification.ClassifierConfig):
    """Settings of a training in two phases; those of the parent are for the second."""

    head_epochs: int | None = cli.flag(
        None,
        "Epochs in which the head trains alone, before the others; none: a tenth of --epochs if "
        "there are --weights, else 0.",
        group="Fine-tuning",
    )
    head_learning_rate: float | None = cli.flag(
        None, "--learning_rate of those epochs; none: the same.", group="Fine-tuning"
    )
    freeze_batch_norm: bool = cli.flag(
        False,
        "Leave BatchNorm's weights and statistics as they are, and run it in inference mode.",
        group="Fine-tuning",
    )

    def __post_init__(self):
        """Checks the ranges that the types don't hold."""
        super().__post_init__()
        self.check("head_epochs", lambda value: value >= 0, "0 or more")
        self.check("head_learning_rate", lambda value: 0 < value <= 2.0**127, "above 0")

    @property
    def first_phase(self):
        """The settings of the first phase, or None if there is none."""
        epochs = self.head_epochs
        if epochs is None:
            epochs = math.ceil(self.epochs / 10) if self.weights else 0
        if not epochs:
            return None
        return dataclasses.replace(
            self,
            epochs=epochs,
            learning_rate=self.head_learning_rate or self.learning_rate,
            warmup_epochs=None,
        )


def train_all(model, *, freeze_batch_norm):
    """Makes all layers of a model trainable, perhaps without BatchNormalization.

    Args:
        model: Built Keras model.
        freeze_batch_norm: Whether BatchNormalization keeps its weights and statistics, and
            computes with the latter in training, too.
    """
    # One by one, parents first: Keras ignores `model.trainable = True` where it is True already.
    for layer in model._flatten_layers():
        frozen = freeze_batch_norm and isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = not frozen


def train_head(model):
    """Freezes all layers of a model but the one called "head"; BatchNorm in inference mode."""
    for layer in model.layers:
        layer.trainable = layer.name == "head"


def prepare(name, config, build, load_weights):
    """`classification.prepare`, with BatchNorm frozen where the settings say so."""

    def build_trainable(**shape):
        model = build(**shape)
        train_all(model, freeze_batch_norm=config.freeze_batch_norm)
        return model

    return classification.prepare(name, config, build_trainable, load_weights)


def run(config, prepared, began):
    """Trains in both phases, evaluates on the test images, and writes the run's files.

    Args:
        config: A `FineTuningConfig`.
        prepared: What `prepare` returned.
        began: `time.perf_counter()` at the run's begin.

    Returns:
        The dict in `results.json`.
    """
    started, data, classifier, epoch_steps = prepared
    results.announce(started, config, data, classifier, epoch_steps)
    workdir = started.workdir
    hint = f"Go on with the same flags and --resume --workdir={workdir}."
    with started.power() as power:
        options = {"resume_hint": hint, "power": power}
        phase = None
        if config.first_phase:
            if started.worker.is_chief:  # for --resume, from the first step on
                loop.describe(classifier, data, config, workdir)
            phase = _fit_head(config.first_phase, prepared, options)
            print("\nphase 2 of 2: all weights\n", flush=True)
        fitted = loop.fit(classifier, data, config, workdir, **options)
    if phase is None or not started.worker.is_chief:
        return results.finish(started, config, data, classifier, fitted, began)
    more = {"first_phase": _summary(config.first_phase, phase, workdir / loading.FIRST_PHASE)}
    return results.finish(started, config, data, classifier, _sum(phase, fitted), began, more)


def _fit_head(config, prepared, options):
    """Trains the head, and makes the model trainable for the second phase again."""
    started, data, classifier, epoch_steps = prepared
    model = classifier.model
    print(f"phase 1 of 2: the head alone, {config.epochs} epochs\n", flush=True)
    with started.strategy.scope():
        train_head(model)
        first = classification.make_learner(config, model, data)
        first = recipe.compiled(started, config, first, epoch_steps)
    fitted = loop.fit(first, data, config, started.workdir / loading.FIRST_PHASE, **options)
    train_all(model, freeze_batch_norm=config.freeze_batch_norm)
    return fitted


def _summary(config, fitted, folder):
    rows = read_metrics(folder / "metrics.csv")
    return {
        "epochs": len(rows),
        "learning_rate": config.learning_rate,
        "final": {name: value for name, value in rows[-1].items() if name != "epoch"},
        "seconds": fitted.seconds,
    }


def _sum(first, second):
    """The second phase's measurements, with what both took together."""

    def add(name):
        values = getattr(first, name), getattr(second, name)
        return None if None in values else sum(values)

    names = ("compile_seconds", "seconds", "seconds_before", "joules", "joules_before")
    return dataclasses.replace(second, **{name: add(name) for name in names})
