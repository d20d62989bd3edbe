"""Corrupted sets that TFDS has, such as `cifar10_corrupted`: one configuration a file of images."""

import dataclasses

import tensorflow as tf

from tfmp.data import crops, from_tfds, pipeline
from tfmp.data.base import DataError, Options

# What they call otherwise than ImageNet-C.
NAMES = {"cifar10_corrupted": {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}}
KINDS = {
    "cifar10_corrupted": "CIFAR-10-C's, for 32 px: its authors' images",
    "imagenet2012_corrupted": "ImageNet-C's, for 224 px, by the code of tensorflow-datasets",
}


@dataclasses.dataclass(frozen=True)
class ReadyMade:
    """A corrupted set of TFDS.

    Attributes:
        name: The data set's name there.
        shape: Height, width and channels of the images as they are given.
        examples: Of each corruption and severity; the first ones, which TFDS has shuffled.
        corruptions: Names, as ImageNet-C has them.
        severities: Out of 1-5.
        parts: (corruption, severity) -> `from_tfds.Source`.
    """

    name: str
    shape: tuple[int, int, int]
    examples: int
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    parts: dict

    def make(self):
        """Nothing is left to make."""

    def identity(self, name) -> dict[str, str]:
        """Name and version of a corruption's configuration in TFDS, by severity."""
        return {str(s): self.parts[name, s].builder.info.full_name for s in self.severities}

    def batches(self, name, batch_size) -> tf.data.Dataset:
        """As of `tfmp.data.corrupted.Made`."""
        sources = [self.parts[name, severity] for severity in self.severities]
        crop = crops.pair(self.shape, tuple(sources[0].image_shape) == self.shape)[1]

        def records():
            first, *rest = [x.records(_split(x)).in_order().take(self.examples) for x in sources]
            for more in rest:
                first = first.concatenate(more)
            return first

        def decode(serialized):
            data, label = sources[0].parse(serialized)
            return crop(data), label

        examples = self.examples * len(sources)
        made = pipeline.streamed_evaluation(records, decode, examples)
        assert made is not None, "there are examples"
        return made(batch_size)

    def constants(self) -> dict:
        """As of `tfmp.data.corrupted.Made`."""
        return {
            "made_by": f"{self.name} of tensorflow-datasets",
            "kind": KINDS.get(self.name.partition(":")[0], "the data set's own"),
            "image_shape": list(self.shape),
        }


def ready_made(
    name, corruptions, severities, *, examples, shape, classes, data_dir=None, manual_dir=None
) -> ReadyMade:
    """Opens a corrupted set of TFDS, and prepares what is not prepared.

    Args:
        name: The data set's name there.
        corruptions: Names, as ImageNet-C has them.
        severities: Out of 1-5.
        examples: The most to take of each corruption and severity.
        shape: Height, width and channels of the images as the model takes them.
        classes: Number of classes.
        data_dir: As for `tfmp.data.load`.
        manual_dir: Likewise.

    Raises:
        DataError: It has other classes or channels, or there is no such set.
    """
    options, shape = Options(data_dir, manual_dir), tuple(shape)
    names = NAMES.get(name, {})
    parts = {}
    for corruption in corruptions:
        for severity in severities:
            config = f"{name}/{names.get(corruption, corruption)}_{severity}"
            source = from_tfds.prepared(config, options, [])
            _check(config, source, shape[-1], classes)
            parts[corruption, severity] = source
    sizes = [source.splits[_split(source)].num_examples for source in parts.values()]
    return ReadyMade(
        name, shape, min(examples, *sizes), tuple(corruptions), tuple(severities), parts
    )


def _check(config, source, channels, classes):
    found = len(source.class_names), source.image_shape[-1]
    if _split(source) is None or found != (classes, channels):
        raise DataError(
            f"Expected a test or validation split, {classes} classes and {channels} channels. "
            f"Received: {config}, with {', '.join(source.splits)}, {found[0]} and {found[1]}."
        )


def _split(source):
    """The name of the split of test images; None where there is none."""
    return next((split for split in ("test", "validation") if split in source.splits), None)
