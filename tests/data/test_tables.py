"""Tables: kinds of columns, missing values, what the training rows decide, and users' mistakes."""

import tracemalloc

import numpy as np
import pytest

from tfmp.data import DataError, table_columns, tables

HEADER = "size,city,flat,id,mixed,price\n"


def write(folder, text, name="table.csv"):
    (folder / name).write_text(text)
    return f"csv:{folder / name}"


def examples(dataset):
    """Features and labels of all rows of an evaluation, without the padding."""
    batches = [
        ({key: x[weights > 0] for key, x in features.items()}, labels[weights > 0])
        for features, labels, weights in dataset.as_numpy_iterator()
    ]
    features, labels = zip(*batches, strict=True)
    joined = {key: np.concatenate([x[key] for x in features]) for key in features[0]}
    return joined, np.concatenate(labels)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """120 rows; row i has the size i + 0.5, unless it is missing."""
    rows = [
        f"{'' if i % 10 == 3 else i + 0.5},{['Oslo', 'Rome', '?'][i % 3]},7,n{i},"
        f"{'abc' if i == 5 else i},{1000 + i / 4}"
        for i in range(120)
    ]
    rows.insert(50, "1,Oslo,7,n,1,NA")
    rows.insert(60, "")
    name = write(tmp_path_factory.mktemp("table"), HEADER + "\n".join(rows))
    return tables.load(name, target="price", drop=("mixed",))


def test_kinds_of_columns_are_found_and_what_is_done_is_said(table):
    assert (table.task, table.class_names, table.example) == ("regression", (), "row")
    assert table.input_shape == {"numeric": (1,), "categorical": (1,)}
    assert table.sizes == {"train": 86, "validation": 10, "test": 24}
    columns = table.columns
    assert columns.numeric == ("size",) and columns.with_missing == (True,)
    assert columns.categorical == {"city": ("", "Oslo", "Rome")}
    assert set(columns.left_out) == {"flat", "id"}
    said = "\n".join(table.notes)
    for words in (
        "1 rows have no price",
        "'flat' is left out: one value",
        "'id' is left out: no category comes twice",
        "'size' misses 12 values",
        "'city' misses 40 values",
    ):
        assert words in said


def test_rows_stay_together_and_the_training_rows_alone_decide(table):
    parts = [examples(part(16)) for part in (table.validation, table.test)]
    features, labels = next(table.train(86, seed=0).as_numpy_iterator())
    seen = []
    for part, targets in [*parts, (features, labels)]:
        rows = np.round((targets - 1000) * 4).astype(int)
        seen += rows.tolist()
        expected = np.where(rows % 10 == 3, np.nan, rows + 0.5)
        np.testing.assert_array_equal(part["numeric"][:, 0], expected.astype(np.float32))
        np.testing.assert_array_equal(part["categorical"][:, 0], np.array([2, 3, 1])[rows % 3])
    assert sorted(seen) == list(range(120))
    sizes = features["numeric"]
    assert table.columns.means[0] == pytest.approx(np.nanmean(sizes), rel=1e-6)
    assert table.columns.deviations[0] == pytest.approx(np.nanstd(sizes), rel=1e-6)
    assert table.columns.target_mean == pytest.approx(labels.mean(), rel=1e-6)
    assert table.columns.target_deviation == pytest.approx(labels.std(), rel=1e-5)


def test_categories_that_training_does_not_know_share_a_code(table):
    values = {"size": np.array([1e9, np.nan]), "city": np.array(["Paris", "Rome"])}
    features = table_columns.encode(table.columns, values)
    assert features["categorical"].tolist() == [[0], [3]]
    assert features["numeric"].dtype == np.float32 and features["categorical"].dtype == np.int32


