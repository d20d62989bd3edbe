"""What one call from the host runs: `steps_per_execution` training steps, in turns.

On GPUs, where the data have no end and their shapes are known, those steps are one XLA program, a
loop over batches that lie on the device: the host's part of a step, which short steps can't hide,
comes once for all of them. Elsewhere the host runs the loop: data that end, or a last batch that is
smaller, don't fit a program that takes so many batches of one shape.
"""

import itertools
import weakref

import keras
import tensorflow as tf

from tfmp import distribution

# Datasets that hand on what they get, and don't know how much that is.
COPYING = ("_CopyToDeviceDataset", "_PrefetchDataset", "_OptionsDataset")


class KeptLogs:
    """Logs of a step that several GPUs take at the same time, in variables of one of them.

    A function's results wait for all that it changes, and to wait for another GPU's work TensorFlow
    makes the host wait for it. So a function that returns logs returns when all GPUs are done, and
    one that leaves them in variables of a GPU when all have got their work: the host runs ahead.

    Args:
        device: Name of the device on which the logs are.
    """

    def __init__(self, device):
        self._device = device
        self._variables = {}

    def keep(self, logs):
        """For the inside of a function: keeps a dict of tensors of known shapes; returns none."""
        for name, x in logs.items():
            if name not in self._variables:
                self._variables[name] = distribution.variable_on(self._device, x.shape, x.dtype)
            self._variables[name].assign(x)
        return {}

    def read(self):
        """The last step's logs, which later ones don't change; the host doesn't wait for them."""
        return {name: variable.read_value() for name, variable in self._variables.items()}


def of_iterator(model, step, explaining_errors, several=None, kept=None):
    """A function as Keras' `fit` calls it: of an iterator, `steps_per_execution` steps a call.

    Args:
        model: A compiled Keras model.
        step: Function of a batch that returns logs.
        explaining_errors: Function that returns a context for each call.
        several: Function of a list of batches that runs the step on each and returns the last
            one's logs, or None: the host runs the loop.
        kept: `KeptLogs` for what `step` and `several` return, or None.

    Returns:
        A function that returns the last step's logs.
    """
    per_execution = model.steps_per_execution
    if per_execution == 1:
        several = None

    def graph(function):
        if model.run_eagerly:
            return function
        return tf.function(function, reduce_retracing=True, autograph=False)

    def finish(logs):
        return kept.keep(logs) if kept else logs

    def step_on(data):
        return finish(step(keras.tree.map_structure(without_optionals, data)))

    def program_on(batches):
        return finish(several(keras.tree.map_structure(without_optionals, batches)))

    # A function within another one would have the host wait for the GPUs again.
    one_step, one_program = graph(step_on), graph(program_on)
    one_step_of = graph(lambda iterator: step_on(iterator.get_next()))
    one_program_of = graph(
        lambda iterator: program_on([iterator.get_next() for _ in range(per_execution)])
    )

    # Counts the steps of an execution that ran before the data ended. (A loop over
    # `get_next_as_optional`, as in Keras, fails for distributed iterators.)
    done = distribution.variable_on("/CPU:0", (), tf.int64)

    def next_step(iterator):
        data = iterator.get_next()
        with tf.control_dependencies(tensors(data)):
            done.assign_add(1)
        return one_step(data)

    def execution(iterator):
        done.assign(0)
        return tf.while_loop(
            lambda index, _: index < per_execution,
            lambda index, _: (index + 1, next_step(iterator)),
            (1, next_step(iterator)),
            parallel_iterations=1,
        )[1]

    execution = graph(execution)

    known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # of iterators

    def is_regular(iterator):
        if iterator not in known:
            known[iterator] = _is_regular(iterator)
        return known[iterator]

    def logs_of(iterator):
        if isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
            if per_execution == 1:  # (counting steps makes the host wait for the GPU)
                return one_step_of(iterator)
            if several and is_regular(iterator):
                return one_program_of(iterator)
            try:
                return execution(iterator)
            except tf.errors.OutOfRangeError:
                if not int(done):
                    raise
                return model.get_metrics_result()  # an execution cut short
        batches = list(itertools.islice(iterator, per_execution))
        if several and len(batches) == per_execution and _are_alike(batches):
            return one_program(batches)
        logs = None
        for data in batches:
            logs = one_step(data)
        return logs

    def function(iterator):
        with explaining_errors():
            logs = logs_of(iterator)
            return kept.read() if kept else logs

    return function


def loops_are_fast():
    """Whether XLA compiles for GPUs; its loops on CPUs run convolutions 30 times slower."""
    return bool(tf.config.list_physical_devices("GPU"))


def looped(step):
    """A function of a list of batches of equal shapes, for XLA: the step on each, in a loop.

    Args:
        step: Function of a replica's data that returns a dict of tensors.

    Returns:
        A function that returns the last step's dict.
    """

    def several(batches):
        stacked = keras.tree.map_structure(_stacked, *batches)

        def batch(index):
            return keras.tree.map_structure(lambda x: x if x is None else x[index], stacked)

        # What a loop returns has to be known before it begins, and tracing twice takes long.
        traced = tf.function(step, autograph=False).get_concrete_function(batch(0))
        none = {name: tf.zeros(x.shape, x.dtype) for name, x in traced.structured_outputs.items()}
        return tf.while_loop(
            lambda index, _: index < len(batches),
            lambda index, _: (index + 1, traced(batch(index))),
            (0, none),
            maximum_iterations=len(batches),
            parallel_iterations=1,
        )[1]

    return several


def _stacked(*parts):
    return None if parts[0] is None else tf.stack(parts)


def _is_regular(iterator):
    """Whether there is no end, and each batch has the same shapes."""
    # Neither kind of iterator says it in public.
    if isinstance(iterator, tf.distribute.DistributedIterator):
        cardinality = iterator._cardinality
    else:
        dataset = iterator._dataset
        while type(dataset).__name__ in COPYING:
            (dataset,) = dataset._inputs()
        cardinality = dataset.cardinality()
    specs = tf.nest.flatten(iterator.element_spec, expand_composites=True)
    known = all(isinstance(x, tf.TensorSpec) and x.shape.is_fully_defined() for x in specs)
    return known and int(cardinality) == tf.data.INFINITE_CARDINALITY


def _are_alike(batches):
    """Whether all batches have the same shapes."""
    return len({tuple(tuple(x.shape) for x in tensors(batch)) for batch in batches}) == 1


def without_optionals(x):
    """Keras puts an optional in the place of what a dataset doesn't have."""
    return None if isinstance(x, tf.experimental.Optional) else x


def after_inputs(function):
    """Where the data has ended nothing may change: not even what needs no data, as a counter."""

    def after_inputs(*args):
        with tf.control_dependencies(tensors(args)):
            return function(*args)

    return after_inputs


def tensors(data):
    """All tensors in a batch, those of replicas too."""
    return [x for x in tf.nest.flatten(data, expand_composites=True) if tf.is_tensor(x)]
