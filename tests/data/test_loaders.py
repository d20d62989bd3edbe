"""What every loader promises, held against each of them."""

import numpy as np
import pytest
import tensorflow as tf

from tfmp import data
from tfmp.data import pipeline, synthetic

KINDS = ("digits", "synthetic", "folder", "folder_random_crop", "tfds", "tfds_streamed")


@pytest.fixture(params=KINDS)
def loaded(request, folder_of_images, tiny_tfds, monkeypatch):
    """A data set of each kind of loader."""
    monkeypatch.setattr(synthetic, "POOL_BYTES", 2**21)
    return {
        "digits": lambda: data.load("digits"),
        "synthetic": lambda: data.load("synthetic", image_size=96),
        "folder": lambda: data.load(f"folder:{folder_of_images}"),
        "folder_random_crop": lambda: data.load(f"folder:{folder_of_images}", image_size=70),
        "tfds": lambda: data.load("tiny_images", data_dir=tiny_tfds),
        "tfds_streamed": lambda: data.load("tiny_images", data_dir=tiny_tfds, image_size=12),
    }[request.param]()


def numpy_batches(dataset, count):
    return [tuple(part.numpy() for part in batch) for batch in dataset.take(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def as_bytes(batches):
    return [image.tobytes() for batch in batches for image in batch[0]]


def test_resume_equals_the_tail_of_the_uninterrupted_run(loaded):
    steps = min(loaded.sizes["train"] // 8, 10)
    batch_size = loaded.sizes["train"] // steps
    whole = numpy_batches(loaded.train(batch_size, seed=5), 2 * steps + 3)
    for start in (1, steps, steps + 2):
        resumed = loaded.train(batch_size, seed=5, start_step=start)
        assert_same(numpy_batches(resumed, len(whole) - start), whole[start:])


def test_parts_together_are_the_whole_batch(loaded):
    steps = min(loaded.sizes["train"] // 8, 10)
    whole = numpy_batches(loaded.train(6, seed=5, start_step=1), steps + 2)
    parts = [
        numpy_batches(loaded.train(6, seed=5, start_step=1, part=(i, 3)), steps + 2)
        for i in range(3)
    ]
    for expected, *batch in zip(whole, *parts, strict=True):
        assert_same([expected], [[np.concatenate(x) for x in zip(*batch, strict=True)]])
    with pytest.raises(data.DataError, match="that 4 workers can share evenly"):
        loaded.train(6, seed=5, part=(0, 4))


def test_same_seed_same_sequence_whatever_the_global_seed(loaded):
    tf.random.set_seed(1)
    first = numpy_batches(loaded.train(4, seed=3), 3)
    tf.random.set_seed(2)
    assert_same(numpy_batches(loaded.train(4, seed=3), 3), first)
    assert as_bytes(numpy_batches(loaded.train(4, seed=4), 3)) != as_bytes(first)


def test_batches_have_the_promised_types(loaded):
    images, labels = next(iter(loaded.train(4, seed=0)))
    assert images.shape == (4, *loaded.input_shape)
    assert (images.dtype, labels.dtype) == (tf.uint8, tf.int32)
    assert loaded.train(4, seed=0).element_spec[0].shape == (4, *loaded.input_shape)
    assert loaded.train(4, seed=0).cardinality() == tf.data.INFINITE_CARDINALITY
    assert loaded.augmentation in data.augment.AUGMENTATIONS
    for part in ("validation", "test"):
        images, labels, weights = next(iter(getattr(loaded, part)(4)))
        assert images.shape == (4, *loaded.input_shape)
        assert (images.dtype, labels.dtype, weights.dtype) == (tf.uint8, tf.int32, tf.float32)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_evaluation_gives_each_example_once_in_full_batches(loaded, part):
    size = loaded.sizes[part]
    batch_size = size // 2 + 1
    batches = numpy_batches(getattr(loaded, part)(batch_size), 99)
    assert [len(images) for images, _, _ in batches] == [batch_size] * 2
    weights = np.concatenate([weights for _, _, weights in batches])
    np.testing.assert_array_equal(weights, [1] * size + [0] * (2 * batch_size - size))
    images = np.concatenate([images for images, _, _ in batches])
    assert not images[size:].any() and not batches[1][1][size - batch_size :].any()
    alone = numpy_batches(getattr(loaded, part)(1), 999)
    np.testing.assert_array_equal(np.concatenate([one[0] for one in alone]), images[:size])


@pytest.mark.parametrize("kind", ["digits", "folder", "tfds", "tfds_streamed"])
def test_an_epoch_has_each_example_once_and_the_next_another_order(
    kind, folder_of_images, tiny_tfds
):
    loaded = {
        "digits": lambda: data.load("digits"),
        "folder": lambda: data.load(f"folder:{folder_of_images}"),
        "tfds": lambda: data.load("tiny_images", data_dir=tiny_tfds),
        "tfds_streamed": lambda: data.load("tiny_images", data_dir=tiny_tfds, image_size=12),
    }[kind]()
    size = loaded.sizes["train"]
    epochs = [as_bytes([batch]) for batch in numpy_batches(loaded.train(size, seed=0), 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    held = [
        as_bytes((images[weights > 0],) for images, _, weights in numpy_batches(evaluation, 1))
        for evaluation in (loaded.validation(size), loaded.test(size))
    ]
    if kind != "tfds" and kind != "tfds_streamed":  # their test images repeat numbers of train's
        parts = [set(epochs[0]), *map(set, held)]
        assert len(set.union(*parts)) == sum(map(len, parts)) == sum(loaded.sizes.values())
    else:
        assert len(set(epochs[0]) | set(held[0])) == 50


def test_a_remainder_is_dropped_and_the_next_epoch_begins_anew():
    loaded = data.load("digits", validation_fraction=0)
    assert loaded.sizes == {"train": 1437, "validation": 0, "test": 360}
    assert loaded.validation is None
    batches = numpy_batches(loaded.train(500, seed=0), 4)
    assert_same(numpy_batches(loaded.train(500, seed=0, start_step=2), 2), batches[2:])


@pytest.mark.parametrize(
    ("batch_size", "start_step"), [(0, 0), (100_000, 0), (4, -1)], ids=["zero", "large", "start"]
)
def test_impossible_batches_are_refused(loaded, batch_size, start_step):
    with pytest.raises(data.DataError, match=r"Expected .* Received: -?\d+"):
        loaded.train(batch_size, seed=0, start_step=start_step)


def test_digits_are_scaled_and_split_by_class():
    loaded = data.load("digits")
    assert loaded.input_shape == (8, 8, 1) and loaded.augmentation == "shift"
    images = np.concatenate([images for images, _, _ in loaded.test(360)])
    assert images.max() == 255 and set(np.unique(images)) <= {
        round(value * 255 / 16) for value in range(17)
    }
    labels = np.concatenate([labels for _, labels, _ in loaded.validation(142)])
    assert np.bincount(labels, minlength=10).min() >= 13


def test_what_is_held_out_depends_on_the_seed_of_load_alone():
    def held(seed):
        return as_bytes(numpy_batches(data.load("digits", seed=seed).validation(200), 1))

    assert held(0) == held(0) != held(1)


@pytest.mark.parametrize(
    "wrong", [{"validation_fraction": -0.1}, {"validation_fraction": 1}, {"image_size": 0}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(data.DataError, match=f"{next(iter(wrong))}.*Received"):
        data.load("synthetic", **wrong)


def test_digits_have_one_size():
    with pytest.raises(data.DataError, match="image_size 8"):
        data.load("digits", image_size=16)


@pytest.mark.gpu
def test_to_device_gives_the_same_batches():
    dataset = data.load("digits").train(4, seed=0)
    assert_same(numpy_batches(data.to_device(dataset), 2), numpy_batches(dataset, 2))


def are_page_locked(dataset, folder):
    """Whether MapAndBatch makes them, which allocates such memory; tf.data itself says it."""
    tf.profiler.experimental.start(str(folder))
    next(iter(dataset))
    tf.profiler.experimental.stop()
    (profile,) = folder.rglob("*.xplane.pb")
    return b"MapAndBatch" in profile.read_bytes()


@pytest.mark.parametrize("gpus", [0, 2])
def test_batches_for_a_strategys_gpus_are_the_same_and_page_locked(gpus, monkeypatch, tmp_path):
    source = tf.data.Dataset.range(100).map(lambda i: (tf.fill([4, 2], i), tf.fill([4], i)))
    strategy = tf.distribute.OneDeviceStrategy("/CPU:0")
    with strategy.scope():
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["GPU"] * gpus)
        batches = data.to_device(source)
        monkeypatch.undo()
    assert_same(numpy_batches(batches, 9), numpy_batches(source, 9))
    distributed = strategy.experimental_distribute_dataset(batches)
    assert are_page_locked(distributed, tmp_path) == (gpus > 0)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_pinned_batches_are_the_same_and_fused(dtype, tmp_path):
    source = tf.data.Dataset.range(100).map(lambda i: (tf.fill([3, 2], i), tf.cast(i, dtype)))
    assert_same(numpy_batches(pipeline.pinned(source), 9), numpy_batches(source, 9))
    assert are_page_locked(pipeline.pinned(source), tmp_path)


def test_what_cannot_be_read_is_a_data_error(monkeypatch):
    def unreadable(name, options):
        raise PermissionError(13, "Permission denied", "/some/folder")

    monkeypatch.setitem(data.DATASETS, "digits", unreadable)
    with pytest.raises(data.DataError, match=r"Permission denied.*/some/folder"):
        data.load("digits")


@pytest.mark.parametrize(("given", "kept"), [("float64", "float32"), ("uint8", "int32")])
def test_decoded_labels_keep_their_values(given, kept):
    labels = (np.arange(6) / (4 if given == "float64" else 1)).astype(given)
    source = tf.data.Dataset.from_tensor_slices((np.zeros((6, 2), np.uint8), labels))
    train = pipeline.streamed_train(
        lambda seed, epoch, start: source.skip(start), lambda record, seed: record, 6
    )
    test = pipeline.streamed_evaluation(lambda: source, lambda *record: record, 6)
    found = [next(train(3, seed=0).as_numpy_iterator())[1], next(test(3).as_numpy_iterator())[1]]
    for batch in found:
        np.testing.assert_array_equal(batch, labels[:3])
        assert batch.dtype == kept
