"""Makes the files of a corrupted set by all cores, with a progress bar.

The workers are programs of their own, and not forks or pickled functions: TensorFlow's threads
don't survive a fork, and a worker has no need of it.
"""

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np

from tfmp.data.corrupted import cache
from tfmp.errors import TfmpError

WORKER = pathlib.Path(__file__).with_name("worker.py")
# A task takes about a quarter of a second, at some milliseconds an image of 224 pixels.
TASK_PIXELS = 2**18
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
PROGRESS_SECONDS = 10


def make(folder, images, wanted):
    """Makes the files that are missing; only one process at a time makes those of a folder.

    Whatever stops it, finished files stay, and it goes on behind them the next time.

    Args:
        folder: A `cache.Folder`.
        images: [examples, height, width, channels] uint8.
        wanted: List of (corruption, severity).

    Raises:
        TfmpError: The disk is full or can't be written, or a worker failed.
    """
    if not folder.missing(wanted):
        return
    try:
        with cache.locked(folder.path):
            missing = folder.missing(wanted)
            for stale in folder.path.glob("*.partial"):
                stale.unlink()
            if missing:
                _check_space(folder, len(missing))
                _make(folder, images, missing)
    except OSError as error:
        raise TfmpError(
            f"Can't make corrupted images in {folder.path}: {error}. Choose another --cache_dir, "
            "or make room: what is finished is kept."
        ) from error


def _check_space(folder, count):
    """Says at the start, and not after minutes, that the disk is too small."""
    need = count * folder.file_bytes + int(np.prod(folder.shape))
    free = shutil.disk_usage(folder.path).free
    if free < need:
        raise OSError(f"expected {need:,} bytes of free space, and there are {free:,}")


def _make(folder, images, missing):
    examples, height, width, _ = folder.shape
    step = max(TASK_PIXELS // (height * width), 1)
    source = folder.path / "images.npy.partial"
    with open(source, "wb") as stream:
        np.save(stream, images)
    tasks = [
        (pair, start, min(start + step, examples))
        for pair in missing
        for start in range(0, examples, step)
    ]
    count = min(len(os.sched_getaffinity(0)), len(tasks))
    print(
        f"  making {len(missing)} x {examples:,} corrupted images in {folder.path}, "
        f"by {count} processes ...",
        flush=True,
    )
    show, done = _progress(len(missing) * examples), 0
    left = dict.fromkeys(missing, examples)
    with _started(count) as workers:
        made_with, *_ = [worker.answer() for worker in workers]
        folder.add_origin(json.loads(made_with), missing)
        for (pair, start, stop), partial in _done(workers, tasks, folder, source):
            left[pair] -= stop - start
            if not left[pair]:
                cache.finish(folder, partial, *pair)
            done += stop - start
            show(done)
    source.unlink()


def _progress(total):
    """What shows how many are done: a bar, or where that can't be drawn anew a line at times."""
    if sys.stdout.isatty():
        return keras.utils.Progbar(total, unit_name="image").update
    started = shown = time.perf_counter()

    def line(done):
        nonlocal shown
        now = time.perf_counter()
        if now - shown > PROGRESS_SECONDS:
            shown, left = now, (now - started) * (total - done) / done
            print(f"  {done:,} of {total:,}, about {left:,.0f} s left", flush=True)

    return line


def _done(workers, tasks, folder, source):
    """Hands out the tasks, and yields each with its file when it is done."""
    waiting, partials, busy = iter(tasks), {}, {}

    def give(worker):
        task = next(waiting, None)
        if task is None:
            return
        pair, start, stop = task
        if pair not in partials:
            partials[pair] = cache.begin(folder, *pair)
        name, severity = pair
        words = {"name": name, "severity": severity, "seed": folder.facts["seed"]}
        words |= {"start": start, "stop": stop, "images": str(source)}
        words |= {"file": str(partials[pair]), "offset": len(folder.header)}
        worker.ask(words)
        busy[worker.answers] = worker, task

    for worker in workers:
        give(worker)
    while busy:
        for stream in select.select(list(busy), [], [])[0]:
            worker, task = busy.pop(stream)
            worker.answer()
            give(worker)
            yield task, partials[task[0]]


@contextlib.contextmanager
def _started(count):
    """The workers; whatever ends the block ends them at once."""
    # A file for what they say of errors: nobody would read a pipe before the end.
    with tempfile.TemporaryFile("w+") as errors:
        workers = []
        try:
            for _ in range(count):
                workers.append(_Worker(errors))
            yield workers
        finally:
            for worker in workers:
                worker.process.kill()
            for worker in workers:
                worker.process.wait()
                worker.answers.close()
                with contextlib.suppress(BrokenPipeError):
                    worker.tasks.close()


class _Worker:
    """A process of worker.py."""

    def __init__(self, errors):
        self._errors = errors
        self.process = subprocess.Popen(
            # Without -P the modules beside it would come before those of the same name.
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for us alone
        )
        assert self.process.stdin and self.process.stdout, "they are pipes"
        self.tasks, self.answers = self.process.stdin, self.process.stdout

    def ask(self, words):
        """Sends a task, a dict."""
        with contextlib.suppress(BrokenPipeError):  # `answer` says why
            self.tasks.write(json.dumps(words) + "\n")
            self.tasks.flush()

    def answer(self):
        """The next line, once it is there.

        Raises:
            TfmpError: The process has ended.
        """
        answer = self.answers.readline()
        if answer.endswith("\n"):
            return answer
        status = self.process.wait()
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        reason = said[-1] if said else f"ended with exit status {status}"
        if status < 0:
            reason = f"ended by {signal.Signals(-status).name}"
        raise TfmpError(f"A process that corrupts images failed: {reason}.")
