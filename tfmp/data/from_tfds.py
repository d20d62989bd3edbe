"""Image classification data sets that TensorFlow Datasets knows, prepared there or here.

Where a set's images have one size and take up to 1 GiB, they are read into memory. Larger sets
are streamed from their TFRecord shards: in each epoch in another order of the shards, 16 of them
read in turn, through a shuffle buffer of about 1 GiB. Streamed, the validation set is the
beginning of each shard: TFDS shuffled the examples when it wrote them.

TFDS retries a download for minutes, so everything that can be known before is looked at first.
"""

import difflib
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmp.data import crops, memory, pipeline, prepare, shards
from tfmp.data.base import Data, DataError, Options

MIRRORED = ("cifar10", "cifar100", "cifar10_1", "fashion_mnist", "stl10")


def load(name: str, options: Options, also_known: list[str]) -> Data:
    """Loads a data set by its name in TFDS, and prepares it if it isn't.

    Args:
        name: As TFDS has it, with version and configuration if any.
        options: What `tfmp.data.load` was asked for.
        also_known: Other names to propose where this one is unknown.

    Raises:
        DataError: If TFDS doesn't know the name, the set isn't one of labeled images, or it is
            neither prepared nor can be.
    """
    source = prepared(name, options, also_known)
    train, validation, test = _splits(name, source, options)
    shape, in_memory = _shape(source, train, options.image_size)
    small = "crop_flip" if source.builder.name in MIRRORED else "crop"
    augmentation = "flip" if crops.is_large(shape) else small
    if not in_memory:
        return _streamed(name, source, (train, validation, test), shape, augmentation, options)
    return memory.from_arrays(
        name,
        train=source.arrays(train),
        validation=validation and source.arrays(validation),
        test=test and source.arrays(test),
        class_names=source.class_names,
        augmentation=augmentation,
        options=options,
        origin=source.builder.info.full_name,
    )


def test_feature(name: str, feature: str, options: Options) -> list[str]:
    """A feature of each test example, in the order in which `load` gives them.

    Args:
        name: As TFDS has it.
        feature: Key of the feature.
        options: Where the data lie.

    Raises:
        DataError: There is no such feature, or no test split to have it.
    """
    source = prepared(name, options, [])
    known = _plain_features(source.builder.info.features)
    if feature not in known:
        raise DataError(
            f"Expected a feature of {name} out of {', '.join(known)}. Received: {feature!r}."
        )
    train, _, test = _splits(name, source, options)
    if test is None:
        raise DataError(
            f"Expected a labeled test split, to have the feature {feature!r}. Received: {name}, "
            "of whose training images some are held out. Use a table of the test examples."
        )
    if _shape(source, train, options.image_size)[1]:
        decoders = {source.image_key: source.raw}
        examples = source.builder.as_dataset(split=test, shuffle_files=False, decoders=decoders)
    else:
        examples = source.records(test).in_order().map(source.deserialize)
    values = examples.map(lambda example: example[feature]).as_numpy_iterator()
    return [_as_text(known[feature], value) for value in values]


def _plain_features(features):
    """Those with one value an example that can name a group."""
    import tensorflow_datasets as tfds

    return {
        key: feature
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Tensor)  # which numbers, labels and texts are
        and feature.shape == ()
        and np.dtype(feature.np_dtype).kind != "f"
    }


def _as_text(feature, value) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    names = getattr(feature, "names", None)
    return names[int(value)] if names and value >= 0 else str(value)


