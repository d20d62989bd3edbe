"""Which group each test example belongs to."""

import csv
import pathlib

import numpy as np

from tfmp import data as tfmp_data
from tfmp.errors import UserError

MOST_GROUPS = 1000


def read_groups(group_by, dataset, examples, **options) -> np.ndarray:
    """The group of each test example, in the data set's order.

    Args:
        group_by: `FILE.csv:COLUMN`, a table with one row an example in that order; or a feature
            that the data set has in TFDS.
        dataset: The data set's name, as `tfmp.data.load` takes it.
        examples: Number of test examples.
        **options: Options of `tfmp.data.load`: `data_dir`, `manual_dir`.

    Returns:
        [examples] of strings.

    Raises:
        UserError: There is no such file, column or feature, or it has another number of rows.
    """
    file, _, column = group_by.rpartition(":")
    if file:
        groups = _column(pathlib.Path(file).expanduser(), column)
    else:
        groups = tfmp_data.test_feature(dataset, group_by, **options)
    if len(groups) != examples:
        raise UserError(
            f"Expected one group for each of {examples} test examples. Received: {len(groups)} "
            f"rows in {group_by}."
        )
    groups = np.asarray(groups, str)
    if len(np.unique(groups)) > MOST_GROUPS:
        raise UserError(
            f"Expected at most {MOST_GROUPS} groups. Received: {len(np.unique(groups))} values of "
            f"{group_by}."
        )
    return groups


def _column(file, column):
    try:
        with open(file, newline="") as lines:
            rows = csv.DictReader(lines)
            names = rows.fieldnames or []
            if column not in names:
                raise UserError(
                    f"Expected a column out of {', '.join(names)}. Received: {column!r} of {file}."
                )
            return [row[column] for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Can't read {file}: {error}.") from error
