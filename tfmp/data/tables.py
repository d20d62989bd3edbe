"""Tables of numeric and categorical columns, embedded or from CSV files, as `tf.data`.

Rows become `{"numeric": float32 [batch, columns], "categorical": int32 [batch, columns]}`, as they
are: the model normalizes, so that it takes the same input everywhere. A missing number is NaN. A
category's code is its place among the categories of its column, counted from 1; 0 stands for every
category that the training rows don't have, or have in one row only.

References:
    Street et al. 1993, Nuclear feature extraction for breast tumor diagnosis (`breast_cancer`).
    Efron et al. 2004, Least angle regression, Annals of Statistics 32 (`diabetes`).
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from tfmp.data import pipeline, table_files
from tfmp.data.base import Data, DataError

TEST_FRACTION = 0.2
PREFIX = "csv:"
# Of whole numbers with more values than this the target is one to regress.
MOST_CLASSES = 20
# Deviations, and their reciprocals, are float32 numbers up to here.
LARGEST = 1e37
# Squared errors are float32 numbers, and so is their sum over the rows.
LARGEST_TARGET = 1e15

Task = Literal["classification", "regression"]


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the training rows say about the columns: how a row becomes features.

    Attributes:
        numeric: Names of the columns of the feature "numeric", in their order.
        means: Mean of each, in float64 over the float32 values that are there.
        deviations: Standard deviation of each; above 0.
        with_missing: Whether each has missing values.
        categorical: Categories by the name of the column, in the order of the columns of the
            feature "categorical"; the i-th category's code is i + 1. A missing value is "".
        left_out: Why, by the name of each column that is no feature.
        target: Name of the target.
        target_mean: Mean of the target, of classes 0.
        target_deviation: Standard deviation of the target, of classes 1.
    """

    numeric: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    with_missing: tuple[bool, ...]
    categorical: dict[str, tuple[str, ...]]
    left_out: dict[str, str]
    target: str
    target_mean: float = 0.0
    target_deviation: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Data):
    """A `Data` of rows. Labels are int32 [batch] of classes, float32 [batch] of a regression.

    Attributes:
        task: "classification" or "regression".
        columns: A `Columns`.
        notes: What was done to the table, each a sentence for the user.
    """

    task: Task
    columns: Columns
    notes: tuple[str, ...]


def load(
    name: str,
    *,
    target: str | None = None,
    task: str = "auto",
    categorical: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Table:
    """Loads a table; a fifth of the rows is the test set, of classes a fifth of each.

    Args:
        name: An entry of `DATASETS`, or `csv:FILE`: a file with a line of column names, values
            separated by commas, UTF-8. A column whose values are all numbers is numeric, every
            other one categorical; nothing, `?`, `NA`, `NaN`, `null` and the like are missing.
        target: Name of the column to predict; of an embedded table its own.
        task: "classification", "regression", or "auto": a regression where the target has numbers
            that are not whole, or more than 20 different ones.
        categorical: Names of columns of numbers to take for categories.
        drop: Names of columns to leave out.
        validation_fraction: Share of the other rows held out for validation, in [0, 1).
        seed: Decides what is held out; not the order of training.

    Returns:
        A `Table`.

    Raises:
        DataError: The file or a column can't be used; the message says why.
    """
    try:
        source = _source(name, target, categorical, drop)
    except OSError as error:
        raise DataError(f"Can't read {name}: {error}.") from error
    kept = source.target != ""
    notes = list(source.notes)
    if not kept.all():
        notes.append(f"{np.sum(~kept)} rows have no {source.target_name}, and are left out")
    values = {column: x[kept] for column, x in source.columns.items()}
    task, class_names, labels = _labels(source.target[kept], source.target_name, task)
    parts = _split(labels, task, validation_fraction, seed)
    columns = _fit(values, labels, parts["train"], source.target_name, task)
    notes += _notes(columns, values)
    features = encode(columns, values)
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
        class_names=class_names,
        sizes={key: len(rows) for key, rows in parts.items()},
        train=pipeline.in_memory_train(*part(parts["train"])),
        validation=pipeline.in_memory_evaluation(*part(parts["validation"])),
        test=pipeline.in_memory_evaluation(*part(parts["test"])),
        example="row",
        task=task,
        columns=columns,
        notes=tuple(notes),
    )


