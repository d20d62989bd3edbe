"""Reading and writing the files of a run, so that a reader never sees half of one."""

import csv
import datetime
import hashlib
import json
import math
import os
import pathlib


def write_json(file, value):
    """Writes JSON so that a reader sees the old file or the new one, never a part.

    Args:
        file: Path.
        value: What `json` can write; NaN and infinities become null.

    Returns:
        The value as a reader gets it: lists for tuples, None for NaN.
    """
    value = _plain(value)
    write_text(file, json.dumps(value, indent=2, allow_nan=False) + "\n")
    return value


def write_text(file, text):
    """Writes text, in UTF-8, so that a reader sees the old file or the new one, never a part."""
    partial = file.with_name(file.name + ".partial")
    # Names of files need not be UTF-8.
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(file)


def write_arrays(file, arrays):
    """Writes a compressed .npz file, whole or not at all.

    Args:
        file: Path.
        arrays: Dict of arrays by name.
    """
    import numpy as np  # reports do without

    partial = file.with_name(file.name + ".partial")
    with open(partial, "wb") as stream:
        np.savez_compressed(stream, **arrays)
    partial.replace(file)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return None
    return value


def sha256(file):
    """A file's SHA-256, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def workdir(tool, asked):
    """The folder that the user named, or runs/TOOL-DATE-TIME: a `pathlib.Path`, not made yet."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
    return pathlib.Path(asked or f"runs/{tool}-{now}").expanduser()


def cache_root():
    """The folder of all that is kept between runs: `tfmp` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # By the XDG specification a relative path there is to be ignored.
    base = pathlib.Path(home) if os.path.isabs(home) else pathlib.Path.home() / ".cache"
    return base / "tfmp"


def read_metrics(file):
    """Rows of a CSV log: a list of dicts of floats, NaN where a value is missing.

    Args:
        file: Path of the file that `keras.callbacks.CSVLogger` wrote; may not exist yet.
    """
    if not pathlib.Path(file).exists():
        return []
    with open(file, newline="") as lines:
        return [
            {name: _number(value) for name, value in row.items() if name is not None}
            for row in csv.DictReader(lines)
        ]


def keep_epochs(file, epochs):
    """Drops from a CSV log the rows of epochs from `epochs` (counted from 0) on."""
    file = pathlib.Path(file)
    if not file.exists():
        return
    header, *rows = file.read_text().splitlines() or [""]
    kept = [row for row in rows if row.split(",")[0].isdigit() and int(row.split(",")[0]) < epochs]
    write_text(file, "".join(line + "\n" for line in [header, *kept]) if kept else "")


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
