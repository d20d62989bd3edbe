"""Which group each test example belongs to."""

import pathlib

import numpy as np

from tfmp import data as tfmp_data
from tfmp.data import csv_files
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
    if (different := len(set(groups))) > MOST_GROUPS:
        raise UserError(
            f"Expected at most {MOST_GROUPS} groups. Received: {different} values of {group_by}."
        )
    return np.asarray(groups, str)


def _column(file, column):
    try:
        table = csv_files.read(file)
    except OSError as error:
        raise UserError(f"Can't read {file}: {error}.") from error
    if column not in table.names:
        raise UserError(
            f"Expected a column out of {', '.join(table.names)}. Received: {column!r} of {file}."
        )
    return table.column(column)
