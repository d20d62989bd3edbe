"""Worker processes that train together: who they are, that they agree, and that none is missed.

One process runs on each machine, or for each group of GPUs, and all run the same program. The
first one is the chief. They meet through TensorFlow's coordination service, which the chief hosts:
what they say to each other here goes through its store of keys and values, with names and time
limits, since a collective that someone doesn't join waits for ever.
"""

from tfmp.workers.identity import ALONE, Worker, in_environment
from tfmp.workers.joining import connect, is_joined, naming_lost_peers
from tfmp.workers.stopping import Stop
from tfmp.workers.talking import agree, chief_first, finish, wait

__all__ = [
    "ALONE",
    "Stop",
    "Worker",
    "agree",
    "chief_first",
    "connect",
    "finish",
    "in_environment",
    "is_joined",
    "naming_lost_peers",
    "wait",
]
