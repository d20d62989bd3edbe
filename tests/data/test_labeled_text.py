"""Texts with a label: words as tokens, docstrings, tables and TFDS."""

import csv
import zlib

import numpy as np
import pytest

from tfmp import data
from tfmp.data import docstrings, labeled_text


def load(name, **options):
    return labeled_text.load(name, **{"length": 6, "vocabulary": 1000, **options})


def test_tokens_by_hand():
    found = labeled_text.tokens("The cat's\n\tNAP_2!", length=7, vocabulary=100)
    words = ["the", "cat", "'", "s", "nap_2", "!"]
    assert found.tolist() == [1 + zlib.crc32(w.encode()) % 99 for w in words] + [0]
    assert found.dtype == np.int32
    cut = labeled_text.tokens("The cat's nap", length=2, vocabulary=100)
    np.testing.assert_array_equal(cut, found[:2])
    assert not labeled_text.tokens(" ", length=3, vocabulary=100).any()
    assert labeled_text.tokens("ü", length=1, vocabulary=2).tolist() == [1]


@pytest.fixture(scope="module")
def texts():
    return docstrings.load()


def test_no_docstring_and_no_object_is_in_two_parts(texts, monkeypatch):
    found, modules, owners = texts
    assert len(set(modules)) == docstrings.MODULES and len(found) > 2000
    words = [" ".join(text.split()) for text in found]
    assert len(set(words)) == len(words)
    assert all(owner.startswith(f"{m}:") for owner, m in zip(owners, modules, strict=True))
    monkeypatch.setattr(docstrings, "load", lambda: texts)
    loaded = load("docstrings", validation_fraction=0)
    assert sum(loaded.sizes.values()) == len(found)
    is_test = np.array([docstrings.draw(owner) < 0.15 for owner in owners])
    assert loaded.sizes["test"] == is_test.sum() and 0.08 < is_test.mean() < 0.25
    assert not {o for o, t in zip(owners, is_test, strict=True) if t} & {
        o for o, t in zip(owners, is_test, strict=True) if not t
    }
    features, labels, _ = next(loaded.test(4).as_numpy_iterator())
    for row, number in enumerate(np.flatnonzero(is_test)[:4]):
        assert loaded.class_names[labels[row]] == modules[number]
        expected = labeled_text.tokens(found[number], length=6, vocabulary=1000)
        np.testing.assert_array_equal(features[row], expected)
    assert loaded.origin.startswith("Python 3.") and f"{len(found):,} docstrings" in loaded.origin


def test_a_table(tmp_path):
    file = tmp_path / "some.csv"
    lines = [f'"word{n}, and\nmore",{"odd" if n % 2 else "even"}' for n in range(40)]
    file.write_text("\n".join(["text,label", *lines]))
    found = load(f"csv:{file}", validation_fraction=0.2)
    assert found.class_names == ("even", "odd") and sum(found.sizes.values()) == 40
    assert found.sizes["test"] == 4 and found.input_shape == (6,) and found.tokens == 6
    seen = {labeled_text.tokens(f"word{n}", length=1, vocabulary=1000)[0]: n % 2 for n in range(40)}
    features, labels = next(found.train(16, seed=0).as_numpy_iterator())
    assert [seen[x] for x in features[:, 0]] == labels.tolist()


def test_labels_have_no_blanks_around_and_rows_without_are_left_out(tmp_path):
    file = tmp_path / "some.csv"
    labels = ["pos", "pos ", " neg", "neg", "", "  "]
    lines = [f"{n},word{n},{labels[n % 6]}" for n in range(60)]
    file.write_text("\n".join([",text,label", *lines]))
    found = load(f"csv:{file}", validation_fraction=0)
    assert found.class_names == ("neg", "pos") and sum(found.sizes.values()) == 40
    assert "20 rows have no label, and are left out" in found.notes
    assert found.origin.startswith("40 texts, SHA-256 ")
    seen = {labeled_text.tokens(f"word{n}", length=1, vocabulary=1000)[0]: n % 6 for n in range(60)}
    for features, targets, weights in found.test(4).as_numpy_iterator():
        for row, target in zip(features[weights > 0], targets[weights > 0], strict=True):
            assert found.class_names[target] == labels[seen[row[0]]].strip()


