"""Trains a ResNet classifier in mixed precision.

Examples:
    python -m tfmp.recipes.resnet
    python -m tfmp.recipes.resnet --policy=float32 --workdir=runs/digits_float32
    python -m tfmp.recipes.resnet --flagfile=recipes/resnet/cifar10_gpu1.flags --data_dir=DIR
    python -m tfmp.recipes.resnet --dataset=folder:PATH --model=resnet18 --epochs=20

Evidence (commands, versions and more in recipes/resnet/README.md):
    digits, no flags, two CPU cores: test accuracy 0.983 to 0.986 over five seeds, 19 to 27 s.
    Fashion-MNIST, ResNet-18, 60 epochs, one H100: 0.951 in 158 s, 35,077 images/s.

References:
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

import dataclasses
import time

from tfmp import cli, distribution, models, policies, training
from tfmp.data import augment, load, steps_per_epoch
from tfmp.models import resnet
from tfmp.training import optimizers, results


@dataclasses.dataclass(frozen=True)
class Config(training.TrainingConfig):
    """Settings of the recipe; the defaults are for the embedded digits."""

    model: str = cli.flag(
        "resnet_small",
        "resnet_small is for images of 8 to 32 pixels.",
        group="Model",
        choices=resnet.MODELS,
    )
    stem: str = cli.flag(
        "auto",
        "First layers; auto: small (a 3x3 convolution) up to 64 pixels.",
        group="Model",
        choices=resnet.STEMS,
    )
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


def prepare(config):
    """All that comes before the first step: (session, data, compiled classifier, epoch's steps)."""
    # --- what it runs on
    session = training.start("resnet", config)
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
    with session.strategy.scope():
        with policies.scope(session.policy):
            model = models.build(
                config.model,
                classes=len(data.class_names),
                input_shape=data.input_shape,
                stem=config.stem,
            )
        if config.float32_layers:
            model = policies.set_policy(
                model, policies.load(config.float32_layers, expected_policy=session.policy)
            )
        if config.weights:
            models.load_weights(model, config.weights)
        if config.sync_batch_norm:
            distribution.synchronize_batch_norm(model)
        # --- training step
        augmentation = data.augmentation if config.augmentation == "auto" else config.augmentation
        classifier = training.Classifier(
            model,
            augment.AUGMENTATIONS[augmentation],
            seed=config.seed,
            label_smoothing=config.label_smoothing,
            mixup=config.mixup,
        )
        training.compile_classifier(
            classifier,
            optimizers.build(config, model, epoch_steps),
            jit_compile=session.jit_compile,
            fused_layers=session.fused_layers,
            steps_per_execution=config.steps_per_execution,
            microbatches=config.gradient_accumulation_steps,
            remat=config.remat,
        )
    return session, data, classifier, epoch_steps


def run(config):
    """Trains and evaluates as `config` says; returns the dict in `results.json`."""
    began = time.perf_counter()
    session, data, classifier, epoch_steps = prepare(config)
    # --- train, evaluate, write
    results.announce(session, config, data, classifier, epoch_steps)
    hint = f"Go on with the same flags and --resume --workdir={session.workdir}."
    with session.power() as power:
        fitted = training.fit(
            classifier, data, config, session.workdir, resume_hint=hint, power=power
        )
    return results.finish(session, config, data, classifier, fitted, began)


if __name__ == "__main__":
    cli.run(Config, run)
