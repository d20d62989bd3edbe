"""Tables of tensorflow-datasets: their features as columns, their test part, mistakes."""

import numpy as np
import pytest
import tensorflow as tf

from tfmp import data
from tfmp.data import table_tfds, tables

ROWS = {"train": 40, "test": 12}


def row(i):
    """A row whose numbers say which one it is."""
    return {
        "passenger": {
            "age": float("nan") if i % 10 == 3 else 20.5 + i,
            "cabin": ("", "A", "B")[i % 3],
            "adult": i % 2 == 0,
        },
        "port": {"name": ("x", "y")[i % 2], "cabin": i % 4},
        "lags": [i, -i],
        "class": ("first", "second", "third")[i % 3],
        "fare": i * 1.5,
        "survived": i % 2,
    }


def odd_row(i):
    """A row of what is no plain number, text or class."""
    return {
        "x": i,
        "rate": np.inf if i == 3 else i / 2,
        "grade": "none yet" if i % 10 == 3 else str(i % 3),
        "known": -1 if i % 10 == 3 else i % 2,
        "said": ("left", "None", "right")[i % 3],
        "share": i % 3 / 10,
        "key": np.int64(2**60 + i % 3),
    }


def clip(_):
    return {"clip": np.zeros((2, 3), np.float32), "label": 0}


def write(place, called, features, example, splits, supervised=None):
    """Prepares a set of that name as TFDS does: of each split the first examples."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        name = called

        def _info(self):
            known = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=known, supervised_keys=supervised)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in splits.items()}

        def _generate_examples(self, count):
            yield from ((i, example(i)) for i in range(count))

    Builder(data_dir=place).download_and_prepare()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with `cruise`, of two splits, `lone` and `odd`, of one, and `clips`, no table."""
    from tensorflow_datasets import features as f

    columns = {
        "passenger": {"age": np.float32, "cabin": f.Text(), "adult": np.bool_},
        "port": {"name": f.Text(), "cabin": np.int64},
        "lags": f.Tensor(shape=(2,), dtype=np.int32),
        "class": f.ClassLabel(names=["first", "second", "third"]),
        "fare": np.float64,
        "survived": np.int32,
    }
    odd = {
        "x": np.float32,
        "rate": np.float64,
        "grade": f.Text(),
        "known": f.ClassLabel(names=["no", "yes"]),
        "said": f.Text(),
        "share": np.float32,
        "key": np.int64,
    }
    clips = {"clip": f.Tensor(shape=(2, 3), dtype=np.float32), "label": np.int32}
    place = tmp_path_factory.mktemp("tfds")
    write(place, "cruise", columns, row, {**ROWS, "extra": 2}, ("passenger", "survived"))
    write(place, "lone", columns, row, {"train": 50})
    write(place, "clips", clips, clip, {"train": 2})
    write(place, "odd", odd, odd_row, {"train": 30})
    return place


def load(prepared, name="cruise", **options):
    return tables.load(name, data_dir=str(prepared), **options)


def numbers(table, part):
    """The rows of a part, by their fares, with their labels."""
    features, labels, weights = next(getattr(table, part)(64).as_numpy_iterator())
    place = list(table.columns.numeric).index("fare")
    kept = weights > 0
    return (features["numeric"][kept, place] / 1.5).round().astype(int), labels[kept], features


def test_columns_are_features_and_the_test_part_is_the_sets_own(prepared):
    table = load(prepared, validation_fraction=0.25)
    assert table.task == "classification" and table.class_names == ("0", "1")
    assert table.sizes == {"train": 30, "validation": 10, "test": 12}
    assert list(table.columns.numeric) == ["fare", "lags_0", "lags_1", "age", "port/cabin"]
    assert list(table.columns.categorical) == ["class", "adult", "passenger/cabin", "name"]
    rows, labels, features = numbers(table, "test")
    assert sorted(rows) == list(range(12))
    np.testing.assert_array_equal(labels, rows % 2)
    known = features["numeric"][: len(rows)]
    np.testing.assert_array_equal(known[:, 1], rows)
    np.testing.assert_array_equal(known[:, 2], -rows)
    np.testing.assert_array_equal(np.isnan(known[:, 3]), rows % 10 == 3)
    assert "the split 'extra' is not read" in table.notes
    assert table.origin == "cruise/1.2.0"


def test_a_set_without_test_part_holds_a_fifth_out(prepared):
    table = load(
        prepared, "lone", target="class", drop=("lags_0", "name"), categorical=("port/cabin",)
    )
    assert table.class_names == ("first", "second", "third")
    assert table.sizes["test"] == 9 and sum(table.sizes.values()) == 50
    assert table.columns.categorical["port/cabin"] == ("0", "1", "2", "3")
    assert not {"lags_0", "name", "class"} & {*table.columns.numeric, *table.columns.categorical}
    assert load(prepared, "lone", target="fare").task == "regression"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lone", {}, "needs --target, one of class, fare, lags, adult, age"),
        ("clips", {}, r"clips, whose clip are Tensor of \(2, 3\)"),
        ("cruise", {"target": "cabin"}, "--target: expected a column of cruise.* Did you mean"),
        ("cruise", {"drop": ("lags",)}, "--drop: expected a column of cruise"),
        ("cruise", {"drop": ("survived",)}, "other columns than the target 'survived'"),
        ("odd", {"target": "rate"}, "finite numbers in the target 'rate'. Received: 'inf'. Mend"),
        (
            "odd",
            {"target": "grade", "task": "regression", "drop": ("rate",)},
            "Received: 'none yet'. Mend the cell",
        ),
        ("cruises", {}, "breast_cancer, diabetes, csv:FILE or a data set that TFDS knows"),
    ],
)
def test_mistakes(prepared, name, options, said):
    with pytest.raises(data.DataError, match=said):
        load(prepared, name, **options)


def test_a_target_of_numbers_and_a_word_is_of_classes(prepared):
    table = load(prepared, "odd", target="grade", drop=("rate",))
    assert table.class_names == ("0", "1", "2", "none yet")
    assert "'grade' is of classes, since 'none yet' is no number" in table.notes


def test_rows_without_a_target_are_said(prepared):
    table = load(prepared, "odd", target="known", drop=("rate",))
    assert sum(table.sizes.values()) == 27
    assert "3 rows have no known (nothing in 3), and are left out" in table.notes
    table = load(prepared, "odd", target="said", drop=("rate",))
    assert table.class_names == ("left", "right") and sum(table.sizes.values()) == 20
    assert "10 rows have no said ('None' in 10), and are left out" in table.notes


def test_numbers_as_texts_have_their_own_digits(prepared):
    keys = tuple(str(2**60 + i) for i in range(3))
    table = load(prepared, "odd", target="key", drop=("rate",), categorical=("share",))
    assert table.class_names == keys
    assert table.columns.categorical["share"] == ("0", "0.1", "0.2")
    table = load(prepared, "odd", target="known", drop=("rate",), categorical=("key",))
    assert table.columns.categorical["key"] == keys


def test_a_number_of_a_vector_and_a_feature_of_one_name_are_refused():
    class Builder:
        def as_dataset(self, **_):
            return tf.data.Dataset.from_tensor_slices({"x": [[1, 2]], "x_0": [3]})

    features = {name: ((name,), None) for name in ("x", "x_0")}
    with pytest.raises(data.DataError, match="'x_0', a number of 'x' and a feature of its own"):
        table_tfds._columns(Builder(), "train", features)
