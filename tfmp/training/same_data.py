"""What `--resume` knows the data of a run by: the file data.json in its folder."""

import itertools
import json

from tfmp import files
from tfmp.errors import UserError

DESCRIPTION = "data.json"
PARTS = {"train": "training", "validation": "validation", "test": "test"}


def describe(data, folder):
    """Writes what tells a run's data from others.

    Args:
        data: A `tfmp.data.Data`.
        folder: Path of the run's folder.
    """
    names = ("name", "class_names", "sizes", "origin")
    files.write_json(folder / DESCRIPTION, {name: getattr(data, name) for name in names})


def check(data, folder):
    """Holds data to those that the run in a folder began with, as far as that run has told.

    Args:
        data: A `tfmp.data.Data`.
        folder: Path of the run's folder; of a run of an earlier version it says nothing.

    Raises:
        UserError: They are others, or the file is damaged.
    """
    file = folder / DESCRIPTION
    try:
        former = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"Can't use {file}: {error}.") from None
    if not isinstance(former, dict):
        raise UserError(f"Expected a description of data in {file}. Received: {former!r}.")
    if changed := [*_changes(former, data)]:
        raise UserError(
            f"--resume goes on with the data that the run in {folder} began with, but "
            f"{'; '.join(changed)}. Bring the former data back, or choose another --workdir."
        )


def _changes(former, data):
    before, now = former.get("class_names"), list(data.class_names)
    if before is not None and before != now:
        pairs = itertools.zip_longest(before, now)
        same = next(i for i, (one, other) in enumerate(pairs) if one != other)
        yield (
            f"the classes from number {same + 1} on were {_listed(before[same:])} and are "
            f"{_listed(now[same:])}"
        )
    for part, count in former.get("sizes", {}).items():
        if count != data.sizes.get(part):
            yield (
                f"the number of {PARTS.get(part, part)} examples was {count} and is "
                f"{data.sizes.get(part)}"
            )
    before = former.get("origin") or ""
    if data.is_other_than(before):
        yield f"{data.name} was {before} and is {data.origin or 'of unknown origin'}"


def _listed(names):
    shown = ", ".join(map(repr, names[:5])) or "none"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
