"""What the workers say to each other, through the chief's store of keys and values."""

import collections
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context  # no public way to the coordination service's store

from tfmp.errors import PeerError, UserError
from tfmp.workers import joining
from tfmp.workers.identity import Worker, name
from tfmp.workers.joining import LOST

AGREE_S = 600  # for the slowest worker to load its data and build its model

_times: collections.Counter = collections.Counter()  # how often a topic came up


def agree(worker: Worker, topic: str, facts: dict[str, Any], hint: str = "") -> None:
    """Compares facts that all workers have to share; a worker that differs is named.

    Args:
        worker: This process.
        topic: A name for this comparison; all workers make the same ones in the same order.
        facts: What JSON can hold, by the names that the error uses.
        hint: What the error tells the user to do.

    Raises:
        UserError: A worker differs from the chief.
        PeerError: A worker didn't say anything.
    """
    if worker.count == 1:
        return
    facts = json.loads(json.dumps(facts))
    topic = once(topic)
    put(f"{topic}/{worker.index}", facts)
    all_facts = [get(worker, f"{topic}/{i}") for i in range(worker.count)]
    different = [
        f"{key} is {other.get(key)!r} on {name(index)} and {all_facts[0].get(key)!r} on the chief"
        for index, other in enumerate(all_facts)
        for key in all_facts[0]
        if other.get(key) != all_facts[0][key]
    ]
    _part(worker, topic)
    if different:
        raise UserError(f"The workers differ: {'; '.join(different)}. {hint}".strip())


def chief_first(worker: Worker, topic: str, function: Callable[[], str]) -> str:
    """What a function returns on the chief, which alone runs it.

    Args:
        worker: This process.
        topic: A name for it, as for `agree`.
        function: Function of no argument that returns a string.

    Raises:
        UserError: As the chief's function did, on all workers.
    """
    if worker.count == 1:
        return function()
    topic = once(topic)
    if worker.is_chief:
        try:
            said = {"value": function()}
        except UserError as error:
            said = {"error": str(error)}
        put(topic, said)
    else:
        said = get(worker, topic)
    _part(worker, topic)
    if "error" in said:
        raise UserError(said["error"])
    return said["value"]


def wait(worker: Worker, topic: str) -> None:
    """Waits until all workers have come here.

    Raises:
        PeerError: One didn't.
    """
    agree(worker, topic, {})


def finish(worker: Worker) -> None:
    """Waits for all at the end of a run; after it a worker may leave."""
    wait(worker, "finish")
    joining.leave()


def _part(worker, topic):
    """Waits until all have read, since each may leave next, the chief with what the others read.

    Who is lost meanwhile has read, or is missed by what comes next.
    """
    with contextlib.suppress(PeerError):
        if worker.is_chief:
            for index in range(1, worker.count):
                get(worker, f"{topic}/parted/{index}")
            put(f"{topic}/parted", True)
        else:
            put(f"{topic}/parted/{worker.index}", True)
            get(worker, f"{topic}/parted")


def once(topic: str) -> str:
    """A key that was not used before: values don't change."""
    _times[topic] += 1
    return f"{topic}/{_times[topic]}"


def put(key: str, value: Any) -> None:
    """Tells all workers a value that JSON can hold.

    Raises:
        PeerError: The chief is gone, or the key has a value.
    """
    try:
        context.context().set_config_key_value(f"tfmp/{key}", json.dumps(value))
    except tf.errors.OpError as error:
        raise PeerError(LOST) from error


def get(worker: Worker, key: str) -> Any:
    """A value that some worker tells; waits for it.

    Raises:
        PeerError: It didn't come, or the chief is gone.
    """
    end = time.monotonic() + AGREE_S
    while True:
        try:
            return get_once(key, 1000)  # short, so that a signal is heard
        except tf.errors.DeadlineExceededError:
            if time.monotonic() > end:
                raise PeerError(f"Waited {AGREE_S} s for {key!r}: {LOST}") from None
        except tf.errors.OpError as error:
            raise PeerError(LOST) from error


def get_once(key: str, timeout_ms: int) -> Any:
    """A value that some worker tells within so many milliseconds.

    Raises:
        tf.errors.OpError: It didn't come (DeadlineExceededError), or the chief is gone.
    """
    return json.loads(context.context().get_config_key_value(f"tfmp/{key}", timeout_ms))
