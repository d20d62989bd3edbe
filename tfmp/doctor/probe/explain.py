"""Within which TensorFlow operation finite numbers became infinite or NaN."""

import contextlib

import numpy as np
from tensorflow.python.framework import op_callbacks  # no public way to see operations run

from tfmp.doctor.probe.recording import is_float

# They only move numbers about, or take part in making constants.
_SILENT = ("Const", "Identity", "Placeholder")


@contextlib.contextmanager
def first_nonfinite():
    """Gives a list that holds the name of the first such operation run within, if there is one."""
    found: list[str] = []

    def look(name, inputs, attributes, outputs, op_name=None, graph=None):
        name = name.decode() if isinstance(name, bytes) else name
        # The names of functions that run as a whole begin so.
        if graph is not None or found or name in _SILENT or name.startswith("__"):
            return
        if all(map(_finite, outputs)) or not all(map(_finite, inputs)):
            return
        found.append(name)

    op_callbacks.add_op_callback(look)
    try:
        yield found
    finally:
        op_callbacks.remove_op_callback(look)


def _finite(tensor) -> bool:
    if not is_float(tensor):
        return True
    values = tensor.numpy()
    if values.dtype.itemsize == 2:  # numpy is slow at the arithmetic of these
        mask = 0x7C00 if values.dtype == np.float16 else 0x7F80
        return not np.any((values.view(np.uint16) & mask) == mask)
    return bool(np.all(np.isfinite(values)))
