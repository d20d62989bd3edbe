"""Ways into Keras: calls of layers and operations, and random numbers, go through our functions.

Keras has hooks for none of them. The patches are the process's: nothing else may run beside.
"""

import contextlib

import keras
import tensorflow as tf
from keras.src import backend as keras_backend
from keras.src.backend.tensorflow import core as keras_core
from keras.src.backend.tensorflow import random as keras_random  # what layers draw from
from keras.src.ops.operation import Operation

from tfmp.doctor.draws import same_draws
from tfmp.policies.choice import HALF


@contextlib.contextmanager
def patched(on_layer, on_operation, on_seed):
    """Layers, operations and seeds call these functions within; `tf.function`s run eagerly.

    Random numbers are drawn in float32 and rounded, so that both precisions get the same.

    Args:
        on_layer: Function of (Keras' own call, layer, args, kwargs).
        on_operation: The same for operations; a layer's call comes by it, too, within `on_layer`.
        on_seed: Function of (Keras' own drawing of a seed, seed or generator).
    """
    calls = keras.Layer.__call__, Operation.__call__
    draw_seed = keras_random.draw_seed
    eagerly = tf.config.functions_run_eagerly()

    def called(on_call, original):
        return lambda self, *args, **kwargs: on_call(original, self, args, kwargs)

    keras.Layer.__call__ = called(on_layer, calls[0])
    Operation.__call__ = called(on_operation, calls[1])
    keras_random.draw_seed = lambda seed: on_seed(draw_seed, seed)
    tf.config.run_functions_eagerly(True)
    try:
        with same_draws():
            yield
    finally:
        tf.config.run_functions_eagerly(eagerly)
        keras.Layer.__call__, Operation.__call__ = calls
        keras_random.draw_seed = draw_seed


@contextlib.contextmanager
def no_half_casts():
    """Casts to half give float32 within: those that a layer's code asks for by name."""
    places = [(tf, "cast"), (keras_core, "cast"), (keras_backend, "cast")]
    before = [getattr(module, name) for module, name in places]

    def whole(original):
        def cast(x, dtype, *args, **kwargs):
            half = dtype is not None and keras.backend.standardize_dtype(dtype) in HALF
            return original(x, "float32" if half else dtype, *args, **kwargs)

        return cast

    for (module, name), original in zip(places, before, strict=True):
        setattr(module, name, whole(original))
    try:
        yield
    finally:
        for (module, name), original in zip(places, before, strict=True):
            setattr(module, name, original)


def as_graph(function):
    """Calls a function as a TensorFlow graph, also where `tf.function`s run eagerly."""
    eagerly = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(False)
    try:
        return tf.function(function, autograph=False).get_concrete_function()()
    finally:
        tf.config.run_functions_eagerly(eagerly)
