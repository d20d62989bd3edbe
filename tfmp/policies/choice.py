"""Which precision: resolve a policy's name, scope it, name the layers that stay float32."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import keras
from keras.dtype_policies import DTypePolicy, DTypePolicyMap

from tfmp import hardware
from tfmp.errors import UserError

POLICIES = ("mixed_float16", "mixed_bfloat16", "float32", "auto")

# The first capability with float16 matrix units (Volta).
FLOAT16_CAPABILITY = (7, 0)

HALF = ("float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A policy's name, never "auto", and why it was chosen."""

    name: str
    reason: str


def resolve(name: str, device: hardware.Device | None = None) -> Resolved:
    """Turns one of `POLICIES` into the policy to use.

    Args:
        name: One of `POLICIES`. "auto" is mixed_float16 on GPUs of compute capability 7.0 and
            above (the lowest of several decides), mixed_bfloat16 on TPUs, float32 elsewhere.
        device: The facts "auto" decides by. None: those of this machine.

    Raises:
        ValueError: An unknown name, or one whose variables would be half.

    References:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740, section 3.1 (why
        the weights stay float32).
    """
    if name != "auto":
        _check_name(name)
        return Resolved(name, "asked for by name")
    device = device or hardware.describe()
    if device.kind == "tpu":
        return Resolved("mixed_bfloat16", f"{device.name}: TPUs multiply in bfloat16")
    if device.kind == "cpu":
        return Resolved("float32", f"{device.name}: a CPU gains nothing from half precision")
    if device.compute_capability is None:
        return Resolved("float32", f"{device.name}: its compute capability is unknown")
    capability = "{}.{}".format(*device.compute_capability)
    if device.compute_capability >= FLOAT16_CAPABILITY:
        return Resolved(
            "mixed_float16", f"{device.name}: compute capability {capability}, 7.0 or above"
        )
    return Resolved(
        "float32",
        f"{device.name}: compute capability {capability}, and float16 matrix units start at 7.0",
    )


def set_global(name: str) -> Resolved:
    """Makes a policy Keras' global one, for layers built from now on.

    Args:
        name: One of `POLICIES`.

    Returns:
        What it was resolved to.

    Raises:
        ValueError: See `resolve`.
    """
    resolved = resolve(name)
    keras.config.set_dtype_policy(resolved.name)
    return resolved


@contextlib.contextmanager
def scope(policy: str | DTypePolicy) -> Iterator[DTypePolicy]:
    """Makes a policy the global one for a `with` block, and restores the former after it.

    Construct, build and first call a model inside: some layers make their sublayers as late as
    that, under whatever policy is then global.

    Args:
        policy: One of `POLICIES`, a `DTypePolicy` or a `DTypePolicyMap`. Some layers ignore a
            map that is global; `set_policy` on a built model reaches all of them.

    Yields:
        The policy object in force.

    Raises:
        ValueError: See `resolve`.
    """
    new = as_policy(policy)
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(new)
    try:
        yield new
    finally:
        keras.config.set_dtype_policy(former)


def with_float32(
    patterns: str | Iterable[str], policy: str | DTypePolicy | None = None
) -> DTypePolicyMap:
    """A policy map that keeps some layers in float32.

    Give it to `set_policy` with a built model: as a global policy some layers ignore it.

    Args:
        patterns: Names, paths, or regular expressions that match the whole of one. A layer that
            matches takes its sublayers with it.
        policy: The policy of all other layers. None: the global one.

    Returns:
        The map, whose default policy is `policy`.

    Raises:
        ValueError: An invalid regular expression, or a policy `resolve` refuses.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"float32 layers: expected names or regular expressions. Received: {pattern!r}, "
                f"which is neither ({error})"
            ) from None
    default = as_policy(policy if policy is not None else keras.config.dtype_policy())
    if isinstance(default, DTypePolicyMap):
        default = default.default_policy
    return DTypePolicyMap(default, {p: DTypePolicy("float32") for p in patterns})


def save(policy_map: DTypePolicyMap, file: str | Path) -> None:
    """Writes a map of `with_float32` as JSON: {"policy": NAME, "float32": [PATTERN, ...]}.

    Raises:
        ValueError: The map holds something else than float32 layers.
    """
    others = {p: policy_map[p].name for p in policy_map if policy_map[p].name != "float32"}
    if others:
        raise UserError(
            f"policy map: expected float32 for every entry, which is all the file can say. "
            f"Received: {others}"
        )
    content = {"policy": policy_map.default_policy.name, "float32": list(policy_map)}
    Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(file: str | Path, expected_policy: str | None = None) -> DTypePolicyMap:
    """Reads what `save` wrote, or a person did.

    Args:
        file: Path of the JSON file.
        expected_policy: The policy that the file has to be for; None: any.

    Raises:
        ValueError: The file can't be read, isn't of that form, or is for another policy.
    """
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"float32 layers: expected a JSON file. Received: {error}") from None
    expected = (
        f'{file}: expected JSON such as {{"policy": "mixed_float16", "float32": ["stem_conv", '
        '"stage1_.*"]}.'
    )
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{expected} Received something that isn't JSON: {error}") from None
    if not isinstance(content, dict) or set(content) != {"policy", "float32"}:
        raise UserError(f"{expected} Received: {text[:200]!r}")
    policy, patterns = content["policy"], content["float32"]
    if not isinstance(policy, str) or not (
        isinstance(patterns, list) and all(isinstance(p, str) for p in patterns)
    ):
        raise UserError(f"{expected} Received: {text[:200]!r}")
    if expected_policy not in (None, policy):
        raise UserError(
            f"{file}: expected a file for the policy in force, {expected_policy}. Received one for "
            f"{policy}. Run with --policy={policy}, or change the file."
        )
    return with_float32(patterns, policy)


def _check_name(name: str) -> None:
    if name in HALF:
        raise UserError(
            f"policy: expected one of {', '.join(POLICIES)}. Received: {name!r}, whose variables "
            f"are half too: small updates would be rounded away. Use 'mixed_{name}'."
        )
    if name not in POLICIES:
        raise UserError(f"policy: expected one of {', '.join(POLICIES)}. Received: {name!r}")


def as_policy(policy: str | DTypePolicy) -> DTypePolicy:
    """The policy object of a name, and any object after a look at it."""
    if isinstance(policy, str):
        return DTypePolicy(resolve(policy).name)
    if not isinstance(policy, DTypePolicy):
        raise UserError(
            f"policy: expected one of {', '.join(POLICIES)} or a keras.dtype_policies object. "
            f"Received: {policy!r}"
        )
    members = [policy]
    if isinstance(policy, DTypePolicyMap):
        members = [policy.default_policy, *(policy[pattern] for pattern in policy)]
    for member in members:
        _check_name(member.name)
    return policy
