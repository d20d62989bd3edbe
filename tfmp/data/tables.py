"""Tables of numeric and categorical columns as `tf.data`: embedded, from CSV files, or of TFDS.

Rows become `{"numeric": float32 [batch, columns], "categorical": int32 [batch, columns]}`, as they
are: the model normalizes, so that it takes the same input everywhere. A missing number is NaN. A
category's code is its place among the categories of its column, counted from 1; 0 stands for every
category that the training rows don't have, or have in one row only.

References:
    Street et al. 1993, Nuclear feature extraction for breast tumor diagnosis (`breast_cancer`).
    Efron et al. 2004, Least angle regression, Annals of Statistics 32 (`diabetes`).
"""

import dataclasses
import itertools

import numpy as np

from tfmp.data import pipeline, table_columns, table_files, table_targets, table_tfds
from tfmp.data.base import Data, DataError, Options
from tfmp.data.table_columns import Columns, Task

TEST_FRACTION = 0.2
PREFIX = "csv:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Data):
    """A `Data` of rows. Labels are int32 [batch] of classes, float32 [batch] of a regression.

    Attributes:
        task: "classification" or "regression".
        columns: A `Columns`.
    """

    task: Task
    columns: Columns


def load(
    name: str,
    *,
    target: str | None = None,
    task: str = "auto",
    categorical: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    data_dir: str | None = None,
    manual_dir: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Table:
    """Loads a table; a fifth of the rows is the test set, of classes a fifth of each.

    A set of TFDS with a test split has that.

    Args:
        name: An entry of `DATASETS`, or `csv:FILE`: a file as `tfmp.data.csv_files` reads it. A
            column whose values are all numbers is numeric, every other one categorical; nothing,
            `?`, `NA`, `NaN`, `null` and the like are missing. Or a name that TFDS knows, see
            `tfmp.data.table_tfds`.
        target: Name of the column to predict; of an embedded table its own, of TFDS by default.
        task: "classification", "regression", or "auto": a regression where the target has numbers
            that are not whole, or more than 20 different ones.
        categorical: Names of columns of numbers to take for categories.
        drop: Names of columns to leave out.
        data_dir: Where prepared TFDS data lie; as for `tfmp.data.load`.
        manual_dir: Where files fetched by hand lie; likewise.
        validation_fraction: Share of the other rows held out for validation, in [0, 1).
        seed: Decides what is held out; not the order of training.

    Returns:
        A `Table`.

    Raises:
        DataError: The file or a column can't be used; the message says why.
    """
    try:
        options = Options(data_dir, manual_dir, validation_fraction, seed=seed)
        source = _source(name, target, categorical, drop, options)
    except OSError as error:
        raise DataError(f"Can't read {name}: {error}.") from error
    kept = source.target != ""
    values = {column: x[kept] for column, x in source.columns.items()}
    found = table_targets.find(
        source.target[kept],
        list(itertools.compress(source.lines, kept)),
        source.target_name,
        task,
    )
    labels = found.labels
    test = None if source.test is None else source.test[kept]
    parts = _split(labels, found.task, validation_fraction, seed, test)
    columns = table_columns.fit(values, labels, parts["train"], source.target_name, found.task)
    notes = (*source.notes, *found.notes, *table_columns.notes(columns, values))
    features = table_columns.encode(columns, values)
    if not features:
        raise DataError(
            f"Expected a column beside {source.target_name!r} that tells rows apart. Received: "
            f"{', '.join(f'{k} ({v})' for k, v in columns.left_out.items()) or 'none'}."
        )

    def part(rows):
        return {key: x[rows] for key, x in features.items()}, labels[rows]

    return Table(
        name=name,
        input_shape={key: x.shape[1:] for key, x in features.items()},
        class_names=found.class_names,
        sizes={key: len(rows) for key, rows in parts.items()},
        train=pipeline.in_memory_train(*part(parts["train"])),
        validation=pipeline.in_memory_evaluation(*part(parts["validation"])),
        test=pipeline.in_memory_evaluation(*part(parts["test"])),
        example="row",
        origin=source.origin,
        task=found.task,
        columns=columns,
        notes=notes,
    )


def _source(name, target, categorical, drop, options) -> table_files.Source:
    if name.startswith(PREFIX):
        return table_files.read(name.removeprefix(PREFIX), target, categorical, drop)
    if name not in DATASETS:
        known = [*DATASETS, f"{PREFIX}FILE"]
        return table_tfds.read(name, target, categorical, drop, options, known)
    if target or categorical or drop:
        raise DataError(
            f"--target, --categorical and --drop are for {PREFIX}FILE and sets of TFDS. Received: "
            f"{name}."
        )
    return DATASETS[name]()


def _breast_cancer() -> table_files.Source:
    from sklearn.datasets import load_breast_cancer  # takes a second

    found = load_breast_cancer()
    return table_files.Source(
        columns={str(k): found.data[:, i] for i, k in enumerate(found.feature_names)},
        target=found.target_names[found.target].astype(str),
        target_name="diagnosis",
    )


def _diabetes() -> table_files.Source:
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    columns = {k: found.data[:, i] for i, k in enumerate(found.feature_names)}
    columns["sex"] = columns["sex"].astype(int).astype(str)
    return table_files.Source(
        columns=columns, target=found.target.astype(str), target_name="progression"
    )


DATASETS = {"breast_cancer": _breast_cancer, "diabetes": _diabetes}


def _split(labels, task, validation_fraction, seed, test=None) -> dict[str, np.ndarray]:
    """Row numbers of the parts, ascending; `test` says which rows are the test's, if any does."""
    if len(labels) < 10:
        raise DataError(f"Expected 10 rows with a target or more. Received: {len(labels)}.")
    classes = labels if task == "classification" else np.zeros(len(labels), int)

    def hold_out(rows, fraction, seed):
        keys = np.random.default_rng(seed).random(len(rows))
        kept, held = pipeline.hold_out(classes[rows], keys, fraction)
        return rows[kept], rows[held]

    rows = np.arange(len(labels))
    train, tested = (
        hold_out(rows, TEST_FRACTION, seed) if test is None else (rows[~test], rows[test])
    )
    if not len(train) or not len(tested):
        raise DataError(
            f"Expected rows with a target in train and test. Received: {len(train)} and "
            f"{len(tested)}."
        )
    train, validation = hold_out(train, validation_fraction, seed + 1)
    return {"train": train, "validation": validation, "test": tested}
