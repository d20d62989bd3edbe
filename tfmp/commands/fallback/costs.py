"""What layers in float32 cost: a training step's time and memory with and without each."""

import statistics
import time

import keras
import tensorflow as tf

from tfmp import errors, hardware, policies, training
from tfmp.policies.temporary import under
from tfmp.training import session

WINDOWS = 3


def measure(model, batch, part, patterns, policy, *, jit_compile, steps):
    """Times training steps with and without each layer in float32.

    Args:
        model: A compiled Keras model.
        batch: A batch as its `train_step` takes it.
        part: The model whose layers they are: this one, or one in it.
        patterns: Dict from the layers' paths to what matches each in a policy map.
        policy: The policy of all others.
        jit_compile: "true", "false" or "auto", as a recipe takes it.
        steps: Training steps in a window.

    Returns:
        A dict: `found`, `nothing` (in float32), `float32`: dicts of `step_ms` (median of windows of
        `fit`), `spread_ms` (between windows), `peak_memory_bytes` (None where the device doesn't
        say it) and `jit_compile`; `without`: such a dict by path, of all found layers but that one;
        `layers`: by path what it adds, `step_ms` and `peak_memory_bytes`, and the larger
        `spread_ms` of both. In place of a dict {"error": why there is none}.
    """
    device, weights = hardware.describe(), model.get_weights()

    def step(kept):
        policy_map = kept if isinstance(kept, str) else policies.with_float32(kept, policy)
        compiled = session.compiles(jit_compile, device, kept if kept == "float32" else policy)
        model.set_weights(weights)
        try:
            with under(part, policy_map):
                return _step(model, batch, compiled, steps)
        except (errors.UserError, tf.errors.OpError) as error:
            return {"error": " ".join(str(error).split())[:300]}

    found = step(list(patterns.values()))
    without = {
        path: step([x for other, x in patterns.items() if other != path]) for path in patterns
    }
    return {
        "found": found,
        "nothing": step([]),
        "float32": step("float32"),
        "without": without,
        "layers": {path: _difference(found, fewer) for path, fewer in without.items()},
    }


class _Epochs(keras.callbacks.Callback):
    """Seconds of each epoch."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        """Begins to time it."""
        self._began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        """Notes it; the logs were waited for."""
        self.seconds.append(time.monotonic() - self._began)


def _step(model, batch, jit_compile, steps):
    hardware.reset_peak_memory()
    training.accelerate(model, jit_compile=jit_compile)
    epochs = _Epochs()
    model.fit(
        tf.data.Dataset.from_tensors(batch).repeat(),
        epochs=1 + WINDOWS,  # the first one traces and compiles
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[epochs],
    )
    milliseconds = [1e3 * seconds / steps for seconds in epochs.seconds[1:]]
    return {
        "step_ms": statistics.median(milliseconds),
        "spread_ms": max(milliseconds) - min(milliseconds),
        "peak_memory_bytes": hardware.peak_memory_bytes(),
        "jit_compile": jit_compile,
    }


def _difference(found, without):
    """What a layer adds; None where it is not known."""
    pairs = {
        name: (found.get(name), without.get(name)) for name in ("step_ms", "peak_memory_bytes")
    }
    added = {name: None if None in pair else pair[0] - pair[1] for name, pair in pairs.items()}
    return added | {"spread_ms": max(x.get("spread_ms", 0.0) for x in (found, without))}
