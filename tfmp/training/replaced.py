"""What Keras' layers and operations are replaced by, while a step is traced."""

import contextlib

from keras.src.backend.tensorflow import nn  # `keras.ops` looks its functions up there


@contextlib.contextmanager
def replaced(layer, name, function):
    """A context in which a method of one layer, which has its class's, is a function."""
    vars(layer)[name] = function
    try:
        yield
    finally:
        vars(layer).pop(name, None)


@contextlib.contextmanager
def replaced_operation(name, function):
    """A context in which a function of Keras' TensorFlow backend is another one."""
    former = getattr(nn, name)
    setattr(nn, name, function)
    try:
        yield
    finally:
        setattr(nn, name, former)