def encode(columns: Columns, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features of rows.

    Args:
        columns: A `Columns`.
        values: By the name of the column [rows] float64, NaN where missing, or str.

    Returns:
        `{"numeric": float32 [rows, columns], "categorical": int32 [rows, columns]}`, without what
        has no column.
    """
    features = {}
    if columns.numeric:
        numbers = [values[name].astype(np.float32) for name in columns.numeric]
        features["numeric"] = np.stack(numbers, axis=1)
    if columns.categorical:
        codes = []
        for name, categories in columns.categorical.items():
            known = {category: code for code, category in enumerate(categories, start=1)}
            codes.append([known.get(value, 0) for value in values[name].tolist()])
        features["categorical"] = np.array(codes, np.int32).T
    return features


def _source(name, target, categorical, drop) -> table_files.Source:
    if name.startswith(PREFIX):
        return table_files.read(name.removeprefix(PREFIX), target, categorical, drop)
    if name not in DATASETS:
        raise DataError(f"Expected {', '.join(DATASETS)} or {PREFIX}FILE. Received: {name!r}.")
    if target or categorical or drop:
        raise DataError(
            f"--target, --categorical and --drop are for {PREFIX}FILE. Received: {name}."
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


def _labels(texts, name, task) -> tuple[Task, tuple[str, ...], np.ndarray]:
    """The task, names of the classes, and int32 or float64 labels."""
    numbers = table_files.numbers(texts)
    different = np.unique(texts if numbers is None else numbers)
    if len(different) < 2:
        raise DataError(f"Expected two values or more in {name!r}. Received: {len(different)}.")
    if task == "auto":
        many = numbers is not None and len(different) > MOST_CLASSES
        many |= numbers is not None and bool(np.any(numbers != np.round(numbers)))
        task = "regression" if many else "classification"
    if task == "regression":
        if numbers is None or np.abs(numbers).max() > LARGEST_TARGET:
            received = "text" if numbers is None else f"{np.abs(numbers).max():g}"
            raise DataError(
                f"Expected numbers up to {LARGEST_TARGET:g} in the target {name!r} of a "
                f"regression. Received: {received}."
            )
        return task, (), numbers
    labels = np.searchsorted(different, texts if numbers is None else numbers).astype(np.int32)
    if np.bincount(labels).min() < 3:
        rare = different[np.bincount(labels).argmin()]
        raise DataError(
            f"Expected three rows or more of each class of {name!r}. Received: fewer of {rare!s}. "
            "Leave these rows out, or take --task=regression if it is a number to predict."
        )
    names = different if numbers is None else [f"{number:g}" for number in different]
    return task, tuple(map(str, names)), labels


def _split(labels, task, validation_fraction, seed) -> dict[str, np.ndarray]:
    """Row numbers of the parts, ascending."""
    if len(labels) < 10:
        raise DataError(f"Expected 10 rows with a target or more. Received: {len(labels)}.")
    classes = labels if task == "classification" else np.zeros(len(labels), int)

    def hold_out(rows, fraction, seed):
        keys = np.random.default_rng(seed).random(len(rows))
        kept, held = pipeline.hold_out(classes[rows], keys, fraction)
        return rows[kept], rows[held]

    train, test = hold_out(np.arange(len(labels)), TEST_FRACTION, seed)
    train, validation = hold_out(train, validation_fraction, seed + 1)
    return {"train": train, "validation": validation, "test": test}


def _fit(values, labels, rows, target, task) -> Columns:
    """The `Columns` of the training rows."""
    numeric, categorical, left_out = {}, {}, {}
    for name, column in values.items():
        if column.dtype.kind == "f":
            fitted = _statistics(name, column, rows)
            numeric |= {name: fitted} if fitted else {}
            left_out |= {} if fitted else {name: "one value only in the training rows"}
            continue
        categories, counts = np.unique(column[rows], return_counts=True)
        if len(categories) == 1:
            left_out[name] = "one value only in the training rows"
        elif counts.max() == 1:
            left_out[name] = "no category comes twice in the training rows"
        else:
            categorical[name] = tuple(map(str, categories[counts > 1]))
    means, deviations, with_missing = zip(*numeric.values(), strict=True) if numeric else ((),) * 3
    of_target: dict[str, Any] = {}
    if task == "regression":
        mean, deviation = float(labels[rows].mean()), float(labels[rows].std())
        if deviation * LARGEST_TARGET < 1:
            raise DataError(
                f"Expected a deviation of {1 / LARGEST_TARGET:g} or more in the target {target!r}. "
                f"Received: {deviation:g} in the training rows."
            )
        of_target = {"target_mean": mean, "target_deviation": deviation}
    return Columns(
        tuple(numeric), means, deviations, with_missing, categorical, left_out, target, **of_target
    )


def _statistics(name, column, rows) -> tuple[float, float, bool] | None:
    """Mean, deviation and whether values are missing; None where there are no two values."""
    if (largest := np.nanmax(np.abs(column), initial=0.0)) > LARGEST:
        raise DataError(
            f"Expected numbers up to {LARGEST:g} in the column {name!r}. Received: {largest:g}. "
            f"Change its unit, or leave it out by --drop."
        )
    # What the model will see: float32.
    train = column[rows].astype(np.float32).astype(np.float64)
    there = train[~np.isnan(train)]
    if not len(there) or there.std() * LARGEST < 1:
        return None
    return float(there.mean()), float(there.std()), len(there) < len(train)


def _notes(columns, values):
    """What the user should know of the columns."""
    for name, reason in columns.left_out.items():
        yield f"column {name!r} is left out: {reason}"
    for name in columns.numeric:
        if count := int(np.isnan(values[name]).sum()):
            yield f"column {name!r} misses {count} values: the mean stands for them, with a mark"
    for name in columns.categorical:
        if count := int((values[name] == "").sum()):
            yield f"column {name!r} misses {count} values: a category of their own"
