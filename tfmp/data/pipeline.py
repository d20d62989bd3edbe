"""tf.data pipelines whose batch k is a function of (data, seed, k), and what they share.

Two kinds of source: arrays in memory, and records read and decoded on the way. In both, batch k
belongs to epoch `k // steps_per_epoch(...)`, and the order within an epoch is a function of (seed,
epoch), so that a run resumed at step k sees what the uninterrupted run would have seen.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfmp.data.base import DataError

IN_MEMORY_BYTES = 2**30
SHUFFLE_BYTES = 2**30
WHOLE = (0, 1)  # the only part of a batch


def steps_per_epoch(examples: int, batch_size: int, multiple_of: int = 1) -> int:
    """Number of whole batches in an epoch.

    Args:
        examples: Number of training examples.
        batch_size: Examples in a batch.
        multiple_of: Training steps that one call from the host runs: an epoch is a multiple.

    Raises:
        DataError: If not even one batch, or one such call, can be filled.
    """
    _check_batch_size(batch_size)
    if batch_size > examples:
        raise DataError(
            f"Expected a batch size of at most {examples}, the number of training examples. "
            f"Received: {batch_size}. Use a smaller batch or a smaller validation_fraction."
        )
    steps = examples // batch_size // multiple_of * multiple_of
    if not steps:
        raise DataError(
            f"Expected at most {examples // batch_size} steps per execution, the batches of "
            f"{batch_size} in {examples} training examples. Received: {multiple_of}."
        )
    return steps


def order(seed: int, epoch: tf.Tensor, examples: int) -> tf.Tensor:
    """The order in which an epoch goes through the data: a permutation, int64 [examples].

    (`tf.random.experimental.index_shuffle` would need no array, but knows only 2^16 orders, and
    its first positions are correlated by up to 0.48 from seed to seed for 54,000 examples.)

    Args:
        seed: The run's seed.
        epoch: Scalar int64.
        examples: Number of examples in the data.
    """
    key = epoch_key(seed, epoch)
    keys = tf.random.stateless_uniform([examples], key, None, None, tf.int64, alg="philox")
    return tf.cast(tf.argsort(keys, stable=True), tf.int64)


def epoch_key(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Two words that decide the order of an epoch: int32 [2]."""
    # No example has the index -1, so that the order shares its seed with no example's draw.
    source = draw_seed(seed, epoch, tf.constant(-1, tf.int64))
    return tf.random.stateless_uniform([2], source, None, None, tf.int32, alg="philox")


