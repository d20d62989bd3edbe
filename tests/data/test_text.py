"""Windows of bytes: what is in them, how a text is cut, and what can't be read."""

import numpy as np
import pytest

from tfmp import data
from tfmp.data import python_reference, text


def load(name, **options):
    return text.load(name, **{"context": 8, **options})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """1,000 bytes that say where they stand, in two digits of 32."""
    path = tmp_path_factory.mktemp("text") / "text.bin"
    path.write_bytes(numbered(1000))
    return path


def numbered(count):
    places = np.arange(count)
    return np.where(places % 2, 32 + places // 2 % 32, places // 64).astype(np.uint8).tobytes()


def batches(dataset, count):
    return [tuple(x.numpy() for x in batch) for batch in dataset.take(count)]


def test_labels_are_the_next_tokens_and_parts_do_not_overlap(file):
    content, found = file.read_bytes(), load(f"text:{file}", validation_fraction=0.1)
    assert found.sizes == {"train": 810 // 8 - 1, "validation": 11, "test": 12}
    assert (found.tokens, found.example, found.class_names) == (8, "window", ())
    assert found.origin.startswith("1,000 bytes, SHA-256 ") and len(found.origin) == 85
    for part, start, end in (("train", 0, 810), ("validation", 810, 900), ("test", 900, 1000)):
        dataset = getattr(found, part)
        dataset = dataset(4, seed=0) if part == "train" else dataset(4)
        for tokens, labels, *weights in batches(dataset, 25 if part == "train" else 3):
            assert tokens.dtype == labels.dtype == np.int32 and tokens.shape == (4, 8)
            np.testing.assert_array_equal(tokens[:, 1:], labels[:, :-1])
            real = weights[0] > 0 if weights else np.ones(4, bool)
            for window in np.concatenate([tokens, labels[:, -1:]], axis=1)[real]:
                place = content.find(window.astype(np.uint8).tobytes(), start)
                assert start <= place <= end - 9
    (last,) = batches(found.validation(11), 1)
    assert last[2].sum() == 11 and bytes(last[0][0].astype(np.uint8)) == content[810:818]


def test_an_epoch_covers_the_text_from_another_place_each_time_and_resumes(file):
    found = load(f"text:{file}", validation_fraction=0)
    assert found.validation is None and found.sizes["validation"] == 0
    steps = data.steps_per_epoch(found.sizes["train"], 10)
    run = batches(found.train(10, seed=3), 3 * steps)
    for start in (1, steps + 2):
        again = batches(found.train(10, seed=3, start_step=start), 3)
        for one, other in zip(run[start:], again, strict=False):
            np.testing.assert_array_equal(one, other)
    firsts = []
    for epoch in range(3):
        windows = np.concatenate([x for x, _ in run[epoch * steps : (epoch + 1) * steps]])
        places = np.sort([file.read_bytes().find(x.astype(np.uint8).tobytes()) for x in windows])
        assert len(set(places)) == len(places) and set(places % 8) == {places[0] % 8}
        firsts.append(places[0] % 8)
    assert len(set(firsts)) > 1
    other = batches(found.train(10, seed=4), 1)
    assert (other[0][0] != run[0][0]).any()


def test_the_reference_of_python_repeats_no_paragraph():
    content = python_reference.text()
    paragraphs = [x.strip() for x in content.decode().split("\n\n")]
    assert 300_000 < len(content) < 700_000 and len(set(paragraphs)) == len(paragraphs)
    found = load("python_reference", context=64)
    assert found.origin.startswith("Python 3.") and f"{len(content):,} bytes" in found.origin


def test_synthetic_tokens_are_of_the_vocabulary():
    tokens, _ = batches(load("synthetic", vocabulary=1000).train(512, seed=0), 1)[0]
    assert tokens.min() >= 0 and 900 < tokens.max() < 1000


@pytest.fixture(scope="module")
def texts_in_tfds(tmp_path_factory):
    """`tiny_texts` of TFDS: training and test texts."""
    import tensorflow_datasets as tfds

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            for number in range(count):
                yield number, {"text": f"text {number:04}"}

    folder = tmp_path_factory.mktemp("tfds")
    TinyTexts(data_dir=folder).download_and_prepare()
    return str(folder)


def test_texts_of_tfds_are_joined(texts_in_tfds, monkeypatch):
    options = {"data_dir": texts_in_tfds, "validation_fraction": 0.1}
    found = load("tiny_texts", **options)
    assert found.sizes == {"train": 270 // 8 - 1, "validation": 29 // 8, "test": 49 // 8}
    assert found.origin == "tiny_texts/1.0.0"
    tokens = batches(found.test(6), 1)[0][0]
    content = bytes(tokens.astype(np.uint8).ravel())
    written = {f"text {n:04}".encode() for n in range(5)}  # TFDS shuffles them
    assert set(content.split(b"\n")[:4]) < written
    monkeypatch.setitem(text.MOST_BYTES, "test", 20)
    assert load("tiny_texts", **options).sizes["test"] == 19 // 8


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("text:/no/such.txt", "Can't read text:/no/such.txt: .*No such file"),
        ("texts", "Expected python_reference, text:FILE, synthetic or a data set .* 'texts'"),
        ("tiny_shakespeare", "isn't prepared in .* and there is no network"),
        ("lm1b", "isn't prepared in .* and there is no network"),
        ("wiki40b/en", "isn't prepared in .* and there is no network"),
        ("mnist", "Expected a data set with a feature 'text'. Received: mnist"),
    ],
)
def test_what_cannot_be_read_says_why_in_a_line(tmp_path, name, match):
    with pytest.raises(data.DataError, match=match) as caught:
        load(name, data_dir=str(tmp_path))
    assert "\n" not in str(caught.value).strip()


def test_a_text_shorter_than_its_windows_says_so(file, tmp_path):
    with pytest.raises(data.DataError, match="train 810, validation 90, test 100"):
        load(f"text:{file}", context=95)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(data.DataError, match="train 0, validation 0, test 0"):
        load(f"text:{tmp_path / 'empty'}")