class Source:
    """A prepared builder, and which of its features are image and label."""

    def __init__(self, builder, image_key: str, label_key: str):
        self.builder = builder
        self.splits = builder.info.splits
        self.image_key, self.label_key = image_key, label_key
        self.image_shape = builder.info.features[image_key].shape
        self.class_names = tuple(builder.info.features[label_key].names)

    def arrays(self, split: str) -> memory.Arrays:
        """A whole split: images uint8 and labels, in the order of the shards."""
        dataset = self.builder.as_dataset(split=split, shuffle_files=False)
        pairs = dataset.map(lambda example: (example[self.image_key], example[self.label_key]))
        batches = list(pairs.batch(1024).as_numpy_iterator())
        images, labels = zip(*batches, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    def parse(self, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The encoded image and the label of a record."""
        example = self.deserialize(serialized)
        return example[self.image_key], example[self.label_key]

    def deserialize(self, serialized: tf.Tensor) -> dict:
        """All features of a record, with the image as it is encoded."""
        decoders = {self.image_key: self.raw}
        return self.builder.info.features.deserialize_example(serialized, decoders=decoders)

    def records(self, split: str) -> shards.Shards:
        """The records of a split, encoded, where they lie."""
        info = self.splits[split]
        if "tfrecord" not in Path(info.file_instructions[0].filename).name:
            raise DataError(
                "Expected data of more than 1 GiB, or to be resized, as TFRecord files. Received: "
                f"{info.file_instructions[0].filename}. Prepare them anew in TFDS' own format."
            )
        return shards.Shards(
            paths=tuple(str(file.filename) for file in info.file_instructions),
            skip=tuple(file.skip for file in info.file_instructions),
            take=tuple(file.take for file in info.file_instructions),
            record_bytes=max(info.num_bytes / info.num_examples, 1),
        )

    @property
    def raw(self):
        """What leaves an image encoded."""
        import tensorflow_datasets as tfds

        return tfds.decode.SkipDecoding()


def _streamed(name, source, splits, shape, augmentation, options) -> Data:
    train, validation, test = (split and source.records(split) for split in splits)
    if test is None:
        train, test = train.cut(memory.TEST_FRACTION)
        if not test.examples:
            raise DataError(
                "Expected 6 examples or more in a file of records, to hold a tenth of them out for "
                f"the test. Received: {name}, of {train.examples} in {len(train.paths)} files. Add "
                "examples, or a test split."
            )
    if validation is None:
        train, validation = train.cut(options.validation_fraction)
    training_crop, evaluation_crop = crops.pair(shape, tuple(source.image_shape) == shape)

    def decode(serialized, seed):
        data, label = source.parse(serialized)
        return training_crop(data, seed), label

    def decode_center(serialized):
        data, label = source.parse(serialized)
        return evaluation_crop(data), label

    return Data(
        name=name,
        input_shape=shape,
        class_names=source.class_names,
        sizes={
            "train": train.examples,
            "validation": validation.examples,
            "test": test.examples,
        },
        train=pipeline.streamed_train(train.shuffled, decode, train.examples),
        validation=pipeline.streamed_evaluation(
            validation.in_order, decode_center, validation.examples
        ),
        test=pipeline.streamed_evaluation(test.in_order, decode_center, test.examples),
        augmentation=augmentation,
        origin=source.builder.info.full_name,
    )


def prepared(name: str, options: Options, also_known: list[str]) -> "Source":
    """A data set of labeled images, prepared if it isn't; arguments and errors as of `load`."""
    builder = open_builder(name, options.data_dir, also_known)
    keys = _keys(name, builder.info)
    if not builder.info.splits:
        prepare.prepare(name, builder, options)
    return Source(builder, *keys)


def splits(name: str, builder, options: Options) -> set[str]:
    """Names of the splits with examples, "train" among them; the set is prepared if it isn't.

    Raises:
        DataError: It can't be prepared, or has no train split.
    """
    if not builder.info.splits:
        prepare.prepare(name, builder, options)
    have = {split for split, info in builder.info.splits.items() if info.num_examples}
    if "train" not in have:
        raise DataError(f"Expected {name} to have a train split. Received: {sorted(have)}.")
    return have


def open_builder(name, data_dir, also_known):
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = name.split("/")[0].split(":")[0]
    folder = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if base not in known and not (base and (folder / base).is_dir()):
        near = difflib.get_close_matches(name, [*also_known, *known], n=3)
        raise DataError(
            f"Expected {', '.join(also_known)} or a data set that TFDS knows. Received: {name!r}. "
            + (f"Did you mean {' or '.join(near)}?" if near else f"None is prepared in {folder}.")
        )
    try:
        return tfds.builder(name, data_dir=data_dir and folder)
    except Exception as error:  # TFDS' own kinds and the data set's share no class
        reason = str(error).partition("\nAvailable datasets")[0]
        raise DataError(f"TFDS can't open {name!r}: {type(error).__name__}: {reason}") from error


def _keys(name, info):
    import tensorflow_datasets as tfds

    features = info.features

    def of_kind(kind):
        found = [key for key, feature in features.items() if isinstance(feature, kind)]
        supervised = [key for key in info.supervised_keys or () if key in found]
        return supervised if len(supervised) == 1 else found

    is_dict = isinstance(features, tfds.features.FeaturesDict)
    images = of_kind(tfds.features.Image) if is_dict else []
    labels = of_kind(tfds.features.ClassLabel) if is_dict else []
    if len(images) != 1 or len(labels) != 1 or features[images[0]].np_dtype != np.uint8:
        kinds = {key: type(feature).__name__ for key, feature in features.items()}
        raise DataError(
            "Expected a data set for image classification, of one uint8 image and one label. "
            f"Received: {name}, of {kinds if is_dict else features}."
        )
    return images[0], labels[0]


def _splits(name, source, options):
    """Names of the training, validation and test split; None for what is held out of train."""
    have = splits(name, source.builder, options)
    validation = "validation" if "validation" in have else None
    if "test" in have and _labeled(source, "test"):
        return "train", validation, "test"
    return "train", None, validation


def _labeled(source, split):
    dataset = source.builder.as_dataset(split=f"{split}[:1]", decoders=None)
    return all(int(example[source.label_key]) >= 0 for example in dataset)


def _shape(source, train, image_size):
    """Shape of the images as they will be, and whether to keep them in memory."""
    height, width, channels = source.image_shape
    size = (image_size, image_size) if image_size else (height, width)
    if None in size:
        size = (crops.DEFAULT_SIZE, crops.DEFAULT_SIZE)
    if channels is None:
        channels = 3
    pixels = size[0] * size[1] * channels
    fits = source.splits[train].num_examples * pixels <= pipeline.IN_MEMORY_BYTES
    return (*size, channels), fits and size == (height, width)