def test_numbers_are_categories_on_demand_and_a_stray_text_is_said(tmp_path):
    rows = "".join(f"{i % 7},{'bad' if i == 4 else i % 5},{'ab'[i % 2]}\n" for i in range(70))
    name = write(tmp_path, "a,b,y\n" + rows)
    found = tables.load(name, target="y", categorical=("a",))
    assert list(found.columns.categorical) == ["a", "b"] and not found.columns.numeric
    assert found.input_shape == {"categorical": (2,)}
    assert found.class_names == ("a", "b")
    assert "column 'b' is categorical, since 'bad' in line 6 is no number" in found.notes
    assert found.columns.categorical["b"] == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(
    ("values", "task", "names"),
    [
        ([3, 1, 2], "classification", ("1", "2", "3")),
        ([10, 9, 100], "classification", ("9", "10", "100")),
        ([0.5, 1, 2], "regression", ()),
        (range(21), "regression", ()),
        (["b", "a"], "classification", ("a", "b")),
    ],
)
def test_the_target_says_the_task(tmp_path, values, task, names):
    rows = "".join(f"{i},{values[i % len(values)]}\n" for i in range(84))
    found = tables.load(write(tmp_path, "x,y\n" + rows), target="y")
    assert (found.task, found.class_names) == (task, names)
    if task == "classification":
        features, labels = examples(found.test(8))
        rows = features["numeric"][:, 0].astype(int)
        assert [names[i] for i in labels] == [str(values[row % len(values)]) for row in rows]
        assert labels.dtype == np.int32
        assert max(np.bincount(labels)) - min(np.bincount(labels)) <= 1


def test_embedded_tables():
    cancer, diabetes = tables.load("breast_cancer"), tables.load("diabetes")
    assert cancer.sizes == {"train": 410, "validation": 46, "test": 113}
    assert cancer.class_names == ("benign", "malignant")
    assert cancer.input_shape == {"numeric": (30,)}
    assert diabetes.sizes == {"train": 319, "validation": 35, "test": 88}
    assert diabetes.input_shape == {"numeric": (9,), "categorical": (1,)}
    features, labels = examples(diabetes.test(32))
    assert features["numeric"][:, 0].min() >= 19 and labels.max() > 200  # years, not deviations


ROWS = "".join(f"{i},{i % 2}\n" for i in range(30))


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("x,y\n" + ROWS, {}, "needs --target, one of x, y"),
        ("x,price\n" + ROWS, {"target": "prize"}, "Did you mean 'price'"),
        ("x,y\n" + ROWS, {"target": "y", "drop": ("z",)}, "--drop: expected a column"),
        ("x,y\n" + ROWS, {"target": "y", "categorical": ("y",)}, "other columns than the target"),
        ("x,y\n" + ROWS, {"target": "y", "drop": ("x",)}, "Expected a column beside 'y'"),
        ("x;y\n" + ROWS, {"target": "y"}, "separated by commas.*';' in their place"),
        ("x,y\n1,2\n3\n", {"target": "y"}, "Expected 2 values in line 3 .* Received: 1"),
        ("x,x\n" + ROWS, {"target": "x"}, "Expected different names"),
        ("", {"target": "x"}, "Expected different names"),
        ("x,y\n", {"target": "y"}, "its first line alone"),
        ('x,y\n"1,2\n', {"target": "y"}, "begins in line 2: unexpected end"),
        ("x,y\n1,2\n1,2,3\n", {"target": "y"}, "line 3 .* comma needs double quotes"),
        ("\nx,y\n\n1,2\n3\n", {"target": "y"}, "Expected 2 values in line 5"),
        ("x,,y\n1,,2\n", {"target": "y"}, "Expected different names"),
        (",,\nx,z,y\n1,2,3\n", {"target": "y"}, "Expected different names .* Received: '', ''"),
        ("x,y\n" + "inf,1\n" + ROWS, {"target": "y"}, "finite numbers .* 'inf' in line 2"),
        ("x,y\n" + "1e38,1\n" + ROWS, {"target": "y"}, "up to 1e\\+37 in the column 'x'"),
        ("x,y\n" + ROWS, {"target": "x", "task": "classification"}, "three rows or more"),
        ("x,y\n" + "1,1e16\n" + ROWS, {"target": "y", "task": "regression"}, "up to 1e\\+15"),
        (
            "x,y\n" + ROWS.replace(",", ",a"),
            {"target": "y", "task": "regression"},
            "'a0' in line 2",
        ),
        ("x,y\n" + "1,1\n" * 20, {"target": "y"}, "two values or more in 'y'"),
        ("x,y\n" + "1,1\n2,0\n" * 4, {"target": "y"}, "10 rows"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, options, said):
    with pytest.raises(DataError, match=said):
        tables.load(write(tmp_path, text), **options)


