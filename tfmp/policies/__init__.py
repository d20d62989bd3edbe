"""Precision: resolve a policy's name, scope it, pin layers to float32, change a built model.

A policy is a `keras.dtype_policies` object throughout, so each function works alone in any Keras
program. "Half" stands for float16 and bfloat16.
"""

from tfmp.policies.change import policy_of, set_policy, uses_float16
from tfmp.policies.choice import (
    POLICIES,
    Resolved,
    load,
    resolve,
    save,
    scope,
    set_global,
    with_float32,
)

__all__ = [
    "POLICIES",
    "Resolved",
    "load",
    "policy_of",
    "resolve",
    "save",
    "scope",
    "set_global",
    "set_policy",
    "uses_float16",
    "with_float32",
]
