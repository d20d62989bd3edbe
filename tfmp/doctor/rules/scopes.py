"""Layers that are not in the precision of the model around them."""

from collections.abc import Iterator

import keras

from tfmp.doctor.finding import Finding
from tfmp.doctor.subject import Subject
from tfmp.doctor.trace import is_graph
from tfmp.policies.choice import HALF


def outside_scope(subject: Subject) -> Iterator[Finding]:
    """A sublayer made after the policy's scope has ended is float32, silently.

    Layers take the policy that is global when they are made. A layer that makes its sublayers in
    `build`, or at its first call, does so when the model is built: if the scope has ended by then,
    they compute in float32 inside of a half parent. Values are right; speed and memory are
    float32's, and each border costs a cast.

    Example:
        class Block(keras.layers.Layer):
            def build(self, shape):
                self.dense = keras.layers.Dense(8)
                self.dense.build(shape)

            def call(self, x):
                return self.dense(x)

        with tfmp.policies.scope("mixed_float16"):
            block = Block()
        block(keras.ops.zeros((1, 8)))  # too late
        block.dense.compute_dtype  # float32

    Mend:
        Give sublayers `dtype=self.dtype_policy`, or construct, build and first call a model within
        one `tfmp.policies.scope`. `tfmp.policies.set_policy` changes a built model.

    References:
        Seen on Keras 3.15.
    """
    for part in subject.parts:
        parent = part.parent or subject.model
        # (A functional model and a wrapper are given their layers.)
        if part.hidden or is_graph(parent) or type(parent).__module__.startswith("keras."):
            continue
        layer = part.layer
        if parent.compute_dtype not in HALF or layer.compute_dtype != "float32":
            continue
        if not layer.trainable_variables or _asked_for(layer):
            continue
        yield Finding(
            "outside_scope",
            # A parent that was told its precision is a choice, and its sublayers may be one, too.
            "info" if _told(parent) else "warning",
            part.path,
            f"Computes in float32 inside of {parent.name}, which computes in "
            f"{parent.compute_dtype}, and was not told to: it took the global policy of when it "
            "was made. Give it dtype=self.dtype_policy, or dtype='float32' if that is meant.",
            {"dtype": layer.compute_dtype, "parent_dtype": parent.compute_dtype},
        )


def _told(layer) -> bool:
    """Whether a layer's constructor was given a dtype."""
    return getattr(getattr(layer, "_auto_config", None), "config", {}).get("dtype") is not None


def _asked_for(layer) -> bool:
    """Whether somebody gave the layer its policy: in its constructor, or by `set_policy`."""
    config = getattr(getattr(layer, "_auto_config", None), "config", None)
    if config is None:
        return True  # its arguments are not kept; nobody knows
    if _told(layer) or getattr(layer, "_tfmp_float32", False):
        return True
    # Who took the global policy has that very object.
    return layer._dtype_policy is not keras.config.dtype_policy()
