"""Images with the class of each of their pixels, as `tf.data`.

`load` gives a `Data` whose labels are masks, [batch, height, width]. To add a data set, write its
loader and add its line to `DATASETS`.
"""

import numpy as np
import tensorflow as tf

from tfmp.data import canvases, crops, from_tfds, mask_folder, memory, pipeline, synthetic
from tfmp.data.base import Data, DataError, Options

# The values 1, 2 and 3 of the trimaps are pet, background and what can't be told, at its border.
# Background becomes 0, which a shifted mask is filled up with.
TRIMAP = (0, 1, 0, 2)
TRIMAP_NAMES = ("background", "pet", "border")


def load(
    name: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    validation_fraction: float = 0.1,
    image_size: int | None = None,
    seed: int = 0,
) -> Data:
    """Loads a data set of images and masks.

    Args:
        name: An entry of `DATASETS`, or `folder:PATH`, see `tfmp.data.mask_folder`.
        data_dir: As for `tfmp.data.load`.
        manual_dir: Likewise.
        validation_fraction: Likewise.
        image_size: Height and width in pixels. Defaults to the set's own, or 224 where images
            differ.
        seed: As for `tfmp.data.load`.

    Returns:
        A `Data` with labels [batch, height, width] int32; what is of no class is -1.

    Raises:
        DataError: If the name is unknown, or its data are absent or damaged.
    """
    kind, _, path = name.partition(":")
    own = kind == "folder" and path
    if not own and name not in DATASETS:
        raise DataError(
            f"Expected a data set of masks out of {', '.join(DATASETS)}, or folder:PATH. "
            f"Received: {name!r}."
        )
    options = Options(data_dir, manual_dir, validation_fraction, image_size, seed)
    try:
        return mask_folder.load(path, options) if own else DATASETS[name](name, options)
    except OSError as error:
        raise DataError(f"Can't read {name}: {error}.") from error


def _pets(name: str, options: Options) -> Data:
    """Oxford's pets of TFDS, each image resized to a square.

    References:
        Parkhi et al. (2012), Cats and Dogs, CVPR.
    """
    source = from_tfds.prepared(name, options, list(DATASETS))
    size = options.image_size or crops.DEFAULT_SIZE
    train, test = source.records("train"), source.records("test")
    train, validation = train.cut(options.validation_fraction)

    def decode(serialized, seed=None):
        del seed  # what is random happens on the device
        example = source.deserialize(serialized)
        image = tf.io.decode_image(example["image"], channels=3, expand_animations=False)
        image, mask = crops.squeezed(image, example["segmentation_mask"], (size, size))
        return image, tf.gather(tf.constant(TRIMAP, tf.int32), tf.cast(mask[..., 0], tf.int32))

    return Data(
        name=name,
        input_shape=(size, size, 3),
        class_names=TRIMAP_NAMES,
        sizes={
            "train": train.examples,
            "validation": validation.examples,
            "test": test.examples,
        },
        train=pipeline.streamed_train(train.shuffled, decode, train.examples),
        validation=pipeline.streamed_evaluation(validation.in_order, decode, validation.examples),
        test=pipeline.streamed_evaluation(test.in_order, decode, test.examples),
        augmentation="crop_flip",
        origin=source.builder.info.full_name,
    )


def _synthetic(name: str, options: Options) -> Data:
    """Random images and masks of as many classes as the pets have, for speed alone."""
    size = options.image_size or crops.DEFAULT_SIZE
    # A pixel of a mask takes four bytes, beside three of the image.
    count = max(min(synthetic.POOL_BYTES // (size * size * 7), synthetic.MOST_EXAMPLES), 64)
    rng = np.random.default_rng(options.seed)

    def draw(examples):
        shape = (examples, size, size)
        images = rng.integers(256, size=(*shape, 3), dtype=np.uint8)
        return images, rng.integers(len(TRIMAP_NAMES), size=shape, dtype=np.int32)

    return memory.from_arrays(
        name,
        train=draw(count),
        validation=draw(count // 8 if options.validation_fraction else 0),
        test=draw(count // 8),
        class_names=TRIMAP_NAMES,
        augmentation="none",
        options=options,
    )


DATASETS = {
    "digit_canvases": canvases.load,
    "oxford_iiit_pet": _pets,
    "synthetic": _synthetic,
}
