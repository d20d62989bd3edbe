"""Tables of tensorflow-datasets: their features as columns."""

import numpy as np

from tfmp.data import from_tfds, table_files
from tfmp.data.base import DataError, Options

ROWS = 4096  # read at once


def read(
    name: str,
    target: str | None,
    categorical: tuple[str, ...],
    drop: tuple[str, ...],
    options: Options,
    also_known: list[str],
) -> table_files.Source:
    """Reads a set whose features are numbers, texts and classes, or vectors and dicts of these.

    A feature in a dict has the dict's name before its own where two would be alike; of a vector
    each number is a column.

    Args:
        name: As TFDS has it.
        target: Name of the column to predict; None: that of the set's supervised keys.
        categorical: Names of columns of numbers to take for categories.
        drop: Names of columns to leave out.
        options: Where the data lie.
        also_known: Other names to propose where this one is unknown.

    Raises:
        DataError: TFDS doesn't know the name, the set is no such table, has no such columns, or is
            neither prepared nor can be.
    """
    builder = from_tfds.open_builder(name, options.data_dir, also_known)
    features = _features(name, builder.info.features)
    if target is None:
        keys = builder.info.supervised_keys
        target = str(keys[-1]) if keys else ""
        if target not in features:
            raise DataError(
                f"--dataset={name} needs --target, one of {table_files.listed(list(features))}."
            )
    have = from_tfds.splits(name, builder, options)
    parts = [_columns(builder, split, features) for split in ("train", "test") if split in have]
    found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    table_files.check_columns(name, list(found), target, categorical, drop)
    notes = tuple(f"the split {x!r} is not read" for x in sorted(have - {"train", "test"}))
    columns = {
        key: _column(x, features.get(key), key in categorical)
        for key, x in found.items()
        if key != target and key not in drop
    }
    for key, x in columns.items():
        if x.dtype != object and np.isinf(x).any():
            raise DataError(f"Expected finite numbers in the column {key!r} of {name}.")
    rows = [len(part[target]) for part in parts]
    texts = _column(found[target], features.get(target), as_texts=True)
    there = found[target] if found[target].dtype == object else texts
    notes += (*table_files.left_out_notes(target, table_files.without_target(there, texts)),)
    return table_files.Source(
        columns,
        texts,
        target,
        test=np.repeat([False, True], rows) if len(rows) > 1 else None,
        origin=builder.info.full_name,
        notes=notes,
    )


def _features(name, features):
    """The features that are no dicts, by the names of their columns, each with its place."""
    import tensorflow_datasets as tfds

    found: list[tuple[tuple[str, ...], object]] = []

    def visit(place, feature):
        if isinstance(feature, tfds.features.FeaturesDict):
            for key, part in feature.items():
                visit((*place, key), part)
            return
        plain = type(feature) in (tfds.features.Tensor, tfds.features.Scalar)
        number = plain and np.issubdtype(feature.np_dtype, np.number)
        vector = number and len(feature.shape) == 1 and feature.shape[0]
        one = isinstance(feature, tfds.features.ClassLabel | tfds.features.Text)
        if not (one or vector or (plain and feature.shape == ())):
            raise DataError(
                f"Expected a table of numbers, texts and classes. Received: {name}, whose "
                f"{'/'.join(place) or 'examples'} are {type(feature).__name__} of {feature.shape}."
            )
        found.append((place, feature))

    visit((), features)
    ends = [place[-1] for place, _ in found if place]
    return {
        place[-1] if ends.count(place[-1]) == 1 else "/".join(place): (place, feature)
        for place, feature in sorted(found, key=lambda item: item[0])  # TFDS' order may differ
    }


def _columns(builder, split, features):
    """All columns of a split, as TFDS has them, but for texts, which are str."""
    import tensorflow_datasets as tfds

    batches = builder.as_dataset(split=split, shuffle_files=False).batch(ROWS)
    gathered: dict[str, list] = {name: [] for name in features}
    for batch in tfds.as_numpy(batches):
        for name, (place, _) in features.items():
            values = batch
            for key in place:
                values = values[key]
            gathered[name].append(values)
    columns: dict[str, np.ndarray] = {}
    for name, parts in gathered.items():
        values = np.concatenate(parts)
        if values.ndim == 2:
            width = len(str(values.shape[1] - 1))
            numbered = {f"{name}_{i:0{width}}": x for i, x in enumerate(values.T)}
            if taken := sorted(numbered.keys() & features.keys()):
                raise DataError(
                    f"Expected columns of different names. Received: {taken[0]!r}, a number of "
                    f"{name!r} and a feature of its own."
                )
            columns |= numbered
        elif values.dtype == object:
            columns[name] = np.array([x.decode(errors="replace") for x in values], object)
        else:
            columns[name] = values
    return columns


def _column(values, found, as_texts):
    """A column as `table_files.Source` has it.

    Args:
        values: [rows], as of `_columns`.
        found: Its place and feature, as of `_features`; None of a number in a vector.
        as_texts: Whether numbers become texts, too: whole ones without a point.
    """
    import tensorflow_datasets as tfds

    if found and isinstance(found[1], tfds.features.ClassLabel):
        return np.array(["" if x < 0 else found[1].int2str(int(x)) for x in values], object)
    if values.dtype == object:
        return table_files.known(values.tolist())
    if values.dtype == bool:
        return np.where(values, "true", "false").astype(object)
    if not as_texts:
        return values.astype(np.float64)
    # Of the set's own dtype: float64 has not all of 64 bits, and more digits than a float32 has.
    texts = values.astype(str).tolist()
    if values.dtype.kind == "f":
        for i, x in enumerate(values.tolist()):
            texts[i] = "" if np.isnan(x) else str(int(x)) if x.is_integer() else texts[i]
    return np.array(texts, object)