def draw_seed(seed: int, epoch: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The seed of what is drawn for one example: int64 [2], different for each argument."""
    word = (int(seed) + 2**63) % 2**64 - 2**63
    return tf.stack([tf.constant(word, tf.int64), epoch * 2**32 + index])


def in_memory_train(features: Any, labels: np.ndarray) -> Callable:
    """The `train` of a `Data` whose examples are in memory.

    Args:
        features: Array [examples, ...], such as uint8 images, or a dict of them. Floats become
            float32, integers but uint8 become int32.
        labels: Array [examples, ...], likewise.
    """
    features, labels = on_host(features), on_host(labels)

    def gather(chosen, key):
        return tf.nest.map_structure(lambda x: tf.gather(x, chosen), (features, labels))

    return gathered_train(gather, int(labels.shape[0]))


def in_memory_evaluation(features: Any, labels: np.ndarray) -> Callable | None:
    """The `validation` or `test` of a `Data` whose examples are in memory; None if there are none.

    Args:
        features: As for `in_memory_train`.
        labels: As for `in_memory_train`.
    """
    if not len(labels):
        return None
    features, labels = on_host(features), on_host(labels)

    def gather(start, end):
        return tf.nest.map_structure(lambda x: x[start:end], (features, labels))

    return gathered_evaluation(gather, int(labels.shape[0]))


def gathered_train(gather: Callable, examples: int) -> Callable:
    """The `train` of a `Data` that makes a batch of the numbers of its examples.

    Args:
        gather: `gather(chosen, key)` gives (features, labels); `chosen` is int64 [batch], of 0 to
            `examples - 1`, and `key` int32 [2], the same throughout an epoch.
        examples: Number of examples in an epoch.
    """

    def train(
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        multiple_of: int = 1,
        part: tuple[int, int] = WHOLE,
    ) -> tf.data.Dataset:
        steps = steps_per_epoch(examples, batch_size, multiple_of)
        first_epoch, first_step = _position(start_step, steps)
        begin, size = _share(batch_size, part)

        def one_epoch(epoch):
            chosen = tf.reshape(order(seed, epoch, examples)[: steps * batch_size], [steps, -1])
            start = tf.where(epoch == first_epoch, first_step, 0)
            own = tf.ensure_shape(chosen, [steps, batch_size])[:, begin : begin + size]
            batches = tf.data.Dataset.from_tensor_slices(own[start:])
            key = epoch_key(seed, epoch)
            return batches.map(lambda chosen: (chosen, key))

        batches = tf.data.Dataset.counter(first_epoch).flat_map(one_epoch)
        gathered = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return _finish(_endless(gathered))

    return train


def gathered_evaluation(gather: Callable, examples: int) -> Callable | None:
    """The `validation` or `test` of a `Data` that makes a batch of the numbers of its examples.

    Args:
        gather: `gather(start, end)` gives (features, labels) of the examples from `start` to
            before `end`, or to the last one; scalar int64.
        examples: Number of examples; where there are none, this is None.
    """
    if not examples:
        return None

    def evaluation(batch_size: int) -> tf.data.Dataset:
        _check_batch_size(batch_size)
        starts = tf.data.Dataset.range(0, examples, batch_size)
        batches = starts.map(lambda start: gather(start, start + batch_size))
        return _finish(batches.map(lambda features, labels: _padded(features, labels, batch_size)))

    return evaluation


def streamed_train(records: Callable, decode: Callable, examples: int) -> Callable:
    """The `train` of a `Data` that is read and decoded on the way.

    Args:
        records: `records(seed, epoch, start)` gives the finite dataset of one epoch's records
            from position `start` on, in an order that depends on (seed, epoch) alone; `epoch`
            and `start` are scalar int64 tensors.
        decode: `decode(record, seed)` gives (features, label), such as an image uint8 [height,
            width, channels] and an integer; `seed` is int64 [2]. Integer labels become int32,
            others float32.
        examples: Number of records in an epoch.
    """

    def train(
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        multiple_of: int = 1,
        part: tuple[int, int] = WHOLE,
    ) -> tf.data.Dataset:
        steps = steps_per_epoch(examples, batch_size, multiple_of)
        first_epoch, first_step = _position(start_step, steps)
        begin, size = _share(batch_size, part)

        def is_own(index, record):
            return (index - begin) % batch_size < size

        def one_epoch(epoch):
            first = tf.constant(first_step * batch_size, tf.int64)
            start = tf.where(epoch == first_epoch, first, tf.zeros_like(first))
            found = records(seed, epoch, start).take(steps * batch_size - start)
            found = found.enumerate(start)
            found = found if size == batch_size else found.filter(is_own)
            return found.map(lambda index, record: (epoch, index, record))

        stream = tf.data.Dataset.counter(first_epoch).flat_map(one_epoch)
        decoded = stream.map(
            lambda epoch, index, record: decode(record, draw_seed(seed, epoch, index)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        batches = decoded.batch(size, drop_remainder=True).map(_with_narrow_labels)
        return _finish(_endless(batches))

    return train


def streamed_evaluation(records: Callable, decode: Callable, examples: int) -> Callable | None:
    """The `validation` or `test` of a `Data` that is decoded on the way; None if it is empty.

    Args:
        records: `records()` gives the finite dataset of all records, in a fixed order.
        decode: `decode(record)` gives (features, label), likewise.
        examples: Number of records.
    """
    if not examples:
        return None

    def evaluation(batch_size: int) -> tf.data.Dataset:
        _check_batch_size(batch_size)
        decoded = records().map(decode, tf.data.AUTOTUNE, deterministic=True)
        return padded_batches(decoded.batch(batch_size), batch_size)

    return evaluation


def numbered_train(decode: Callable, examples: int) -> Callable:
    """`streamed_train` of examples that are found by their numbers, such as files.

    Args:
        decode: `decode(number, seed)`, with a scalar int64 of 0 to `examples - 1`.
        examples: Number of examples.
    """

    def records(seed, epoch, start):
        return tf.data.Dataset.from_tensor_slices(order(seed, epoch, examples)[start:])

    return streamed_train(records, decode, examples)


def numbered_evaluation(decode: Callable, examples: int) -> Callable | None:
    """`streamed_evaluation` of such examples, with `decode(number)`."""
    return streamed_evaluation(lambda: tf.data.Dataset.range(examples), decode, examples)


def padded_batches(batches: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Batches of (images, labels), of which the last may be short, as a `test` of a `Data` is."""
    batches = batches.map(_with_narrow_labels)
    return _finish(batches.map(lambda images, labels: _padded(images, labels, batch_size)))


def on_host(arrays: Any) -> Any:
    """Arrays as tensors in the host's memory: floats as float32, integers but uint8 as int32."""
    # Without the scope a machine with a GPU would hold the whole data set in GPU memory.
    with tf.device("/CPU:0"):
        return tf.nest.map_structure(lambda x: tf.constant(_narrowed(np.asarray(x))), arrays)


def hold_out(labels: np.ndarray, keys: np.ndarray, fraction: float) -> tuple:
    """Splits examples in two, class by class.

    Args:
        labels: [examples] integers.
        keys: [examples] sortable; of each class the smallest keys are held out.
        fraction: Share to hold out, in [0, 1); above 0 it is at least one example of each class
            that has two.

    Returns:
        Indices kept and indices held out, both int64 and ascending.
    """
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels) if fraction else ():
        members = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def check_test(name: str, labels: np.ndarray, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Sees that a test part has examples, and which classes have none there.

    Args:
        name: The data set's name.
        labels: [test examples, ...] integers.
        class_names: One name a class.

    Returns:
        What to tell the user, as `Data.notes`.

    Raises:
        DataError: There is no test example.
    """
    if not len(labels):
        raise DataError(
            "Expected two examples or more of a class, to hold one out for the test, and three to "
            f"hold one out for validation, too. Received: {name}, of {len(class_names)} classes "
            "with one each. Add examples."
        )
    without = [class_names[i] for i in np.setdiff1d(np.arange(len(class_names)), labels)]
    if not without:
        return ()
    shown = ", ".join(map(repr, without[:10]))
    more = f" and {len(without) - 10} more" if len(without) > 10 else ""
    return (f"no test figure knows of classes without a test example: {shown}{more}",)


def to_device(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Copies batches ahead to the GPU where there is exactly one and no strategy is in scope.

    It has to be the last transformation. A `tf.distribute` strategy places the batches itself, for
    GPUs from page-locked memory (see `pinned`).
    Integers of 32 bits become int64: TensorFlow keeps int32 on the host, and a GPU would wait
    for them in every step.
    """

    def widened(*batch):
        return tf.nest.map_structure(
            lambda x: tf.cast(x, tf.int64) if x.dtype == tf.int32 else x, batch
        )

    dataset = dataset.map(widened, num_parallel_calls=2, deterministic=True)
    gpus = len(tf.config.list_logical_devices("GPU"))
    dataset = (pinned(dataset) if gpus else dataset).prefetch(tf.data.AUTOTUNE)
    if tf.distribute.has_strategy() or gpus != 1:
        return dataset
    return dataset.apply(tf.data.experimental.prefetch_to_device("/GPU:0", buffer_size=2))


def pinned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same elements, in memory from which TensorFlow copies to a GPU while that computes.

    That is page-locked memory. Of tf.data's transformations only the fusion of `map` and `batch`
    allocates it (TensorFlow's issue 43905), so each element becomes a batch of one and is taken
    out of it again, which copies it once.

    Args:
        dataset: Its last transformation is `map`.
    """
    return dataset.batch(1, drop_remainder=True).map(
        lambda *parts: tf.nest.map_structure(lambda x: tf.squeeze(x, 0), parts)
    )


def _finish(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # Sharding by files would give every worker another order than a single one has.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def _endless(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Says what tf.data can't see through a flat_map, for Keras and whoever asks."""
    return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _narrowed(array):
    if array.dtype == np.uint8:
        return array
    return array.astype(np.float32 if np.issubdtype(array.dtype, np.floating) else np.int32)


def _with_narrow_labels(features, labels):
    """Labels as `on_host` has them, but that of integers uint8, a mask's, are int32, too."""
    return features, tf.cast(labels, tf.float32 if labels.dtype.is_floating else tf.int32)


def _padded(features, labels, batch_size):
    examples = tf.shape(labels)[0]

    def padded(x):
        x = tf.pad(x, [[0, batch_size - examples], *[[0, 0]] * (len(x.shape) - 1)])
        return tf.ensure_shape(x, [batch_size, *x.shape[1:]])

    return tf.nest.map_structure(padded, (features, labels, tf.ones([examples])))


def _share(batch_size: int, part: tuple[int, int]) -> tuple[int, int]:
    """Where a part of a batch begins, and its number of examples."""
    index, count = part
    if batch_size % count:
        raise DataError(
            f"Expected a batch size that {count} workers can share evenly. Received: {batch_size}."
        )
    return index * (batch_size // count), batch_size // count


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise DataError(f"Expected a batch size of at least 1. Received: {batch_size}")


def _position(start_step: int, steps: int) -> tuple[int, int]:
    """Epoch and step within it, both counted from 0."""
    if start_step < 0:
        raise DataError(f"Expected start_step of at least 0. Received: {start_step}")
    return divmod(start_step, steps)
