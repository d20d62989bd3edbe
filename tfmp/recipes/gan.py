"""Trains a DCGAN, a generator of images, in mixed precision: two optimizers, two loss scales.

Examples:
    python -m tfmp.recipes.gan
    python -m tfmp.recipes.gan --flagfile=recipes/gan/fashion_mnist.flags --data_dir=DIR
    python -m tfmp.recipes.gan --dataset=folder:PATH --image_size=64 --width=64

A run leaves `samples/epoch-001.png` and on, and in `model.keras` the generator: it makes images of
0-255, float32, of [batch, 64] numbers of the standard normal distribution. `--weights` and
`--float32_layers` are the generator's, too.

Evidence (commands, versions and more in recipes/gan/README.md):
    digits, no flags, two cores of a busy CPU, three seeds, 68 to 112 s. Frechet distance of a small
    classifier's features to those of the test images: 1.07 to 1.33. Held-out real images have 0.65,
    and trivial models miss it: each pixel normal by itself 7.36, noise 24.5. One has about as
    little, 1.43, the normal distribution of all pixels together; but in its images the classifier
    sees a digit less clearly: mean confidence 0.67, of the DCGAN's 0.75 to 0.77.

References:
    Radford et al., "Unsupervised Representation Learning with DCGANs", ICLR 2016.
    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017 (the distance; here
        of the features of a small classifier, trained on the same data).
    Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

import dataclasses
import functools
import time

from tfmp import cli, policies
from tfmp.models import dcgan
from tfmp.training import TrainingConfig, classification, gan, judge, loop, optimizers, recipe

changed = functools.partial(cli.default, TrainingConfig)


@dataclasses.dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the recipe; the defaults are for the embedded digits."""

    image_size: int | None = cli.flag(
        None,
        "Height and width of the images in pixels, a multiple of 4; none: the data's own.",
        group="Data",
    )
    latent: int = cli.flag(64, "Numbers that an image is made of.", group="Model")
    width: int = cli.flag(
        32, "Features next to the images; layers further in have more.", group="Model"
    )

    strategy: str = changed("strategy", "none")
    optimizer: str = changed("optimizer", "adam_gan")
    learning_rate: float = changed("learning_rate", 4e-3)
    weight_decay: float = changed("weight_decay", 0.0)
    epochs: int = changed("epochs", 40)

    def __post_init__(self):
        """Checks the ranges that the types don't hold."""
        super().__post_init__()
        for name in ("image_size", "latent", "width"):
            self.check(name, lambda value: value > 0, "above 0")
        # A step of two updates is run whole, on one device; and averages end with an optimizer's.
        self.check("strategy", lambda value: value == "none", "none: a GAN trains on one device")
        self.check("gradient_accumulation_steps", lambda value: value == 1, "1, of a GAN")
        self.check("ema", lambda value: value == 0, "0, of a GAN")
        self.check("validation_fraction", lambda value: value > 0, "above 0: its best epoch shows")


def prepare(config):
    """All that comes before the first step: (session, data, compiled learner, epoch's steps)."""

    def learn(model, data):
        steps = config.epoch_steps(data.sizes["train"])
        with policies.scope(model.dtype_policy):
            discriminator = dcgan.discriminator(image_shape=data.input_shape, width=config.width)
        # In random images there is nothing to know.
        most = config.batch_size if config.dataset == "synthetic" else judge.MOST_IMAGES
        count = min(data.sizes["train"], most)
        with loop.naming_errors(config, model):
            images, labels = next(data.train(count, seed=0).as_numpy_iterator())
        return gan.GanLearner(
            model,
            discriminator,
            optimizers.build(config, discriminator, steps),
            judge.build(images, labels, len(data.class_names)),
            seed=config.seed,
        )

    return recipe.prepare(
        "gan",
        config,
        load=functools.partial(classification.load_images, config),
        build=lambda data: dcgan.generator(
            image_shape=data.input_shape, latent=config.latent, width=config.width
        ),
        learn=learn,
    )


def run(config):
    """Trains and evaluates as `config` says; returns the dict in `results.json`."""
    began = time.perf_counter()
    prepared = prepare(config)
    samples = [gan.Samples(prepared[0].workdir / "samples")] if prepared[0].worker.is_chief else []
    return recipe.run(config, prepared, began, callbacks=samples)


if __name__ == "__main__":
    cli.run(Config, run)
