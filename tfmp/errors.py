"""What a run can end with, and the exit status of each.

Exit statuses of every program of ours: 0 done; 1 crash; 2 the user's mistake; 3 non-finite
training; 10 compared and different; 11 not enough runs to tell; 75 start me again.
"""


class TfmpError(Exception):
    """An error whose message is all that a user needs: programs print it without a traceback."""

    exit_status = 1


class UserError(TfmpError, ValueError):
    """Something the user can mend: a flag, a file, a data set."""

    exit_status = 2
    # AutoGraph makes errors of a `tf.function` anew: in their own class only with this.
    __init__ = Exception.__init__


class OutOfMemoryError(UserError):
    """The device's memory does not hold the training step."""


class NonFiniteError(TfmpError):
    """Loss or weights became NaN or infinite and will not recover."""

    exit_status = 3


class FinishedError(TfmpError):
    """The run that was to go on has ended already: there is nothing left to do."""

    exit_status = 0


class StoppedError(TfmpError):
    """The run was asked to stop, saved its state and can be resumed."""

    exit_status = 75


class PeerError(TfmpError):
    """A worker process that this one trains with was lost; all of them are to start again."""

    exit_status = 75


class DifferentError(TfmpError):
    """What was compared is different."""

    exit_status = 10


class UndecidedError(TfmpError):
    """There are not enough runs to tell."""

    exit_status = 11
