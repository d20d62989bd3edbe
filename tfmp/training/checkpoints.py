"""Full state of a run on disk: what a resumed run needs to go on as if it had never stopped."""

import hashlib
import pathlib

import tensorflow as tf

from tfmp import distribution, workers
from tfmp.errors import TfmpError
from tfmp.loss_scale import optimizers_of


class Checkpoints:
    """The last checkpoints of a run.

    A checkpoint holds every variable of the model and of its optimizers (weights, BatchNorm
    statistics, random state of layers, slots, loss scale and its counter, iterations, moving
    averages), the counters and metrics of the step, and the seconds and joules (NaN: not
    known) so far. The data's order and the augmentation are functions of the seed and the step.

    TensorFlow writes a checkpoint beside the last one and names it last of all, so a process
    killed while saving leaves the former one in force. Of several workers all call the same methods
    at the same steps; the chief alone writes, and all read.

    Args:
        folder: Folder of the checkpoints; made if need be.
        learner: A compiled `tfmp.training.Learner` whose optimizer is built.
        keep: How many checkpoints to keep.
    """

    def __init__(self, folder, learner, keep=2):
        self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.joules = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self._learner = learner
        self._metrics = [v for metric in learner.metrics for v in metric.variables]
        # Over all replicas. (TensorFlow's saving would ask all workers for the metrics' own.)
        self._sums = [tf.Variable(tf.zeros(v.shape, v.dtype)) for v in self._metrics]
        self._worker = distribution.worker(learner.distribute_strategy)
        self._checkpoint = tf.train.Checkpoint(
            model=[v.value for v in learner.variables],
            optimizer=[v.value for x in optimizers_of(learner) for v in x.variables],
            metrics=self._sums,
            seconds=self.seconds,
            joules=self.joules,
        )
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(folder), max_to_keep=keep)
        self._saved_step = None

    @property
    def latest(self):
        """Path of the last checkpoint, or None."""
        if self._worker.is_chief:
            return self._manager.latest_checkpoint
        return tf.train.latest_checkpoint(self._manager.directory)  # another process writes

    def save(self):
        """Saves the state unless that of this very step is saved already.

        Raises:
            TfmpError: The checkpoint can't be written; the former one stays.
        """
        step = int(self._learner.step)
        if step == self._saved_step:
            return
        self._saved_step = step
        for total, variable in zip(self._sums, self._metrics, strict=True):
            total.assign(variable.numpy())
        if not self._worker.is_chief:
            return
        try:
            self._manager.save(checkpoint_number=step)
        except (tf.errors.OpError, OSError) as error:
            self._saved_step = None
            raise TfmpError(
                f"Can't write a checkpoint to {self._manager.directory}: "
                f"{getattr(error, 'message', error)}. The former one, if any, is kept; make room "
                "and go on with --resume."
            ) from error

    def restore(self):
        """Restores the last checkpoint, if there is one.

        Returns:
            Values of the metrics' variables at that step, to be set after the epoch begins; None
            where there is no checkpoint.

        Raises:
            TfmpError: The checkpoint is damaged or of another model.
        """
        workers.wait(self._worker, "restore")  # until the chief has written
        if self.latest is None:
            if any(pathlib.Path(self._manager.directory).glob("*.index")):
                raise TfmpError(
                    f"{self._manager.directory} holds checkpoints, but the file 'checkpoint' "
                    "there, which names the last one, is damaged. Mend it, or begin anew in "
                    "another --workdir."
                )
            return None
        try:
            self._checkpoint.restore(self.latest).assert_consumed()
        except (tf.errors.OpError, ValueError, IndexError, AssertionError) as error:
            raise TfmpError(
                f"Can't restore {self.latest}: it is damaged or of another model ({error}). Begin "
                "anew in another --workdir, or name the checkpoint before it in the file "
                "'checkpoint' beside it."
            ) from error
        self._saved_step = int(self._learner.step)
        return [v.numpy() for v in self._sums]

    def checksum(self):
        """A few digits that tell whether weights, optimizer and counters are those of another."""
        state = [*self._learner.variables]
        state += [v for x in optimizers_of(self._learner) for v in x.variables]
        counted = {id(v) for v in self._metrics}
        digest = hashlib.sha256()
        for variable in state:
            if id(variable) not in counted:
                digest.update(variable.numpy().tobytes())
        return digest.hexdigest()[:12]

    def set_metrics(self, values):
        """Gives the metrics the values that `restore` returned."""
        for variable, value in zip(self._metrics, values, strict=True):
            variable.assign(value)
