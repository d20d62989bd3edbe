"""What a `train_step` asks of its optimizer: seen, and recorded where it is not to happen yet."""

import threading

import tensorflow as tf

from tfmp import loss_scale
from tfmp.errors import UserError

# The watches in force, by optimizer and thread: native replicas run in threads that take turns.
_watching: dict[tuple[int, int], "Watch"] = {}


class Watch:
    """Sees what a `train_step` asks of an optimizer; given a weight, records its gradients.

    Args:
        optimizer: A Keras optimizer.
        weight: Factor on the loss beside the scale; None: gradients are applied as ever.

    Attributes:
        scaled: Whether the loss was scaled.
        losses: The losses that were scaled, as they were before.
        applied: (gradients, variables) of each time that they were to be applied.
    """

    def __init__(self, optimizer, weight=None):
        self.optimizer = optimizer
        self.weight = weight
        self.scaled = False
        self.losses = []
        self.applied = []

    def __enter__(self):
        _watching[self._key()] = self
        vars(self.optimizer).update(
            apply=lambda *args: _watching[self._key()].apply(*args),
            scale_loss=lambda loss: _watching[self._key()].scale_loss(loss),
        )
        return self

    def __exit__(self, *error):
        del _watching[self._key()]
        if not any(key[0] == id(self.optimizer) for key in _watching):
            del vars(self.optimizer)["apply"], vars(self.optimizer)["scale_loss"]

    def _key(self):
        return id(self.optimizer), threading.get_ident()

    def scale_loss(self, loss):
        """Scales the loss, with the weight."""
        self.scaled = True
        self.losses.append(loss)
        if self.weight is not None:
            loss = loss * tf.cast(self.weight, loss.dtype)
        return type(self.optimizer).scale_loss(self.optimizer, loss)

    def apply(self, grads, trainable_variables=None):
        """Applies the gradients or, given a weight, records them."""
        variables = trainable_variables or self.optimizer._trainable_variables
        self.applied.append((list(grads), list(variables)))
        if self.weight is None:
            type(self.optimizer).apply(self.optimizer, grads, trainable_variables)

    def check(self, model):
        """Raises an error if gradients of a loss that was not scaled would be unscaled."""
        if self.applied and not self.scaled and loss_scale.is_dynamic(self.optimizer):
            raise UserError(
                f"Expected {type(model).__name__}.train_step to scale the loss before "
                "tape.gradient: loss = self.optimizer.scale_loss(loss). Received gradients of a "
                "loss that was not scaled, which the optimizer would divide by the loss scale."
            )
