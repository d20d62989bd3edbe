"""Which group each test example belongs to."""

import csv
import pathlib

import numpy as np

from tfmp import data as tfmp_data
from tfmp.errors import UserError

MOST_GROUPS = 1000


def read_groups(group_by, dataset, examples, **options) -> np.ndarray:
    """The group of each test example, in the order of the data set's `test`.

    Args:
        group_by: `FILE.csv:COLUMN`, a table with one row an example in that order; or a feature
            that the data set has in TFDS.
        dataset: The data set's name, as `tfmp.data.load` takes it.
        examples: Number of test examples.
        **options: Those that `tfmp.evaluation.data_for` returns.

    Returns:
        [examples] of strings.

    Raises:
        UserError: There is no such file, column or feature, it has another number of rows, an
            empty cell, or more than 1,000 values.
    """
    file, _, column = group_by.rpartition(":")
    if group_by.endswith(".csv"):
        raise UserError(
            f"Expected --group_by={group_by}:COLUMN, to know the column. Received: {group_by}."
        )
    if file:
        groups = _column(pathlib.Path(file).expanduser(), column)
    else:
        groups = tfmp_data.test_feature(dataset, group_by, **options)
    if len(groups) != examples:
        raise UserError(
            f"Expected one group for each of the {examples} test examples of {dataset}. Received: "
            f"{len(groups)} rows in {group_by}."
        )
    if "" in groups or None in groups:
        row = next(i for i, group in enumerate(groups) if not group)
        raise UserError(f"Expected a group in each row. Received: none in row {row} of {group_by}.")
    groups = np.asarray(groups, str)
    if len(np.unique(groups)) > MOST_GROUPS:
        raise UserError(
            f"Expected at most {MOST_GROUPS} groups. Received: {len(np.unique(groups))} values of "
            f"{group_by}."
        )
    return groups


def _column(file, column):
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            names = rows.fieldnames or []
            if column not in names:
                raise UserError(
                    f"Expected a column out of {', '.join(names) or 'none'}. Received: {column!r} "
                    f"of {file}."
                )
            return [row[column] for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Can't read {file}: {error}.") from error
