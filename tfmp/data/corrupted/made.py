"""Corrupted sets made of any images by the constants of ImageNet-C, and kept on disk."""

import dataclasses
import importlib.metadata

import numpy as np
import tensorflow as tf

from tfmp.data import pipeline
from tfmp.data.base import DataError
from tfmp.data.corrupted import cache, making

DISTRIBUTION, VERSION = "imagecorruptions-imaug", "1.1.5"
LIBRARY = f"{DISTRIBUTION} {VERSION}"
KIND = "ImageNet-C's, for 224 px; on small images harsher than CIFAR-10-C's"
OWN = "elastic_transform, frost, motion_blur and pixelate are the library's own versions"
GRAY = "noise on the gray image; all else on three equal channels, made gray by ITU-R BT.601"
PADDING = "continued to 32 px by their mirror image, which is cut off again"


@dataclasses.dataclass(frozen=True)
class Made:
    """Images, and their corrupted ones on disk.

    Attributes:
        folder: A `cache.Folder`.
        images: [examples, height, width, channels] uint8.
        labels: [examples] int64.
        corruptions: Names.
        severities: Out of 1-5.
    """

    folder: cache.Folder
    images: np.ndarray
    labels: np.ndarray
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]

    @property
    def wanted(self) -> list[tuple[str, int]]:
        """The pairs of corruption and severity."""
        return [(name, severity) for name in self.corruptions for severity in self.severities]

    @property
    def examples(self) -> int:
        """Of each corruption and severity."""
        return len(self.labels)

    def make(self):
        """Makes what is missing.

        Raises:
            TfmpError: The disk is full or can't be written, or a process failed.
        """
        making.make(self.folder, self.images, self.wanted)

    def identity(self, name) -> dict[str, str]:
        """The SHA-256 of a corruption's images, by severity; reads and checks them.

        Raises:
            DataError: A file is damaged.
        """
        return {str(severity): self.folder.check(name, severity) for severity in self.severities}

    def batches(self, name, batch_size) -> tf.data.Dataset:
        """A corruption's images, one severity after the other, as `tfmp.evaluation.predict` takes.

        Args:
            name: The corruption.
            batch_size: Images in a batch.
        """
        shape = self.folder.shape[1:]
        paths = [str(self.folder.file(name, severity)) for severity in self.severities]
        # TensorFlow reads them one after the other and decodes by the batch, without Python.
        records = tf.data.FixedLengthRecordDataset(
            paths,
            int(np.prod(shape)),
            header_bytes=len(self.folder.header),
            footer_bytes=cache.DIGEST_BYTES,
        )
        images = records.batch(batch_size).map(
            lambda data: tf.reshape(tf.io.decode_raw(data, tf.uint8), (-1, *shape)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        labels = tf.data.Dataset.from_tensor_slices(np.tile(self.labels, len(paths)))
        batches = tf.data.Dataset.zip(images, labels.batch(batch_size))
        return pipeline.padded_batches(batches, batch_size)

    def constants(self) -> dict:
        """What the images were made with: a dict of words, numbers and dicts of them."""
        made_with = {pair: self.folder.origin(*pair) for pair in self.wanted}
        versions: list[dict] = []
        for origin in made_with.values():
            versions += [] if origin["versions"] in versions else [origin["versions"]]
        height, width, channels = self.folder.shape[1:]
        return {
            "made_by": LIBRARY,
            "kind": KIND,
            "but": OWN,
            "image_shape": [height, width, channels],
            "padding": PADDING if min(height, width) < 32 else None,
            "gray": GRAY if channels == 1 else None,
            "seed": self.folder.facts["seed"],
            "versions": versions,
            "by_severity": {
                name: origin["constants"][name] for (name, _), origin in made_with.items()
            },
            "folder": str(self.folder.path),
        }


def installed_version() -> str | None:
    """Of the library, or None."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def from_images(images, labels, corruptions, severities, *, name, seed=0, cache_dir=None) -> Made:
    """A corrupted set of some images; `make` makes what of it is not on disk yet.

    Args:
        images: [examples, height, width, channels] uint8, of 1 or 3 channels.
        labels: [examples] integers.
        corruptions: Names, as the library has them.
        severities: Out of 1-5.
        name: The data set's name.
        seed: Decides what is drawn.
        cache_dir: Folder of all sets; None: `tfmp/corrupted` in the user's cache folder.

    Raises:
        DataError: The images have other channels; or some are to be made, and the library is not
            installed.
    """
    if images.shape[-1] not in (1, 3):
        raise DataError(
            f"Expected images of 1 or 3 channels, to corrupt them. Received: {images.shape[-1]}. "
            "Name other --axes."
        )
    folder = cache.folder(images, name, LIBRARY, seed, cache_dir)
    found = Made(folder, images, labels, tuple(corruptions), tuple(severities))
    if folder.missing(found.wanted) and (have := installed_version()) != VERSION:
        raise DataError(
            f"Expected {LIBRARY}, to make corrupted images. Received: {have or 'none'}. Run "
            f"`pip install {DISTRIBUTION}=={VERSION}`, which is the extra `robustness`."
        )
    return found
