"""The step behind which all workers stop, once one of them is asked to."""

import contextlib
import sys
import threading

import tensorflow as tf

from tfmp.errors import PeerError
from tfmp.workers import talking
from tfmp.workers.identity import Worker, name

NEVER = sys.maxsize  # the answer of a worker whose training is done
LISTEN_MS = 500


class Stop:
    """An agreement of all workers on the step behind which they stop.

    A step is a collective: whoever stops before it leaves the others in it. Nor can a worker wait
    for the others before a step of its own choice: hosts run ahead of their GPUs, and another may
    be waiting for what this one has still to begin. So each worker has a thread that answers for
    it: once any worker is asked to stop, it tells how many steps this one has begun, and from then
    on the worker begins no further one until it knows all answers. All stop behind the largest.

    (TensorFlow's PreemptionCheckpointHandler agrees in a like way, but counts the calls of a loop
    of its own, saves, and ends the process itself; Keras' `fit` can't run inside of it.)

    Args:
        worker: This process.
        step: Steps begun before.
    """

    def __init__(self, worker: Worker, step: int):
        self.reason: str | None = None  # why to stop, in words
        self._worker = worker
        self._begun = step
        self._last: int | None = None
        self._told = self._answered = False
        self._lock = threading.Lock()
        self._topic = talking.once("stop")
        if worker.count > 1:
            threading.Thread(target=self._listen, daemon=True, name="workers: stop").start()

    def ask(self, reason: str) -> None:
        """Asks all workers to stop; may be called by a signal's handler."""
        self.reason = (
            f"{reason} to {name(self._worker.index)}" if self._worker.count > 1 else reason
        )

    def is_due(self, step: int, begins: int = 0) -> bool:
        """Whether to stop here; the same on all workers at the same step.

        Args:
            step: Steps begun so far.
            begins: Steps that begin now, unless it is due.

        Raises:
            PeerError: Another worker doesn't answer.
        """
        if self._worker.count == 1:
            return self.reason is not None
        if self.reason and not self._told:
            self._told = True
            with contextlib.suppress(PeerError):  # another worker was asked before
                talking.put(self._topic, self.reason)
        with self._lock:
            if not self._answered:
                self._begun = step + begins
                return False
        if self._last is None:
            answers = (f"{self._topic}/{i}" for i in range(self._worker.count))
            self._last = max(talking.get(self._worker, key) for key in answers)
        return step >= self._last

    def close(self) -> None:
        """Ends it behind the last step: who is asked later has nothing left to stop."""
        with self._lock:
            if self._worker.count > 1 and not self._answered:
                self._answer(NEVER)

    def _listen(self):
        while not self._answered:
            try:
                reason = talking.get_once(self._topic, LISTEN_MS)
            except (tf.errors.DeadlineExceededError, tf.errors.NotFoundError):
                continue
            except tf.errors.OpError:  # the others see it, too
                return
            with self._lock:
                if not self._answered:
                    self.reason = reason
                    self._answer(self._begun)

    def _answer(self, step):
        with contextlib.suppress(PeerError):  # the others see it, too
            talking.put(f"{self._topic}/{self._worker.index}", step)
        self._answered = True
