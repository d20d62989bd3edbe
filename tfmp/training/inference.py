"""Speed and power of a trained model's predictions."""

import contextlib
import itertools
import statistics
import time

import tensorflow as tf

from tfmp import distribution

WINDOWS = 5
# Seconds of a window and of the calls before. A GPU's driver tells the mean power of up to the
# last second: none of it should be from before the calls.
WINDOW_S, WARM_UP_S = 0.06, 0.0
GPU_WINDOW_S, GPU_WARM_UP_S = 0.5, 1.0
BETTER = 1.05  # a smaller batch has to be so much faster for a still smaller one to be tried
LIMIT_S = 60.0  # no further batch size is begun behind it
SIZE_LIMIT_S = 10.0  # nor a further window of one size


def measure(session, model, *, features, jit_compile):
    """Times predictions at batch 1, at a large batch, and at smaller ones while they are faster.

    The features stay on the device: input is not in the figures. Calls
    follow one another without a wait within a window, and each window ends with a result on the
    host. One device computes, that of the first replica.

    The batch sizes are 1, that of `features`, a quarter of it, and so on: throughput saturates with
    the batch, so the largest one is nearly always the best or within a few percent of it, and each
    size is a program that XLA compiles, for tens of seconds on a GPU.

    Args:
        session: A `tfmp.training.Session`.
        model: The trained Keras model.
        features: Tensor [batch, ...] or a dict of them: the largest batch.
        jit_compile: Whether XLA compiles the model.

    Returns:
        A dict: `rows`, a list of {`batch_size`, `examples_per_second`, `watts` (None: not known)};
        `seconds` of the whole measurement; `problem`, why there are fewer rows, or None.
    """
    strategy, problem = session.strategy, None
    rows: list[dict] = []
    features = tf.nest.map_structure(_widened, features)
    largest = tf.nest.flatten(features)[0].shape[0]
    spec = tf.nest.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), features)
    began = time.monotonic()

    @tf.function(jit_compile=jit_compile, autograph=False, input_signature=[spec])
    def predict(batch):
        with distribution.on_replica(strategy, 0, model.variables):
            return model(batch, training=False)

    with session.power(gpus=1) as power, _device(strategy):
        for size in batch_sizes(largest):
            if len(rows) > 1 and time.monotonic() - began > LIMIT_S:
                break
            try:
                batch = tf.nest.map_structure(lambda x, n=size: tf.identity(x[:n]), features)
                spans, calls = _spans(predict, batch, session.device.kind)
            except tf.errors.ResourceExhaustedError:
                problem = f"batch {size} does not fit into the memory"
                continue
            except tf.errors.OpError as error:
                problem = f"batch {size} failed: {error.message.splitlines()[0]}"
                break
            seconds = statistics.median(end - begin for begin, end in spans)
            rows.append(
                {
                    "batch_size": size,
                    "examples_per_second": size * calls / seconds,
                    "watts": power.mean_watts(spans),
                }
            )
            if len(rows) > 2 and not _faster(rows[-1], rows[-2]):
                break
    return {"rows": rows, "seconds": time.monotonic() - began, "problem": problem}


def batch_sizes(largest):
    """1, the largest, and then its quarters, in the order in which they are measured."""
    quarters = itertools.takewhile(lambda size: size > 1, (largest // 4**n for n in range(32)))
    return [1, *quarters]


def _faster(row, other):
    return row["examples_per_second"] >= BETTER * other["examples_per_second"]


def _widened(x):
    """TensorFlow keeps int32 on the host."""
    return tf.cast(x, tf.int64) if x.dtype == tf.int32 else tf.convert_to_tensor(x)


def _spans(predict, images, kind):
    """(begin, end) of each window by `time.monotonic()`, and the calls in a window."""
    predict(images).numpy()  # compiles
    seconds = min(_window(predict, images, 1) for _ in range(2))
    window, warm_up = (GPU_WINDOW_S, GPU_WARM_UP_S) if kind == "gpu" else (WINDOW_S, WARM_UP_S)
    calls = max(1, round(window / seconds))
    began = time.monotonic()
    while time.monotonic() - began < warm_up:
        _window(predict, images, calls)
    spans: list[tuple[float, float]] = []
    while len(spans) < WINDOWS and not (spans and time.monotonic() - began > SIZE_LIMIT_S):
        begin = time.monotonic()
        _window(predict, images, calls)
        spans.append((begin, time.monotonic()))
    return spans, calls


def _window(predict, images, calls):
    """Seconds of so many calls."""
    begin = time.monotonic()
    for _ in range(calls):
        logits = predict(images)
    # One number: a language model's logits take longer to fetch than to make.
    tf.reshape(logits, [-1])[0].numpy()
    return time.monotonic() - begin


def _device(strategy):
    name = distribution.devices(strategy)[0]
    return tf.device(name) if name else contextlib.nullcontext()