def of_targets(folder, values, rows=84, **options):
    """A table whose target repeats these texts."""
    lines = "".join(f"{i},{values[i % len(values)]}\n" for i in range(rows))
    return tables.load(write(folder, "x,y\n" + lines), target="y", **options)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["1000003", "1000001", "1000002"], ("1000001", "1000002", "1000003")),
        (["9007199254740993", "9007199254740992"], ("9007199254740992", "9007199254740993")),
        (["1_1", "11", "1_2"], ("11", "1_1", "1_2")),
        (["0", "1", "0.0", "1."], ("0", "1")),
        (["7", "-1", "10"], ("-1", "7", "10")),
        (["8", "007", "7"], ("007", "7", "8")),
        ([" yes", "no "], ("no", "yes")),
    ],
)
def test_classes_are_the_texts_of_the_file(tmp_path, values, names):
    found = of_targets(tmp_path, values)
    assert (found.task, found.class_names) == ("classification", names)
    features, labels = examples(found.test(8))
    texts = [values[int(x) % len(values)].strip() for x in features["numeric"][:, 0]]
    written = {"0.0": "0", "1.": "1"}
    assert [names[i] for i in labels] == [written.get(text, text) for text in texts]
    said = [note for note in found.notes if "told apart by their text" in note]
    assert ["'007' and '7'" in note for note in said] == [True] * ("007" in names)


def test_versions_are_no_numbers_to_shorten(tmp_path):
    found = of_targets(tmp_path, ["3.1", "3.10", "3.9"], task="classification")
    assert found.class_names == ("3.1", "3.10", "3.9")


def test_a_column_with_underscores_is_of_texts(tmp_path):
    values = ["2020_01", "2020_02", "2_02001"]
    rows = "".join(f"{i},{values[i % 3]},{'pn'[i % 2]}\n" for i in range(60))
    found = tables.load(write(tmp_path, "x,code,y\n" + rows), target="y")
    assert found.columns.categorical == {"code": tuple(values)}


@pytest.mark.parametrize("text", ["nan", "-nan", "+NaN", "nan(0x8000000000000)", "-nan(ind)"])
@pytest.mark.parametrize(
    ("values", "task"),
    [(["0", "1"], "classification"), (["0.5", "1"], "regression"), (["a", "b"], "classification")],
)
def test_no_number_is_a_missing_value_however_it_is_written(tmp_path, text, values, task):
    found = of_targets(tmp_path, [*values * 5, text, text], 120)
    assert found.task == task and sum(found.sizes.values()) == 100
    assert np.isfinite(examples(found.test(8))[1]).all()
    assert f"20 rows have no y ('{text}' in 20), and are left out" in found.notes
    rows = "".join(f"{text if i < 8 else i},{'pn'[i % 2]}\n" for i in range(60))
    found = tables.load(write(tmp_path, "x,y\n" + rows), target="y")
    assert found.columns.numeric == ("x",)
    assert any("'x' misses 8 values" in note for note in found.notes)


def test_a_class_that_reads_as_missing_is_asked_about(tmp_path):
    said = "target 'y'. Received: 'None' in 28 rows, .* Empty these cells, .* or rename the class"
    with pytest.raises(DataError, match=said):
        of_targets(tmp_path, ["None", "Insomnia", "Apnea"])
    with pytest.raises(DataError, match="'None' in 42 rows"):
        of_targets(tmp_path, ["None", "Insomnia"])
    found = of_targets(tmp_path, ["a", "b"] * 41 + ["NA", ""])
    assert found.class_names == ("a", "b")
    assert "2 rows have no y ('NA' in 1, nothing in 1), and are left out" in found.notes
    found = of_targets(tmp_path, ["1", "2", "None", "?"])
    assert found.class_names == ("1", "2")
    assert "42 rows have no y ('None' in 21, '?' in 21), and are left out" in found.notes


