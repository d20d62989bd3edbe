"""Text as windows of bytes, for language models: tokens and, for each, the one that follows.

A token is a byte: nothing has to be learned, saved or agreed on beforehand, and any text has its
tokens. An example is a window of `context` tokens; its labels are the window one token further on.
The training windows of an epoch lie side by side from a random beginning on, another one in each
epoch; those of validation and test from the first token on, so that a rest of less than a window
is not evaluated.
"""

import dataclasses
import hashlib
import platform
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmp.data import from_tfds, pipeline, python_reference
from tfmp.data.base import Data, DataError, Options

BYTES = 256
TEST_FRACTION = 0.1
# Of larger sets this much is read, from the beginning: 1 GiB to train, 16 MiB to evaluate.
MOST_BYTES = {"train": 2**30, "validation": 2**24, "test": 2**24}
SYNTHETIC_TOKENS = 2**22


@dataclasses.dataclass(frozen=True)
class Texts:
    """The tokens of a data set: arrays [tokens] of uint8, or of int32 where they are no bytes.

    And where they are from, as `Data.origin`.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    origin: str = ""


def load(
    name: str,
    *,
    context: int,
    vocabulary: int = BYTES,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    validation_fraction: float = 0.1,
) -> Data:
    """Loads a text.

    Args:
        name: `python_reference` (see `tfmp.data.python_reference`), `text:FILE`, `synthetic`
            (random tokens), or a name that TFDS knows of a set with a feature "text"
            (`tiny_shakespeare`, `wiki40b/en`, `lm1b`).
        context: Tokens of a window.
        vocabulary: Number of different tokens of `synthetic`.
        data_dir: Where prepared TFDS data lie; as for `tfmp.data.load`.
        manual_dir: Where files fetched by hand lie; as for `tfmp.data.load`.
        validation_fraction: Share of the training text, its end, that is held out where there is
            no validation text; 0 for none. Where there is no test text the last tenth of all is
            that, before.

    Returns:
        A `Data`: tokens [batch, context] int32 and labels [batch, context] int32.

    Raises:
        DataError: The name is unknown, or its text absent, or too short for a window.
    """
    options = Options(data_dir, manual_dir, validation_fraction)
    prefix, colon, rest = name.partition(":")
    try:
        if name == "synthetic":
            texts = _synthetic(vocabulary, options)
        elif name == "python_reference":
            texts = _of_bytes(python_reference.text(), options)
            python = f"Python {platform.python_version()}"
            texts = dataclasses.replace(texts, origin=f"{python}, {texts.origin}")
        elif colon and prefix == "text":
            texts = _of_bytes(Path(rest).expanduser().read_bytes(), options)
        else:
            texts = _from_tfds(name, options)
    except OSError as error:
        raise DataError(f"Can't read {name}: {error}.") from error
    return _windows(name, texts, context)


def _windows(name, texts, context):
    parts = {"train": texts.train, "validation": texts.validation, "test": texts.test}
    sizes = {part: max(len(text) - 1, 0) // context for part, text in parts.items()}
    # A random beginning takes up to a window.
    sizes["train"] = len(texts.train) // context - 1
    if any(sizes[part] < 1 and (part != "validation" or len(parts[part])) for part in parts):
        found = ", ".join(f"{part} {len(text):,}" for part, text in parts.items())
        raise DataError(
            f"Expected texts of more than a window of {context} tokens, and of two to train. "
            f"Received {name}, in tokens: {found}. Use a longer text or a smaller context."
        )
    return Data(
        name=name,
        input_shape=(context,),
        class_names=(),
        sizes=sizes,
        train=_train(texts.train, context, sizes["train"]),
        validation=_evaluation(texts.validation, context, sizes["validation"]),
        test=_evaluation(texts.test, context, sizes["test"]),
        example="window",
        tokens=context,
        origin=texts.origin,
    )


def _train(text, context, examples):
    text = pipeline.on_host(text)

    def gather(chosen, key):
        # The order of the windows is drawn by the key as it is.
        shift = tf.random.stateless_uniform([], key + 1, 0, context, tf.int64, alg="philox")
        return _pairs(text, chosen * context + shift, context)

    return pipeline.gathered_train(gather, examples)


def _evaluation(text, context, examples):
    text = pipeline.on_host(text)

    def gather(start, end):
        numbers = tf.range(start, tf.minimum(end, examples))
        return _pairs(text, numbers * context, context)

    return pipeline.gathered_evaluation(gather, examples)


def _pairs(text, starts, context):
    """Windows that begin at `starts`, and their labels."""
    found = tf.gather(text, starts[:, tf.newaxis] + tf.range(context + 1, dtype=tf.int64))
    found = tf.ensure_shape(tf.cast(found, tf.int32), [None, context + 1])
    return found[:, :-1], found[:, 1:]


def _of_bytes(text, options):
    digest = hashlib.sha256(text).hexdigest()
    texts = _cut(np.frombuffer(text, np.uint8), options)
    return dataclasses.replace(texts, origin=f"{len(text):,} bytes, SHA-256 {digest}")


def _cut(text, options):
    """Training, validation and test text, one behind the other."""
    train, test = np.split(text, [round(len(text) * (1 - TEST_FRACTION))])
    train, validation = _held_out(train, options)
    return Texts(train, validation, test)


def _held_out(train, options):
    return np.split(train, [round(len(train) * (1 - options.validation_fraction))])


def _synthetic(vocabulary, options):
    """Random tokens, for speed alone."""
    random = np.random.default_rng(options.seed)
    tokens = random.integers(vocabulary, size=SYNTHETIC_TOKENS, dtype=np.int32)
    return _cut(tokens, options)


def _from_tfds(name, options):
    known = ["python_reference", "text:FILE", "synthetic"]
    builder = from_tfds.open_builder(name, options.data_dir, known)
    features = builder.info.features
    if not hasattr(features, "keys") or "text" not in features:
        raise DataError(
            f"Expected a data set with a feature 'text'. Received: {name}, which has "
            f"{', '.join(features) if hasattr(features, 'keys') else features}."
        )
    have = from_tfds.splits(name, builder, options)
    found = {part: _read(builder, part) for part in MOST_BYTES if part in have}
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    if "test" not in found:
        texts = _cut(found["train"], options)
        return dataclasses.replace(texts, origin=builder.info.full_name)
    if "validation" not in found:
        found["train"], found["validation"] = _held_out(found["train"], options)
    return Texts(**found, origin=builder.info.full_name)


def _read(builder, split):
    """The texts of a split, a newline behind each, up to `MOST_BYTES`."""
    found = bytearray()
    for example in builder.as_dataset(split=split, shuffle_files=False).as_numpy_iterator():
        found += example["text"] + b"\n"
        if len(found) >= MOST_BYTES[split]:
            break
    return np.frombuffer(bytes(found[: MOST_BYTES[split]]), np.uint8)
