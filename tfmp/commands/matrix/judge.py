"""What makes a cell red: pure functions of what its process found."""

import math
import statistics

# What a saved model's predictions may differ by in a fresh process, in units of their rounding: on
# a GPU other kernels may be chosen there.
ROUNDINGS = 8
EPS = {"float32": 2.0**-23, "mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-7}


def reasons(cell, found, reference, tolerance):
    """Why a cell is red, one sentence each; none where it is green.

    Args:
        cell: A `session.Cell`.
        found: What `cell.train` found, with what `reload` found as `reload`; or {"error": why there
            is nothing}.
        reference: What was found in float32 with the same XLA and replicas; None: nothing.
        tolerance: Share by which the mean loss may differ from the reference's.
    """
    if "error" in found:
        return [found["error"]]
    return [
        *_policy(cell, found),
        *_finite(found),
        *_against(cell, found, reference, tolerance),
        *_outputs(found),
        *_loss_scale(found),
        *_reload(cell, found),
    ]


def _policy(cell, found):
    computes = found["computes"]
    if computes == cell.policy:
        return
    if computes == "float32":
        half = cell.policy.removeprefix("mixed_")
        yield (
            f"no layer computes in {half}: the function has to make the model, of layers that take "
            "the policy in force"
        )
    else:
        half = computes.removeprefix("mixed_")
        yield f"layers compute in {half} by a policy of their own, or one that the function sets"


def _finite(found):
    steps, skipped, losses = found["steps"], found["skipped_steps"], found["losses"]
    bad = [loss for loss in losses if loss is None]
    # By these the loss scale came down from where it starts.
    first = min(skipped, next((i for i, loss in enumerate(losses) if loss is not None), steps))
    if skipped == steps:
        yield f"all {steps} steps were skipped, since loss or gradients are not finite"
    elif skipped > first + 1 and found["last_overflow_step"] - first > max(2, (steps - first) // 2):
        yield (
            f"{skipped} of {steps} steps were skipped, up to step {found['last_overflow_step']}: "
            "gradients go on to overflow"
        )
    elif len(bad) > skipped:
        yield f"the loss is not finite in {len(bad)} of {steps} steps"
    elif not found["changed"]:
        yield "no weight has changed"
    if not found["weights_finite"]:
        yield "weights are not finite"
    if not found["outputs_finite"]:
        yield "outputs are not finite"


def _losses(found):
    """Those of the steps that were not skipped; none where one is not finite, or of no cell."""
    losses = (found or {}).get("losses", [])
    good = [loss for loss in losses if loss is not None]
    return good if losses and len(losses) - len(good) == found["skipped_steps"] else []


def _pairs(found, reference):
    """(loss, the reference's) by steps that were not skipped: the others change nothing."""
    return list(zip(_losses(found), _losses(reference), strict=False))


def deviation(found, reference):
    """Share by which the mean loss differs from the reference's; None where that is unknown."""
    pairs = _pairs(found, reference)
    if not pairs:
        return None
    difference = abs(sum(ours - theirs for ours, theirs in pairs))
    return difference / max(sum(abs(theirs) for _, theirs in pairs), 1e-3 * len(pairs))


def _against(cell, found, reference, tolerance):
    # A deviation from itself would say nothing.
    share = None if cell.policy == "float32" else deviation(found, reference)
    if share is not None and not share <= tolerance:
        ours, theirs = map(statistics.mean, zip(*_pairs(found, reference), strict=True))
        yield f"the mean loss is {ours:.4g}, {share:.0%} off float32's {theirs:.4g}"
    if found["changed"] and "unchanged" in (reference or {}):
        there = {index for index, _ in reference["unchanged"]}
        still = [path for index, path in found["unchanged"] if index not in there]
        if still:
            more = f" and {len(still) - 2} more" if len(still) > 2 else ""
            yield (
                f"{', '.join(still[:2])}{more} did not change, and did in float32: no gradient "
                "gets there"
            )


def _outputs(found):
    half = [name for name in found["output_dtypes"] if name in ("float16", "bfloat16")]
    if half:
        yield f"outputs are {', '.join(half)}: give the last layer dtype='float32'"


def _loss_scale(found):
    if not found["uses_float16"]:
        return
    kind = found["loss_scale"]
    if kind == "none":
        yield (
            "layers compute in float16, but the optimizer has no loss scale: compile with "
            "tfmp.compile, or wrap the optimizer by tfmp.wrap"
        )
    elif kind == "static":
        yield "layers compute in float16, but the loss scale is static: overflows don't lower it"
    elif found["scale"] <= 1 or not math.isfinite(found["scale"]):
        yield f"the loss scale has collapsed to {found['scale']:g}"


def _reload(cell, found):
    reload = found.get("reload", {"error": "it was not tried"})
    if "unsaved" in reload:
        yield f"the model can't be saved: {reload['unsaved']}"
    elif "error" in reload:
        yield f"the saved model can't be used in a fresh process: {reload['error']}"
    elif (
        not reload.get("difference", 0) <= ROUNDINGS * EPS[cell.policy] and found["outputs_finite"]
    ):
        yield (
            "the saved model predicts something else in a fresh process, by "
            f"{reload['difference']:.2g} of the largest output"
        )
