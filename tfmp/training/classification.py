"""What the recipes of image classifiers share: settings, preparation, and the run."""

import dataclasses

from tfmp import cli, distribution, models, policies
from tfmp.data import augment, load, steps_per_epoch
from tfmp.training import loop, optimizers, results, session
from tfmp.training.config import TrainingConfig
from tfmp.training.step import Classifier, compile_classifier


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(TrainingConfig):
    """Settings of every image classifier; a recipe's `Config` adds its model's."""

    weights: str | None = cli.flag(
        None,
        "File of weights to start from: .keras or .weights.h5 of the same model.",
        group="Model",
    )
    augmentation: str = cli.flag(
        "auto",
        "Random changes of the training images; auto: what suits the data.",
        group="Data",
        choices=["auto", *augment.AUGMENTATIONS],
    )
    mixup: float = cli.flag(
        0.0, "Alpha of the mixup's Beta distribution; 0: none.", group="Training"
    )

    def __post_init__(self):
        """Checks the ranges that the types don't hold."""
        super().__post_init__()
        self.check("mixup", lambda value: value >= 0, "0 or more")


def prepare(name, config, build, load_weights=models.load_weights):
    """All that comes before the first step.

    Args:
        name: The recipe's name.
        config: A `ClassifierConfig`.
        build: `build(classes=..., input_shape=...)` returns a built model of the global policy.
        load_weights: `load_weights(model, file)` loads `config.weights`.

    Returns:
        (`Session`, `tfmp.data.Data`, compiled `Classifier`, training steps of an epoch).

    Raises:
        UserError: A setting that can't be met; the message says what to do.
    """
    # --- what it runs on
    started = session.start(name, config)
    # --- data
    data = load(
        config.dataset,
        data_dir=config.data_dir,
        manual_dir=config.manual_dir,
        validation_fraction=config.validation_fraction,
        image_size=config.image_size,
    )
    epoch_steps = steps_per_epoch(
        data.sizes["train"], config.batch_size, config.steps_per_execution
    )
    # --- model
    with started.strategy.scope():
        with policies.scope(started.policy):
            model = build(classes=len(data.class_names), input_shape=data.input_shape)
        if config.float32_layers:
            model = policies.set_policy(
                model, policies.load(config.float32_layers, expected_policy=started.policy)
            )
        if config.weights:
            load_weights(model, config.weights)
        if config.sync_batch_norm:
            distribution.synchronize_batch_norm(model)
        # --- training step
        classifier = compiled(started, config, data, model, epoch_steps)
    return started, data, classifier, epoch_steps


def compiled(started, config, data, model, epoch_steps):
    """A compiled `Classifier` of a model; call it in the strategy's scope.

    Args:
        started: A `Session`.
        config: A `ClassifierConfig`.
        data: A `tfmp.data.Data`.
        model: Built Keras model.
        epoch_steps: Training steps of an epoch.
    """
    augmentation = data.augmentation if config.augmentation == "auto" else config.augmentation
    classifier = Classifier(
        model,
        augment.AUGMENTATIONS[augmentation],
        seed=config.seed,
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
    )
    compile_classifier(
        classifier,
        optimizers.build(config, model, epoch_steps),
        jit_compile=started.jit_compile,
        fused_layers=started.fused_layers,
        steps_per_execution=config.steps_per_execution,
        microbatches=config.gradient_accumulation_steps,
        remat=config.remat,
    )
    return classifier


def run(config, prepared, began):
    """Trains, evaluates on the test images, and writes the run's files.

    Args:
        config: A `ClassifierConfig`.
        prepared: What `prepare` returned.
        began: `time.perf_counter()` at the run's begin.

    Returns:
        The dict in `results.json`.
    """
    started, data, classifier, epoch_steps = prepared
    results.announce(started, config, data, classifier, epoch_steps)
    hint = f"Go on with the same flags and --resume --workdir={started.workdir}."
    with started.power() as power:
        fitted = loop.fit(classifier, data, config, started.workdir, resume_hint=hint, power=power)
    return results.finish(started, config, data, classifier, fitted, began)
