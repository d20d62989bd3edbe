"""What a traced step measures on the device: how large layers' outputs and gradients are."""

import collections
import contextlib
import math
import threading

import keras
import tensorflow as tf

from tfmp import layer_paths

# Keys of what a traced step returns beside its logs.
ACTIVATIONS = "tfmp/activations"
GRADIENTS = "tfmp/gradients"

# At most this large, a number is zero in float16: half of the smallest one, which is rounded to
# even.
FLUSHED = 2.0**-25

UNSEEN = -1.0  # in the place of a largest magnitude

# Columns of `gradients`.
COLUMNS = ("largest", "square", "nonzero", "flushed", "flushed_unscaled")


def paths(model):
    """The layers that a user knows, each once, by its path such as "encoder/block1/norm".

    What a layer of Keras' own makes for itself, such as an LSTM's cell, is a part of it.

    Args:
        model: A Keras model. Of a `tfmp.training.Learner` the layers of its `model` have their
            paths in that.

    Returns:
        List of (layer, path), parents first.
    """
    inner = inner_model(model)
    found: dict[int, tuple] = {}
    for root in filter(None, (inner, model)):
        for part in layer_paths.parts(root):
            if not part.hidden and part.layer is not inner:
                found.setdefault(id(part.layer), (part.layer, part.path))
    return list(found.values())


def inner_model(model):
    """The model that a `Learner` trains; None where the model is no learner."""
    from tfmp.training.learner import Learner  # it is built on this module

    return model.model if isinstance(model, Learner) else None


def owners(model):
    """The path of the layer that each variable belongs to: dict from the variable's id."""
    found = {}
    for layer, path in paths(model):  # parents first: the innermost remains
        found.update({id(v): path for v in layer.variables})
    return found


def largest(x):
    """Largest magnitude, infinite where anything is infinite or NaN: scalar float32."""
    magnitude = tf.where(tf.math.is_finite(x), tf.abs(x), tf.constant(math.inf, x.dtype))
    # (A maximum alone would drop NaN on some devices.)
    return tf.cast(tf.reduce_max(tf.reshape(magnitude, [-1])), tf.float32)


class Maxima:
    """Measures a training step while it is traced.

    Args:
        model: A built Keras model.

    Attributes:
        layers: List of (layer, path), in the order of `activations`.
        dtypes: Dtype of each layer's output by its path, once a step was traced.
    """

    def __init__(self, model):
        self.model = model
        self.layers = paths(model)
        self.dtypes = {}
        self._frames = {}  # by thread: replicas are traced in threads that take turns
        self._depth = 0
        self._former = []

    @contextlib.contextmanager
    def recording(self):
        """A context in which layers' outputs are recorded, but in loops within it."""
        thread = threading.get_ident()
        outer = self._frames.get(thread)
        self._frames[thread] = _graph(), collections.defaultdict(list)
        if not self._depth:
            self._wrap()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._unwrap()
            self._last = self._frames.pop(thread)[1]
            if outer:
                self._frames[thread] = outer

    def activations(self):
        """Largest magnitude of each layer's outputs in the last `recording`: [layers] float32."""
        seen = self._last
        return tf.stack(
            [
                tf.reduce_max(tf.stack(seen[row])) if row in seen else tf.constant(UNSEEN)
                for row in range(len(self.layers))
            ]
            or tf.zeros([0])
        )

    def gradients(self, applied):
        """What `COLUMNS` say of each trainable variable: [variables, 5] float32.

        Args:
            applied: List of (gradients of the scaled loss, their variables, the loss scale).
        """
        rows = {id(v): [tf.zeros([len(COLUMNS)])] for v in self.model.trainable_variables}
        for gradients, variables, scale in applied:
            for gradient, variable in zip(gradients, variables, strict=True):
                if gradient is not None and id(variable) in rows:
                    rows[id(variable)].append(_of_gradient(gradient, scale))
        # (The latest, where one is updated twice in a step.)
        return tf.stack([row[-1] for row in rows.values()] or tf.zeros([0, len(COLUMNS)]))

    def _wrap(self):
        for row, (layer, path) in enumerate(self.layers):
            self._former.append((layer, vars(layer).get("call")))
            vars(layer)["call"] = self._recorded(layer.call, row, path)

    def _unwrap(self):
        while self._former:
            layer, former = self._former.pop()
            vars(layer).pop("call", None)
            if former is not None:
                vars(layer)["call"] = former

    def _recorded(self, call, row, path):
        def recorded(*args, **kwargs):
            outputs = call(*args, **kwargs)
            graph, seen = self._frames.get(threading.get_ident(), (None, None))
            # A loop's tensors can't leave it.
            if seen is not None and graph is _graph():
                for x in keras.tree.flatten(outputs):
                    if isinstance(x, tf.Tensor) and x.dtype.is_floating:
                        seen[row].append(largest(tf.stop_gradient(x)))
                        self.dtypes[path] = x.dtype.name
            return outputs

        return recorded


def _graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _of_gradient(gradient, scale):
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    values = tf.cast(tf.convert_to_tensor(values), tf.float32)
    unscaled = values / tf.cast(scale, tf.float32)
    nonzero = values != 0

    def count(condition):
        return tf.reduce_sum(tf.cast(condition, tf.float32))

    return tf.stack(
        [
            largest(values),
            tf.reduce_sum(tf.square(unscaled)),
            count(nonzero),
            count(nonzero & (tf.abs(values) <= FLUSHED)),
            count(nonzero & (tf.abs(unscaled) <= FLUSHED)),
        ]
    )
