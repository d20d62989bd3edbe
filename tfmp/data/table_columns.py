"""Columns of a table: what the training rows say about them, and how a row becomes features."""

import dataclasses
from typing import Any, Literal

import numpy as np

from tfmp.data.base import DataError

# Deviations, and their reciprocals, are float32 numbers up to here.
LARGEST = 1e37
# Squared errors are float32 numbers, and so is their sum over the rows.
LARGEST_TARGET = 1e15
# Labels are float32; where these lie further apart, rounding is part of the target that is learned.
LARGEST_SPACING = 0.01  # of the target's deviation

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


def fit(values, labels, rows, target, task) -> Columns:
    """What the training rows say.

    Args:
        values: By the name of the column [rows] float64, NaN where missing, or str.
        labels: [rows] of the target.
        rows: Numbers of the training rows.
        target: Name of the target.
        task: A `Task`.

    Returns:
        A `Columns`.

    Raises:
        DataError: Numbers that float32 can't be trained on.
    """
    numeric: dict[str, tuple[float, float, bool]] = {}
    categorical: dict[str, tuple[str, ...]] = {}
    left_out: dict[str, str] = {}
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
        if (spacing := float(np.spacing(np.float32(abs(mean))))) > LARGEST_SPACING * deviation:
            raise DataError(
                f"Expected a target whose deviation is {1 / LARGEST_SPACING:g} times the distance "
                f"of float32 numbers of its size or more. Received: {target!r}, with a deviation "
                f"of {deviation:.4g}, and {spacing:.4g} between float32 numbers near its mean. "
                f"Subtract {mean:.10g} from it in the file, and add that to predictions."
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


def notes(columns, values):
    """What the user should know of the columns, as sentences; arguments as of `encode`."""
    for name, reason in columns.left_out.items():
        yield f"column {name!r} is left out: {reason}"
    for name in columns.numeric:
        if count := int(np.isnan(values[name]).sum()):
            yield f"column {name!r} misses {count} values: the mean stands for them, with a mark"
    for name in columns.categorical:
        if count := int((values[name] == "").sum()):
            yield f"column {name!r} misses {count} values: a category of their own"


def encode(columns: Columns, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features of rows.

    Args:
        columns: A `Columns`.
        values: By the name of the column [rows] float64, NaN where missing, or str.

    Returns:
        `{"numeric": float32 [rows, columns], "categorical": int32 [rows, columns]}`, without what
        has no column.
    """
    features: dict[str, np.ndarray] = {}
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
