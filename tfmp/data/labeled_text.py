"""Texts with a label, as words, for classifiers.

A word is a run of ASCII letters, digits and underscores, in lower case, or any other single
character but a blank. Its token is 1 + its CRC-32 modulo one less than the vocabulary's size: no
list of words has to be made or kept, `tokens` gives the same for any text at any time, and a few
words share a token. Texts are cut at `length` tokens, and filled up with the token 0, which is
none.
"""

import hashlib
import platform
import re
import zlib
from pathlib import Path

import numpy as np

from tfmp.data import csv_files, docstrings, from_tfds, memory, pipeline
from tfmp.data.base import Data, DataError, Options

WORD = re.compile(r"[a-z0-9_]+|[^\sa-z0-9_]")
TEST_FRACTION = 0.15  # of the docstrings
SYNTHETIC_EXAMPLES, SYNTHETIC_CLASSES = 2**13, 1000


def tokens(text: str, *, length: int, vocabulary: int) -> np.ndarray:
    """What a classifier gets of a text: int32 [length], from 0 to before `vocabulary`."""
    words = WORD.findall(text.lower())[:length]
    found = [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in words]
    return np.array(found + [0] * (length - len(found)), np.int32)


def load(
    name: str,
    *,
    length: int,
    vocabulary: int,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    validation_fraction: float = 0.1,
) -> Data:
    """Loads labeled texts.

    Args:
        name: `docstrings` (see `tfmp.data.docstrings`), `csv:FILE` (with the columns text and
            label; see `tfmp.data.csv_files`), `synthetic` (random tokens), or a name that TFDS
            knows of a set with texts and one label (`imdb_reviews`, `ag_news_subset`).
        length: Tokens of an example.
        vocabulary: Number of different tokens, 0 included.
        data_dir: Where prepared TFDS data lie; as for `tfmp.data.load`.
        manual_dir: Where files fetched by hand lie; as for `tfmp.data.load`.
        validation_fraction: Share of each class held out of the training texts; 0 for none. Where
            there is no test split a tenth of each class is that, before.

    Returns:
        A `Data`: tokens [batch, length] int32 and labels [batch] int32.

    Raises:
        DataError: The name is unknown, or its texts absent or not labeled.
    """
    options = Options(data_dir, manual_dir, validation_fraction)
    prefix, colon, rest = name.partition(":")
    origin, test = "", None
    notes: tuple[str, ...] = ()

    def arrays(texts, labels):
        rows = [tokens(x, length=length, vocabulary=vocabulary) for x in texts]
        return np.array(rows).reshape(-1, length), np.asarray(labels, np.int64)

    try:
        if name == "synthetic":
            random = np.random.default_rng(options.seed)
            drawn = random.integers(1, vocabulary, (SYNTHETIC_EXAMPLES, length), np.int32)
            train = drawn, random.integers(SYNTHETIC_CLASSES, size=len(drawn))
            names = tuple(map(str, range(SYNTHETIC_CLASSES)))
        elif name == "docstrings":
            train, test, names, origin = _docstrings(arrays)
        elif colon and prefix == "csv":
            texts, labels, names, origin, notes = _csv(Path(rest).expanduser())
            train = arrays(texts, labels)
        else:
            train, test, names, origin = _from_tfds(name, options, arrays)
    except OSError as error:
        raise DataError(f"Can't read {name}: {error}.") from error
    return _data(name, train, test, names, origin, notes, options)


def _data(name, train, test, names, origin, notes, options):
    if test is None:
        train, test = memory.split(train, memory.TEST_FRACTION, options.seed)
    notes = (*notes, *pipeline.check_test(name, test[1], names))
    train, validation = memory.split(train, options.validation_fraction, options.seed + 1)
    parts = {"train": train, "validation": validation, "test": test}
    length = train[0].shape[1]
    return Data(
        name=name,
        input_shape=(length,),
        class_names=names,
        sizes={part: len(labels) for part, (_, labels) in parts.items()},
        train=pipeline.in_memory_train(*train),
        validation=pipeline.in_memory_evaluation(*validation),
        test=pipeline.in_memory_evaluation(*test),
        example="text",
        tokens=length,
        origin=origin,
        notes=notes,
    )


def _docstrings(arrays):
    texts, modules, owners = docstrings.load()
    names = tuple(sorted(set(modules)))
    if len(names) < docstrings.MODULES:
        raise DataError(
            f"Expected {docstrings.MODULES} modules with docstrings. Received: {len(names)}. This "
            "Python has no sources of its standard library."
        )
    labels = np.array([names.index(module) for module in modules])
    # What a class documents is in one part, whole.
    is_test = np.array([docstrings.draw(owner) for owner in owners]) < TEST_FRACTION
    features, labels = arrays(texts, labels)
    digest = hashlib.sha256("\n".join([*owners, *texts]).encode(errors="replace")).hexdigest()
    origin = f"Python {platform.python_version()}, {len(texts):,} docstrings, SHA-256 {digest}"
    train, test = ((features[x], labels[x]) for x in (~is_test, is_test))
    return train, test, names, origin


def _csv(file):
    """Texts, labels, names, origin and notes of a table with the columns text and label."""
    table = csv_files.read(file)
    if not {"text", "label"} <= set(table.names):
        raise DataError(
            f"Expected columns text and label in {file}. Received: "
            f"{', '.join(map(repr, table.names))[:200]}."
        )
    kept = [
        pair for pair in zip(table.column("text"), table.column("label"), strict=True) if pair[1]
    ]
    names = tuple(sorted({label for _, label in kept}))
    if len(names) < 2:
        raise DataError(f"Expected labels of two kinds or more in {file}. Received: {names}.")
    notes = table.notes
    if missing := len(table.rows) - len(kept):
        notes += (f"{missing} rows have no label, and are left out",)
    labels = [names.index(label) for _, label in kept]
    origin = f"{len(kept):,} texts, SHA-256 {table.sha256}"
    return [text for text, _ in kept], labels, names, origin, notes


def _from_tfds(name, options, arrays):
    import tensorflow_datasets as tfds

    known = ["docstrings", "csv:FILE", "synthetic"]
    builder = from_tfds.open_builder(name, options.data_dir, known)
    features = builder.info.features
    features = dict(features) if hasattr(features, "keys") else {}
    texts = [k for k, x in features.items() if isinstance(x, tfds.features.Text)]
    labels = [k for k, x in features.items() if isinstance(x, tfds.features.ClassLabel)]
    if not texts or len(labels) != 1:
        raise DataError(
            f"Expected a data set of texts and one label. Received: {name}, of "
            f"{', '.join(features) or type(builder.info.features).__name__}."
        )
    have = from_tfds.splits(name, builder, options)

    def read(split):
        examples = builder.as_dataset(split=split, shuffle_files=False).as_numpy_iterator()
        pairs = [(b"\n".join(x[key] for key in texts), x[labels[0]]) for x in examples]
        return arrays([text.decode(errors="replace") for text, _ in pairs], [y for _, y in pairs])

    test = read("test") if "test" in have else None
    return read("train"), test, tuple(features[labels[0]].names), builder.info.full_name
