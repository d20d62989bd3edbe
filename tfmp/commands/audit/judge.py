"""What of a training's state a file holds, and what a loaded model has of it: pure functions."""

import collections
import dataclasses

HALF = ("float16", "bfloat16")
FLOAT16 = ("mixed_float16", "float16")

# What may have become of a part.
RESTORED, LOST, MISSING = "restored", "lost", "not in the file"
NONE_NEEDED, NOT_LOADED, UNKNOWN = "none needed", "not loaded", "not known"


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a training's state.

    Attributes:
        name: What it is.
        file: What the file holds of it, in words.
        keras: What became of it by Keras' own `load_model`.
        tfmp: What became of it by `tfmp.load`.
    """

    name: str
    file: str
    keras: str
    tfmp: str


def parts(contents, keras, tfmp) -> list[Part]:
    """The parts of a saved model's state.

    Args:
        contents: A `contents.Contents`.
        keras: What came of Keras' own loading: a dict of `loaded.load`; None: nothing.
        tfmp: The same of `tfmp.load`.
    """
    found = []
    for name, function in PARTS.items():
        words, needed, there, kept = function(contents, [x for x in (keras, tfmp) if x])
        statuses = [_status(needed, there, kept, state) for state in (keras, tfmp)]
        found.append(Part(name, words, *statuses))
    return found


def _status(needed, there, kept, state):
    if needed is None:
        return UNKNOWN
    if not needed:
        return NONE_NEEDED
    if not there:
        return MISSING
    if not state or "error" in state:
        return NOT_LOADED
    return RESTORED if kept(state) else LOST


# Each gives: what the file holds, in words; whether the model needs it, None where that is not
# known; whether the file has it; and a function that says whether a loaded model has it.


def _weights(contents, _):
    total = sum(contents.dtypes.values())
    words = f"{total} arrays: " + ", ".join(contents.dtypes)
    words = words if total else "none"
    whole = not set(HALF) & set(contents.dtypes)
    words += "" if whole else "; what half rounded away is gone"
    return words, True, whole and total > 0, lambda x: _within(contents.weights, x["weights"])


def _policy(contents, _):
    if not contents.policies:
        return "nothing: the code that makes the model decides", True, False, None
    counts = collections.Counter(contents.policies.values())
    words = ", ".join(f"{name} of {count}" for name, count in counts.most_common()) + " layers"

    def kept(state):
        there = state["policies"]
        half = any(name.endswith(HALF) for name in contents.policies.values())
        same = all(there.get(name, policy) == policy for name, policy in contents.policies.items())
        return same and (not half or any(name.endswith(HALF) for name in there.values()))

    return words, True, True, kept


def _optimizer(contents, _):
    if contents.optimizer is None:
        return "none", True, False, None
    if not contents.iterations:
        words = f"{contents.optimizer}, before its first update"
    else:
        words = f"{contents.optimizer}, {len(contents.state)} arrays, {contents.iterations} updates"

    def kept(state):
        same = contents.optimizer in (state["optimizer"], "unnamed")
        return same and (not contents.iterations or _within(contents.state, state["state"]))

    return words, True, True, kept


def _loss_scale(contents, _):
    half = contents.policies and any(x in FLOAT16 for x in contents.policies.values())
    words = "none" if contents.scale is None else f"{contents.scale:g}"
    needed = bool(half) or contents.scaled or contents.policies is None
    return (
        words,
        needed,
        contents.scale is not None,
        lambda x: x["scaled"] and x["scale"] == contents.scale,
    )


def _seeds(contents, loaded):
    held = [len(state["seeds"]) for state in loaded if "seeds" in state]
    there = len(contents.seeds)
    needed = there or max(held, default=None)
    words = f"{there} states" if there else "none"
    words += f"; layers have {needed}" if needed and not there else ""
    return words, needed, there > 0, lambda x: _within(contents.seeds, x["seeds"])


def _within(digests, others):
    return not collections.Counter(digests) - collections.Counter(others)


PARTS = {
    "float32 weights": _weights,
    "policy": _policy,
    "optimizer": _optimizer,
    "loss scale": _loss_scale,
    "random state": _seeds,
}
