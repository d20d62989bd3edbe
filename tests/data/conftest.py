"""Makers of small data sets on disk, and a network that is never there."""

import numpy as np
import pytest
import tensorflow as tf

from tfmp.data import prepare


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Answers for the probe, so that no test reaches out."""
    monkeypatch.setattr(prepare, "network_reachable", lambda url: False)


@pytest.fixture(scope="session")
def write_images():
    """Writes `count` images of random content whose first pixel is their number."""

    def write(folder, count, size=(12, 12), channels=3, kind="png", seed=0):
        folder.mkdir(parents=True, exist_ok=True)
        encode = {"png": tf.io.encode_png, "jpg": tf.io.encode_jpeg}[kind]
        rng = np.random.default_rng(seed)
        for number in range(count):
            pixels = rng.integers(256, size=(*size, channels), dtype=np.uint8)
            pixels[0, 0] = number
            (folder / f"{number:03}.{kind}").write_bytes(encode(pixels).numpy())

    return write


@pytest.fixture(scope="session")
def folder_of_images(tmp_path_factory, write_images):
    """Two classes of 20 and 17 color images of 12x12."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "cat", 20, seed=1)
    write_images(root / "dog", 17, seed=2)
    return root


@pytest.fixture(scope="session")
def tiny_tfds(tmp_path_factory):
    """A folder of prepared TFDS data of gray 10x10 images in 4 classes and 3 shards.

    `tiny_images` has 50 + 12 examples; `tiny_images/unlabeled_test` 50, a validation split of
    12, and a test split whose labels are -1; `tiny_images/train_alone` 50.
    """
    import tensorflow_datasets as tfds

    splits = {
        "plain": {"train": 50, "test": 12},
        "unlabeled_test": {"train": 50, "validation": 12, "test": 8},
        "train_alone": {"train": 50},
    }

    class TinyImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in splits]

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(10, 10, 1)),
                        "label": tfds.features.ClassLabel(names=["a", "b", "c", "d"]),
                        "number": np.int64,
                        "writer": tfds.features.Text(),
                        "score": np.float32,
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            mine = splits[self.builder_config.name]
            return {split: self._generate_examples(split, count) for split, count in mine.items()}

        def _generate_examples(self, split, count):
            labeled = split != "test" or "validation" not in splits[self.builder_config.name]
            for number in range(count):
                image = np.full((10, 10, 1), number, np.uint8)
                yield (
                    number,
                    {
                        "image": image,
                        "label": number % 4 if labeled else -1,
                        "number": number,
                        "writer": f"writer {number // 6}",
                        "score": 0.5,
                    },
                )

    data_dir = tmp_path_factory.mktemp("tfds")
    for name in splits:
        builder = TinyImages(data_dir=data_dir, config=name)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return str(data_dir)
