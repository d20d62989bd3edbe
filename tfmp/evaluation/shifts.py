"""What two kinds of runs make of corrupted test images, and of images of other data sets."""

import dataclasses

import numpy as np

from tfmp.errors import UserError
from tfmp.metrics import corruption, equivalence
from tfmp.metrics import detection as scoring


@dataclasses.dataclass(frozen=True)
class Shifts:
    """A run's predictions of such images.

    Attributes:
        wrong: Corruption -> [severities, examples] bool; empty for none.
        outside: Data set -> logits [examples, classes]; empty for none.
        non_finite: How many of all these images have logits that are not finite.
    """

    wrong: dict = dataclasses.field(default_factory=dict)
    outside: dict = dataclasses.field(default_factory=dict)
    non_finite: int = 0


def corruptions(reference, other, *, paired=False):
    """Compares the errors of corrupted images.

    The mean error over corruptions and severities is a mean over the images, each of which counts
    once, whatever its corruptions have in common. mCE has the reference runs' own mean errors as
    its baseline and so is 1 for them; it takes these errors as given, which is right to first
    order.

    Args:
        reference: List of `Shifts`, one a run.
        other: List of `Shifts` of the other kind.
        paired: As for `tfmp.metrics.equivalence.compare_values`.

    Yields:
        Metric, name (None) and `Comparison`: "corruption_error", of the corruptions of ImageNet-C
        that are there; "extra_corruption_error", of the others; "mce", unless the reference is
        never wrong under one of them.

    Raises:
        UserError: The runs are of other corruptions or images.
    """
    kinds = reference, other
    shapes = {tuple((k, v.shape) for k, v in run.wrong.items()) for kind in kinds for run in kind}
    if len(shapes) != 1:
        raise UserError("Expected runs under the same corruptions. Received: other ones.")
    # By corruption [runs, examples], the mean over the severities.
    errors = [
        {name: np.stack([run.wrong[name].mean(0) for run in kind]) for name in kind[0].wrong}
        for kind in kinds
    ]
    named = {
        "corruption_error": [name for name in errors[0] if name in corruption.IMAGENET_C],
        "extra_corruption_error": [name for name in errors[0] if name in corruption.EXTRA],
    }
    for metric, names in named.items():
        if names:
            tables = [np.mean([kind[name] for name in names], 0) for kind in errors]
            yield metric, None, equivalence.compare_means(*tables, paired=paired)
    baseline = {name: errors[0][name].mean() for name in named["corruption_error"]}
    if baseline and all(baseline.values()):
        tables = [np.mean([kind[n] / baseline[n] for n in baseline], 0) for kind in errors]
        yield "mce", None, equivalence.compare_means(*tables, paired=paired)


def detection(logits, shifts, *, paired=False):
    """Compares how well scores tell test images from those of other data sets.

    An AUROC is a mean over the test images of where each stands among the others, and a mean over
    the others likewise; the variance that the choice of the images adds is that of both.

    Args:
        logits: Two lists of [examples, classes], one a run, of the test images; finite.
        shifts: Two lists of `Shifts`.
        paired: As for `tfmp.metrics.equivalence.compare_values`.

    Yields:
        Metric, the data set's name and `Comparison`: "auroc" by the largest softmax probability,
        then "auroc_energy" and "auroc_max_logit".

    Raises:
        UserError: The runs are of other data sets or images.

    References:
        DeLong, DeLong and Clarke-Pearson 1988; see `tfmp.metrics.detection.placements`.
    """
    shapes = {tuple((k, v.shape) for k, v in x.outside.items()) for kind in shifts for x in kind}
    if len(shapes) != 1:
        raise UserError("Expected runs on the same data sets out of distribution. Received: other.")
    inside = [[scoring.scores(run) for run in kind] for kind in logits]
    for name in shifts[0][0].outside:
        outside = [[scoring.scores(run.outside[name]) for run in kind] for kind in shifts]
        for score in scoring.SCORES:
            placed = [
                [scoring.placements(a[score], b[score]) for a, b in zip(*runs, strict=True)]
                for runs in zip(inside, outside, strict=True)
            ]
            ours, theirs = (
                equivalence.compare_means(
                    *(np.stack([run[side] for run in kind]) for kind in placed), paired=paired
                )
                for side in (0, 1)
            )
            examples = ours.spread.between_examples + theirs.spread.between_examples
            spread = dataclasses.replace(ours.spread, between_examples=examples)
            metric = "auroc" if score == "max_softmax" else f"auroc_{score}"
            yield metric, name, dataclasses.replace(ours, spread=spread)
