"""What the rules look at: a model taken apart once, and how its layers are called."""

import contextlib
import dataclasses
import functools
from typing import Any

import keras

from tfmp import loss_scale
from tfmp.doctor import trace
from tfmp.doctor.ranges import ranges
from tfmp.doctor.stepping import Stepping, stepping
from tfmp.doctor.trace import is_graph
from tfmp.errors import UserError
from tfmp.layer_paths import Part, parts


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and what it trains with.

    Attributes:
        model: The model.
        parts: All of its layers, parents first, each once, without inputs.
        optimizers: The optimizers by the name of the model's attribute that holds each;
            "optimizer" is that of `compile`.
        loss: The loss given to `compile`, or to the doctor; None where there is none.
        trace: What the layers do, operation by operation.
        probe: What running the model on a batch found (`tfmp.doctor.probe`); None: not run.
        step: What a training step does (`tfmp.doctor.stepping`); None: that isn't known.
        labels: The batch's labels, flat; None: not known.
    """

    model: keras.Model
    parts: tuple[Part, ...]
    trace: trace.Trace
    optimizers: tuple[tuple[str, keras.optimizers.Optimizer], ...] = ()
    loss: Any = None
    probe: Any = None
    step: Stepping | None = None
    labels: tuple | None = None

    @functools.cached_property
    def ranges(self) -> dict:
        """Bounds of the trace's tensors, as `tfmp.doctor.ranges.ranges` has them."""
        return ranges(self.trace)

    @functools.cached_property
    def _by_layer(self) -> dict[int, Part]:
        return {id(part.layer): part for part in self.parts}

    @property
    def half_parts(self) -> list[Part]:
        """The layers that compute in float16 or bfloat16, those in Keras' own layers included."""
        return [part for part in self.parts if part.half and not is_graph(part.layer)]

    @property
    def uses_float16(self) -> bool:
        """Whether any layer computes in float16."""
        return any(part.layer.compute_dtype == "float16" for part in self.half_parts)

    @functools.cached_property
    def around(self) -> "Subject | None":
        """The same model with the operations of its `train_step` that no layer, or tape, makes.

        None where it is Keras' own, or couldn't be traced.
        """
        if self.step is None or not self.step.own:
            return None
        full = self.step.trace
        inside = full.owners.keys() | self.step.backward
        outside = [x for x in full.operations if id(x) not in inside]
        left = dataclasses.replace(full, operations=tuple(outside), calls=())
        return dataclasses.replace(self, trace=left, step=None)

    @property
    def everywhere(self) -> "list[Subject]":
        """The model, and its own `train_step` if there is one: for rules of operations."""
        return [self, *filter(None, [self.around])]

    def part(self, layer) -> Part | None:
        """The part that is this layer."""
        return self._by_layer.get(id(layer))

    def float32(self, path: str | None) -> tuple[str, ...]:
        """What a finding's `float32` is to hold, to put this path in float32: none if no layer."""
        return (path,) if path and any(part.path == path for part in self.parts) else ()

    def path(self, operation) -> str | None:
        """Where an operation of the trace was made: a layer's path; None: in the model's own call.

        Args:
            operation: A `tf.Operation`.
        """
        call = self.trace.owners.get(id(operation))
        if call is None:
            return None
        layer = call.called
        part = self.part(layer)
        if part is None:
            return call.path
        if isinstance(layer, keras.layers.TimeDistributed):
            # It goes around the entry of the layer in it.
            return f"{part.path}/{layer.layer.name}"
        return part.path


def examine(model, loss=None, optimizer=None, inputs=None, labels=None) -> Subject:
    """Takes a model apart.

    Args:
        model: A Keras model.
        loss: A loss in place of the model's own.
        optimizer: An optimizer, several, or a name, in place of the model's own. A name is taken as
            `compile` takes it: with a loss scale where the model's policy is mixed_float16.
        inputs: A batch, for a model that doesn't declare its inputs.
        labels: Its labels.

    Raises:
        UserError: It is no Keras model, or no optimizer.
    """
    if not isinstance(model, keras.Model):
        raise UserError(f"Expected a Keras model. Received: {type(model).__name__}.")
    if not model.built and inputs is not None:
        with contextlib.suppress(Exception):  # of the model's own code; probing names its layer
            model(inputs)
    optimizers = tuple(_optimizers(model))
    if optimizer is not None:
        given = tuple(_given(model, optimizer, optimizers))
        # One of several that the model holds is given as the one that `compile` got.
        if not {id(x) for _, x in given} <= {id(x) for _, x in optimizers}:
            optimizers = given
    traced = trace.trace(model, inputs)
    loss = getattr(model, "loss", None) if loss is None else loss
    return Subject(
        model=model,
        parts=tuple(parts(model)),
        optimizers=optimizers,
        loss=loss,
        trace=traced,
        step=stepping(model, loss, optimizers, traced.outputs, inputs, labels),
        labels=None if labels is None else tuple(keras.tree.flatten(labels)),
    )


def _given(model, optimizer, own):
    """(name, optimizer) of those that stand in place of the model's own."""
    if isinstance(optimizer, list | tuple):
        names = {id(x): name for name, x in own}
        for index, one in enumerate(optimizer):
            for _, found in _given(model, one, own):
                yield names.get(id(found), f"optimizer[{index}]"), found
        return
    try:
        found = keras.optimizers.get(optimizer)
    except ValueError:
        raise UserError(
            f"Expected a Keras optimizer, several, or a name. Received: {optimizer!r}."
        ) from None
    if found is not optimizer and model.dtype_policy.name == "mixed_float16":
        found = keras.optimizers.LossScaleOptimizer(found)
    yield "optimizer", found


def scales(optimizer) -> bool:
    """Whether an optimizer scales the loss, by a dynamic scale or by a fixed one."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or bool(
        getattr(optimizer, "loss_scale_factor", None)
    )


def scale_of(optimizer) -> float:
    """The factor that an optimizer which scales puts on the loss now."""
    return float(getattr(optimizer, "loss_scale_factor", None) or loss_scale.scale(optimizer))


def _optimizers(model):
    """(name of the attribute, optimizer) of all that a model holds, each once."""
    seen: set[int] = set()
    named = [("optimizer", getattr(model, "optimizer", None)), *vars(model).items()]
    for name, value in named:
        if name.startswith("_self_"):
            continue  # TensorFlow's own list of what a model holds
        held = [(name, value)]
        if isinstance(value, dict):
            held = [(f"{name}[{key!r}]", x) for key, x in value.items()]
        elif isinstance(value, list | tuple):
            held = [(f"{name}[{index}]", x) for index, x in enumerate(value)]
        for label, x in held:
            if isinstance(x, keras.optimizers.Optimizer) and id(x) not in seen:
                seen.add(id(x))
                yield label.removeprefix("_"), x
