"""Python programs in processes of their own, which begin with Keras and TensorFlow imported.

That import takes 3 s of a core, and the tests start dozens of programs. These are forks of a server
(`multiprocessing`'s forkserver) that has imported both and done nothing more: no thread of
TensorFlow runs there, it has looked for no device, and it never imports tfmp. A test of how a
program starts, or of what has to be set before TensorFlow is imported, takes `subprocess`.
"""

import multiprocessing
import multiprocessing.connection
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["keras", "tensorflow"])


def run(*words, cwd=None, env=None, timeout=300):
    """Runs a Python program to its end, or kills it and all that it started.

    Args:
        *words: Words behind `python`: `-c CODE`, `-m MODULE` or a file, and arguments.
        cwd: Its folder.
        env: All its environment variables.
        timeout: Seconds that it may take.

    Returns:
        A `subprocess.CompletedProcess`, its output as text; return code None if it took too long.
    """
    (ended,) = run_together([words], cwd=cwd, envs=[env], timeout=timeout)
    return ended


def run_together(programs, *, envs, cwd=None, timeout=300):
    """Runs Python programs at the same time, as `run` does one.

    Args:
        programs: The words of each.
        envs: All environment variables of each; None: those of this process.
        cwd: Their folder.
        timeout: Seconds that they may take together.

    Returns:
        A list of `subprocess.CompletedProcess`, with `ended`, the `time.monotonic()` of its end.
    """
    own_group = multiprocessing.parent_process() is None  # what a fork starts ends with it
    end = time.monotonic() + timeout
    started, ended, times = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for index, (words, env) in enumerate(zip(programs, envs, strict=True)):
                out, err = (pathlib.Path(folder, f"{index}.{x}") for x in ("stdout", "stderr"))
                settings = dict(os.environ if env is None else env)
                job = [str(word) for word in words], out, err, cwd or os.getcwd(), settings
                process = CONTEXT.Process(target=_program, args=(own_group, *job))
                process.start()
                started.append((process, *job[:3]))
            running = {process.sentinel: n for n, (process, *_) in enumerate(started)}
            while running and time.monotonic() < end:
                timeout = max(0.0, end - time.monotonic())
                for sentinel in multiprocessing.connection.wait(list(running), timeout):
                    times[running.pop(sentinel)] = time.monotonic()
            for process, *_ in started:
                process.join(0.0)
        finally:
            codes = [process.exitcode for process, *_ in started]
            for process, *_ in started:
                if process.is_alive():
                    os.killpg(process.pid, signal.SIGKILL) if own_group else process.kill()
                    process.join()
        for index, (_, words, *files) in enumerate(started):
            said = [x.read_text(errors="replace") if x.exists() else "" for x in files]
            ended.append(subprocess.CompletedProcess(words, codes[index], *said))
            ended[-1].ended = times.get(index, end)
    return ended


def _program(own_group, words, out, err, cwd, env):
    """What the fork does: sets itself up as `python WORDS` would have, and runs it."""
    if own_group:
        os.setsid()
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    kind, *rest = words
    name = rest.pop(0) if kind in ("-c", "-m") else kind
    sys.argv = [kind, *rest]
    folder = "" if kind in ("-c", "-m") else str(pathlib.Path(name).resolve().parent)
    sys.path[:0] = [folder, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    if kind == "-c":
        exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")
