"""What a step logs: flat, as it is after the step was undone, and as a vector."""

import math

import tensorflow as tf

from tfmp.training import vector as vectors


def flatten(logs):
    """As Keras flattens them: a `train_step` may log all metrics of `compile` as one dict."""
    flat: dict = {}
    for name, value in logs.items():
        flat.update(flatten(value) if isinstance(value, dict) else {name: value})
    return flat


def of_metrics(model, logs):
    """Which logs are what a metric says now: a `train_step` may log a tensor by its name.

    Args:
        model: A Keras model.
        logs: Flat dict of tensors.

    Returns:
        A dict of scalar bools, by the names that metrics and logs share.
    """
    results = flatten(model.get_metrics_result())
    return {name: _same(logs[name], results[name]) for name in results if name in logs}


def with_metrics(model, logs, of_metrics):
    """The logs with the metrics as they are now, such as after a step was undone.

    Args:
        model: A Keras model.
        logs: Flat dict of tensors; empty for all metrics.
        of_metrics: What the function of that name said of the logs.
    """
    results = flatten(model.get_metrics_result())
    followed = {}
    for name, same in of_metrics.items():
        log = tf.convert_to_tensor(logs[name])
        followed[name] = tf.where(same, tf.cast(results[name], log.dtype), log)
    return {**logs, **followed} if logs else results


def pack(logs, dtype):
    """Logs as a vector, and the specs by which `unpack` finds them in it.

    Args:
        logs: Flat dict of tensors. Of those whose shape isn't known when traced, such as losses of
            each example, which replicas may have unequal numbers of, the mean is taken.
        dtype: Type of the vector.

    Returns:
        (vector [values of all logs], dict of `tf.TensorSpec`).
    """
    logs = {name: tf.convert_to_tensor(x) for name, x in logs.items()}
    logs = {
        name: x if x.shape.is_fully_defined() else tf.reduce_mean(x) for name, x in logs.items()
    }
    parts = [tf.reshape(tf.cast(x, dtype), [-1]) for x in logs.values()]
    specs = {name: tf.TensorSpec(x.shape, x.dtype) for name, x in logs.items()}
    return tf.concat([tf.zeros([0], dtype), *parts], 0), specs


def size(specs):
    """Number of values in the vector of `pack`."""
    return sum(math.prod(spec.shape) for spec in specs.values())


def unpack(vector, specs):
    """The dict of logs in a vector of `pack`."""
    return dict(zip(specs, vectors.unflatten(vector, list(specs.values())), strict=True))


def _same(log, result):
    """Whether a log equals a metric's result; NaN equals NaN."""
    log = tf.convert_to_tensor(log)
    result = tf.cast(result, log.dtype)
    return tf.reduce_all(tf.equal(log, result) | ((log != log) & (result != result)))
