"""The layers of a model, as a user knows them: by names, and paths where they are nested."""

import dataclasses
from collections.abc import Iterator

import keras

from tfmp.policies.choice import HALF

# Keras' layers that are made around layers of the user's, which have names of their own.
CONTAINERS = (
    keras.Model,
    keras.layers.Wrapper,
    keras.layers.Bidirectional,
    keras.layers.StackedRNNCells,
    keras.layers.Pipeline,
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A layer of a model.

    Attributes:
        layer: The layer.
        path: Its name, or path where it is nested, such as "encoder/block1/norm". What a layer of
            Keras' own makes for itself, such as an LSTM's cell, has the path of that layer, since
            that is what a user can change.
        parent: The layer that holds it; None: the model.
        hidden: Whether it is such a part of a layer of Keras' own.
    """

    layer: keras.Layer
    path: str
    parent: keras.Layer | None
    hidden: bool

    @property
    def half(self) -> bool:
        """Whether it computes in float16 or bfloat16."""
        return self.layer.compute_dtype in HALF


def parts(model: keras.Model) -> Iterator[Part]:
    """The layers of a model, parents first, each once, without inputs.

    Args:
        model: A Keras model.
    """
    seen: set[int] = set()

    def walk(holder, path, parent, hidden):
        for layer in holder._flatten_layers(include_self=False, recursive=False):
            if id(layer) in seen or isinstance(layer, keras.layers.InputLayer):
                continue
            seen.add(id(layer))
            own = path if hidden else "/".join(filter(None, (path, layer.name)))
            yield Part(layer, own, parent, hidden)
            yield from walk(layer, own, layer, hidden or is_closed(layer))

    yield from walk(model, "", None, False)


def is_closed(layer) -> bool:
    """Whether it is a layer of Keras' own whose sublayers are none of the user's."""
    if not type(layer).__module__.startswith("keras."):
        return False
    if type(layer) is keras.layers.RNN:
        return False
    return not isinstance(layer, CONTAINERS)