@pytest.mark.parametrize("text", ["inf", "-Infinity", "1e400"])
@pytest.mark.parametrize("values", [["0", "1"], ["0.5", "1.5"]])
def test_infinite_targets_are_refused(tmp_path, text, values):
    with pytest.raises(DataError, match=f"finite numbers in the target 'y'.*'{text}' in line 11"):
        of_targets(tmp_path, [*values * 4, "", text, *values * 10])


@pytest.mark.parametrize("text", ["12 EUR", '"1,234"'])
def test_one_cell_that_is_no_number_is_named(tmp_path, text):
    values = [f"{i / 7:.3f}" for i in range(84)]
    values[30:34] = ["NA", text, "", "NA"]
    cell = text.strip('"')
    with pytest.raises(
        DataError, match=f"mend or empty that cell: 'y' .* '{cell}' in line 33 is no"
    ):
        of_targets(tmp_path, values)
    with pytest.raises(
        DataError, match=f"Expected numbers, such as .*'{cell}' in line 33. Mend the cell"
    ):
        of_targets(tmp_path, values, task="regression")
    found = of_targets(tmp_path, ["0", "1", "2", "more"])
    assert found.class_names == ("0", "1", "2", "more")
    assert "'y' is of classes, since 'more' in line 5 is no number" in found.notes


def test_a_target_that_float32_rounds_away_is_refused(tmp_path):
    random = np.random.default_rng(0)
    values = [f"{1e9 + 3 * a:.3f}" for a in random.normal(size=84)]
    with pytest.raises(
        DataError, match=r"100 times the distance .* and 64 between .* Subtract 1000000000 "
    ):
        of_targets(tmp_path, values)
    stamps = [str(1_700_000_000 + x) for x in random.integers(600, size=84)]
    with pytest.raises(DataError, match=r"and 128 between .* Subtract 1700000\d\d\d from it"):
        of_targets(tmp_path, stamps)
    found = of_targets(tmp_path, [str(float(value) - 1e9) for value in values])
    assert found.columns.target_deviation == pytest.approx(3, rel=0.3)
    for stamp in (1_700_000_000, 0):
        days = [str(stamp + 86400 * x) for x in random.integers(600, size=84)]
        assert of_targets(tmp_path, days).task == "regression"


def test_one_long_text_takes_its_own_room_only(tmp_path):
    rows = [f"{i},{'w' * 100_000 if i == 3 else i % 7},{'pn'[i % 2]}" for i in range(1000)]
    name = write(tmp_path, "a,comment,y\n" + "\n".join(rows))
    tracemalloc.start()
    try:
        found = tables.load(name, target="y")
        assert tracemalloc.get_traced_memory()[1] < 40e6  # all of this length would take 400 MB
    finally:
        tracemalloc.stop()
    assert found.columns.categorical == {"comment": tuple("0123456")}
    assert any("since 'wwww" in note and len(note) < 150 for note in found.notes)


def test_the_index_of_pandas_is_left_out(tmp_path):
    rows = "".join(f"{i},{i / 2},{'pn'[i % 2]}\n" for i in range(60))
    found = tables.load(write(tmp_path, "\n ,a,y\n" + rows), target="y")
    assert found.columns.numeric == ("a",) and not found.columns.left_out
    assert "the first column has no name, and is left out" in found.notes


def test_other_mistakes(tmp_path):
    with pytest.raises(
        DataError, match="breast_cancer, diabetes, csv:FILE or a data set that TFDS"
    ):
        tables.load("no_table")
    with pytest.raises(DataError, match="are for csv:FILE"):
        tables.load("diabetes", target="age")
    with pytest.raises(DataError, match=r"Can't read csv:.*No such file"):
        tables.load(f"csv:{tmp_path}/none.csv", target="y")
    (tmp_path / "latin.csv").write_bytes(b"x,y\n\xe4,1\n")
    with pytest.raises(DataError, match="in UTF-8"):
        tables.load(f"csv:{tmp_path}/latin.csv", target="y")
