"""How a training step is timed, and what shows that the timing is true.

Standard library only, and no import of ours: the peer's process, which has no tfmp, runs this very
file, so that both sides are timed by the same lines.
"""

import math
import statistics
import time

# Work that a window leaves behind, as a share of it, from which on it was not waited for.
LATE = 0.1


class Work:
    """What `measure` needs of a program that trains.

    Attributes:
        steps_per_call: Training steps that `step` runs.
        falls: Whether the loss of a batch falls where training repeats it.
    """

    steps_per_call = 1
    falls = True

    def step(self):
        """Starts a call's training steps; may return before the device has done them."""
        raise NotImplementedError

    def count(self):
        """Training steps that the device has done, skipped ones too: an int; waits for them."""
        raise NotImplementedError

    def weight(self):
        """A number that every update changes, read from the weights: a float; waits for it."""
        raise NotImplementedError

    def loss(self, steps):
        """Trains so many steps, a call at least, on one and the same batch.

        Returns:
            The loss of the last call.
        """
        raise NotImplementedError


def measure(work, *, steps, windows, clock=time.monotonic):
    """Times windows of training steps, with everything else outside of them.

    In this order: the first call (it traces and compiles), a loss, as many steps as a window for
    warm-up; then the windows, each from its first step's start until the device has counted its
    last one, and before each a step alone; then a loss again. Nothing is evaluated or saved.

    Args:
        work: A `Work`.
        steps: Steps of a window, a multiple of those of a call.
        windows: Number of windows.
        clock: Function of no argument that gives seconds; by default one that all processes of
            the machine share.

    Returns:
        A dict: `first_step_s`, `window_s` (list), `window_at` (begin and end of each by `clock`),
        `cpu_s` (for each window, seconds of this process' CPU time), `step_alone_s` (list; of a
        call of several steps, the time of one),
        `late_s` (for each window, how long a read of the weights took behind its end), `steps`,
        `loss` (first and last) and `problems` (list of str): reasons not to believe it.
    """
    calls = steps // work.steps_per_call
    begin = clock()
    work.step()
    work.count()
    first_step = clock() - begin
    first_loss = work.loss(1)
    for _ in range(calls):
        work.step()
    work.weight()  # waits for the warm-up
    spans, alone, late, busy, problems = [], [], [], [], []
    for _ in range(windows):
        begin = clock()
        work.step()
        counted = work.count()
        alone.append((clock() - begin) / work.steps_per_call)
        weight = work.weight()
        begin, begin_cpu = clock(), time.process_time()
        for _ in range(calls):
            work.step()
        advanced = work.count() - counted
        end, end_cpu = clock(), time.process_time()
        moved = work.weight() - weight
        late.append(clock() - end)
        spans.append((begin, end))
        busy.append(end_cpu - begin_cpu)
        if advanced != steps:
            problems.append(f"a window of {steps} steps advanced the device by {advanced}")
        if moved == 0:
            problems.append("a window left the weights as they were")
    loss = (first_loss, work.loss(steps))
    seconds = [end - begin for begin, end in spans]
    return {
        "first_step_s": first_step,
        "window_s": seconds,
        "window_at": spans,
        "step_alone_s": alone,
        "late_s": late,
        "cpu_s": busy,
        "steps": steps,
        "loss": loss,
        "problems": list(
            dict.fromkeys([*problems, *_doubts(work, seconds, steps, alone, late, loss)])
        ),
    }


def _doubts(work, seconds, steps, alone, late, loss):
    """What can't be true of a window that was waited for, or of training."""
    window = statistics.median(seconds)
    if statistics.median(late) > LATE * window:
        yield (
            f"not synchronized: behind the end of a window of {1e3 * window:.3g} ms the device "
            f"worked on for {1e3 * statistics.median(late):.3g} ms"
        )
    # Preparing a step, computing it and reading the count follow one another in a step alone, and
    # overlap in a window; the longest of the three, which remains, is a third at least.
    if window / steps < min(alone) / 3:
        yield (
            f"{1e3 * window / steps:.3g} ms a step in a window, but {1e3 * min(alone):.3g} ms for "
            "a step alone: the window did not wait for its steps"
        )
    if not all(map(math.isfinite, loss)):
        yield f"the loss is not finite: {loss[0]:g}, then {loss[1]:g}"
    elif work.falls and not loss[1] < loss[0]:
        yield f"the loss did not fall: {loss[0]:.6g}, then {loss[1]:.6g}"
