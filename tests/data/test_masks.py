"""Images with masks: the canvases, Oxford's pets as TFDS has them, and mistakes."""

import numpy as np
import pytest

from tfmp import data
from tfmp.data import canvases, masks


@pytest.fixture(scope="module")
def loaded():
    return masks.load("digit_canvases")


def test_canvases_are_what_the_seed_says(loaded):
    assert loaded.sizes == canvases.CANVASES and loaded.input_shape == (32, 32, 1)
    images, labels, weights = next(loaded.test(8).as_numpy_iterator())
    assert images.shape == (8, 32, 32, 1) and images.dtype == np.uint8
    assert labels.shape == (8, 32, 32) and labels.dtype == np.int32 and weights.all()
    again = next(masks.load("digit_canvases").test(8).as_numpy_iterator())
    np.testing.assert_array_equal(images, again[0])
    other = next(masks.load("digit_canvases", seed=1).test(8).as_numpy_iterator())
    assert (images != other[0]).any()
    assert set(np.unique(labels)) <= set(range(11)) and len(loaded.class_names) == 11
    # Ink is bright and noise is not.
    assert images[labels > 0].mean() > images[labels == 0].mean() + 50


def test_no_digit_is_in_two_splits():
    rows = canvases.split(0.1)
    assert [len(rows[part]) for part in canvases.CANVASES] == [1293, 144, 360]
    np.testing.assert_array_equal(np.concatenate(list(rows.values())), np.arange(1797))
    without = masks.load("digit_canvases", validation_fraction=0.0)
    assert without.validation is None and without.sizes["validation"] == 0


def test_a_digit_lies_where_its_mask_is():
    digit = np.zeros((1, 8, 8))
    digit[0, 2:5, 3] = 16
    images, labels = canvases.compose(digit, np.array([7]), 4, np.random.default_rng(0))
    assert set(np.unique(labels)) == {0, 8}
    for image, mask in zip(images[..., 0], labels, strict=True):
        assert ((image > 110) == (mask > 0)).mean() > 0.99


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder with 12 and 5 pets as TFDS prepares them: image i is a square of gray 10 i."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.oxford_iiit_pet import oxford_iiit_pet_dataset_builder

    theirs = oxford_iiit_pet_dataset_builder.Builder

    class OxfordIiitPet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = theirs.VERSION
        name = "oxford_iiit_pet"

        def _info(self):
            features = tfds.builder("oxford_iiit_pet", data_dir=folder).info.features
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(12), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            for number in range(count):
                trimap = np.full((20, 30, 1), 2, np.uint8)
                trimap[:, 10:20] = 1
                trimap[:, 20:22] = 3
                yield (
                    number,
                    {
                        "image": np.full((20, 30, 3), 10 * number, np.uint8),
                        "segmentation_mask": trimap,
                        "label": number % 37,
                        "species": number % 2,
                        "file_name": str(number),
                        "head_bbox": tfds.features.BBox(0.0, 0.0, 0.0, 0.0),
                    },
                )

    folder = tmp_path_factory.mktemp("tfds")
    OxfordIiitPet(data_dir=folder).download_and_prepare()
    return str(folder)


def test_pets_have_their_trimaps(pets):
    loaded = masks.load("oxford_iiit_pet", data_dir=pets, image_size=30, validation_fraction=0.25)
    assert loaded.sizes == {"train": 9, "validation": 3, "test": 5}
    assert loaded.class_names == ("background", "pet", "border")
    images, labels, weights = next(loaded.test(8).as_numpy_iterator())
    assert images.shape == (8, 30, 30, 3) and weights.sum() == 5
    row = np.repeat([0, 1, 2, 0], [10, 10, 2, 8])  # 2, 1, 3, 2 of the trimap
    np.testing.assert_array_equal(labels[:5], np.broadcast_to(row, (5, 30, 30)))
    assert sorted(images[:5, 0, 0, 0]) == [0, 10, 20, 30, 40]
    images, labels = next(loaded.train(4, seed=0).as_numpy_iterator())
    assert labels.shape == (4, 30, 30) and labels.dtype == np.int32


def test_synthetic_masks_and_mistakes(pets):
    loaded = masks.load("synthetic", image_size=16, validation_fraction=0.0)
    assert next(iter(loaded.train(4, seed=0)))[1].shape == (4, 16, 16)
    with pytest.raises(data.DataError, match=r"masks out of digit_canvases, .*Received: 'cifar10'"):
        masks.load("cifar10")
    with pytest.raises(data.DataError, match="image_size 32 or None"):
        masks.load("digit_canvases", image_size=64)
    with pytest.raises(data.DataError, match="oxford_iiit_pet isn't prepared"):
        masks.load("oxford_iiit_pet", data_dir=f"{pets}/nowhere")
