"""TFRecord shards read in an order that is a function of (seed, epoch)."""

import dataclasses

import tensorflow as tf

from tfmp.data import pipeline

OPEN_SHARDS = 16
BLOCK = 16


@dataclasses.dataclass(frozen=True)
class Shards:
    """Part of the records of some TFRecord files.

    Attributes:
        paths: One a file.
        skip: How many records to pass over at the beginning of each file.
        take: How many to read after them.
        record_bytes: Mean size of a record in bytes.
    """

    paths: tuple[str, ...]
    skip: tuple[int, ...]
    take: tuple[int, ...]
    record_bytes: float

    @property
    def examples(self) -> int:
        """Number of records."""
        return sum(self.take)

    def cut(self, fraction: float) -> tuple["Shards", "Shards"]:
        """Holds out the beginning of each file.

        Args:
            fraction: Share to hold out, in [0, 1).

        Returns:
            The records kept and those held out.
        """
        held = tuple(round(fraction * take) for take in self.take)
        kept = tuple(take - out for take, out in zip(self.take, held, strict=True))
        later = tuple(skip + out for skip, out in zip(self.skip, held, strict=True))
        return (
            dataclasses.replace(self, skip=later, take=kept),
            dataclasses.replace(self, take=held),
        )

    def in_order(self) -> tf.data.Dataset:
        """All records, file by file: scalar strings."""
        return tf.data.Dataset.range(len(self.paths)).flat_map(self._file())

    def shuffled(self, seed: int, epoch: tf.Tensor, start: tf.Tensor) -> tf.data.Dataset:
        """One epoch's records from position `start` on, as `pipeline.streamed_train` wants them.

        The files are opened in another order each epoch, 16 are read in turn, and their records
        pass a shuffle buffer of about `pipeline.SHUFFLE_BYTES`.
        """
        files = len(self.paths)
        read = self._file()
        opened = tf.data.Dataset.from_tensor_slices(pipeline.order(seed, epoch, files))
        records = opened.interleave(
            read,
            cycle_length=OPEN_SHARDS,
            block_length=BLOCK,
            num_parallel_calls=min(OPEN_SHARDS, files),
            deterministic=True,
        )
        buffer = max(min(int(pipeline.SHUFFLE_BYTES / self.record_bytes), self.examples), 1)
        # The order would depend on the program's global seed too if the graph, which is this
        # epoch's own, had none.
        tf.compat.v1.get_default_graph().seed = 1
        key = tf.cast(pipeline.epoch_key(seed, epoch)[0], tf.int64)
        ordered = records.shuffle(buffer, seed=key, reshuffle_each_iteration=False)
        return ordered.skip(start)

    def _file(self):
        with tf.device("/CPU:0"):
            paths = tf.constant(self.paths)
            skip = tf.constant(self.skip, tf.int64)
            take = tf.constant(self.take, tf.int64)

        def read(index):
            return tf.data.TFRecordDataset(paths[index]).skip(skip[index]).take(take[index])

        return read