@pytest.mark.parametrize("inside", ["\u2028", "\x85", "\f", "\x1c", "\v", " word" * 40_000])
def test_only_ends_of_lines_end_rows_and_a_text_may_be_long(tmp_path, inside):
    file = tmp_path / "some.csv"
    lines = [f"{'ab'[n % 2]},word{n}{inside}so it is" for n in range(30)]
    file.write_text("\n".join(["label,text", *lines]), encoding="utf-8")
    limit = csv.field_size_limit()
    found = load(f"csv:{file}")
    assert sum(found.sizes.values()) == 30 and found.class_names == ("a", "b")
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,lable\na,b", "Expected columns text and label .*'lable'"),
        ("", "Received: nothing"),
        ("text,label\na,b\nc", "Expected 2 values in line 3"),
        ("text,label\na,b\nso dull, and long,b", "line 3 .* Received: 3. A value with a comma"),
        ('text,label\n"a,b\nc,b\nd,e\n', "begins in line 2: unexpected end of data"),
        ('text,label\nc,d\n"a,b\nd,"e"\n', "begins in line 3: ',' expected after"),
        ("text,label,text\na,b,c", "Expected different names .*'text', 'label', 'text'"),
        ("text,label,label\na,b,c", "Expected different names .*'label', 'label'"),
        ("text,label\na,b\nc, ", r"two kinds or more .*'b'"),
        ("text,label\na,b\nc,b", r"two kinds or more .*'b'"),
        ("text,label\nä,b", "in UTF-8"),
    ],
)
def test_what_is_no_table_says_so_in_a_line(tmp_path, content, said):
    file = tmp_path / "some.csv"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(data.DataError, match=said):
        load(f"csv:{file}")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("csv:/no/such.csv", "Can't read csv:/no/such.csv"),
        ("doc", "Expected docstrings, csv:FILE, synthetic or a data set"),
        ("imdb_reviews", "isn't prepared in .* and there is no network"),
        ("ag_news_subset", "isn't prepared in .* and there is no network"),
        ("mnist", "Expected a data set of texts and one label. Received: mnist"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, name, match):
    with pytest.raises(data.DataError, match=match):
        load(name, data_dir=str(tmp_path))


def test_a_class_of_one_text_has_no_test_text(tmp_path):
    file = tmp_path / "some.csv"
    file.write_text("text,label\none,a\ntwo,b\n")
    with pytest.raises(data.DataError, match=r"two examples or more of a class.* of 2 classes"):
        load(f"csv:{file}")
    file.write_text("text,label\none,a\ntwo,b\nthree,b\n")
    found = load(f"csv:{file}")
    assert found.sizes == {"train": 2, "validation": 0, "test": 1}
    assert found.notes == ("no test figure knows of classes without a test example: 'a'",)


def test_texts_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "title": tfds.features.Text(),
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["neg", "pos"]),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30), "test": self._generate_examples(6)}

        def _generate_examples(self, count):
            for n in range(count):
                yield n, {"title": f"t{n % 2}", "text": "words", "label": n % 2}

    TinyReviews(data_dir=tmp_path).download_and_prepare()
    found = load("tiny_reviews", data_dir=str(tmp_path))
    assert found.class_names == ("neg", "pos") and found.sizes["test"] == 6
    features, labels, _ = next(found.test(6).as_numpy_iterator())
    for row, label in zip(features, labels, strict=True):
        pair = labeled_text.tokens(f"words t{label}", length=2, vocabulary=1000)
        assert set(row[:2]) == set(pair) and not row[2:].any()
    assert found.origin == "tiny_reviews/1.0.0"
