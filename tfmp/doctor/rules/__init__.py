"""The doctor's rules, by name: each a function of a `Subject` that yields findings.

A rule's docstring is its section of `docs/hazards.md`. A new rule is a function in a file of this
folder and a line of `RULES`.
"""

from collections.abc import Callable, Iterable

from tfmp.doctor.finding import Finding
from tfmp.doctor.rules import (
    backward,
    constants,
    forward,
    ids,
    lossy,
    outputs,
    preprocessing,
    probed,
    scaling,
    scopes,
    sizes,
    slots,
    states,
    steps,
    variables,
    xla,
)
from tfmp.doctor.subject import Subject

__all__ = ["RULES"]

RULES: dict[str, Callable[[Subject], Iterable[Finding]]] = {
    "half_output": outputs.half_output,
    "half_added_loss": outputs.half_added_loss,
    "no_loss_scale": scaling.no_loss_scale,
    "unscaled_loss": scaling.unscaled_loss,
    "clipped_before_unscaling": scaling.clipped_before_unscaling,
    "replicas_loss_scale": scaling.replicas_loss_scale,
    "half_variables": variables.half_variables,
    "weight_overflow": variables.weight_overflow,
    "rounded_state": variables.rounded_state,
    "stalled_state": states.stalled_state,
    "half_slots": slots.half_slots,
    "half_optimizer_epsilon": variables.half_optimizer_epsilon,
    "half_loss": variables.half_loss,
    "half_gradients": steps.half_gradients,
    "half_labels": steps.half_labels,
    "constant_overflow": constants.constant_overflow,
    "constant_underflow": constants.constant_underflow,
    "rounded_ids": ids.rounded_ids,
    "lossy_layer": lossy.lossy_layer,
    "half_preprocessing": preprocessing.half_preprocessing,
    "half_augmentation": preprocessing.half_augmentation,
    "outside_scope": scopes.outside_scope,
    "xla_off": xla.xla_off,
    "xla_refuses": xla.xla_refuses,
    "half_resize": xla.half_resize,
    "misaligned_sizes": sizes.misaligned_sizes,
    "not_traced": outputs.not_traced,
    "half_overflow": forward.half_overflow,
    "inner_overflow": forward.inner_overflow,
    "flush_to_zero": forward.flush_to_zero,
    "leaves_float32": forward.leaves_float32,
    "cancellation": forward.cancellation,
    "other_choice": forward.other_choice,
    "fails_in_half": forward.fails_in_half,
    "backward_overflow": backward.backward_overflow,
    "backward_loss": backward.backward_loss,
    "gradient_underflow": backward.gradient_underflow,
    "gradients_off_scale": backward.gradients_off_scale,
    "fixed_scale_overflows": backward.fixed_scale_overflows,
    "update_underflow": backward.update_underflow,
    "little_headroom": probed.little_headroom,
    "not_probed": probed.not_probed,
}
