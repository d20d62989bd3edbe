"""What corruptions of its images cost a classifier, beside another one."""

import dataclasses
import math

import numpy as np

from tfmp.data import DataError
from tfmp.evaluation.predictions import predict
from tfmp.metrics import bootstrap, classification, corruption

REPLICATES = 2000


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """What became of each corrupted image.

    Attributes:
        correct: Corruption -> [severities, examples] bool; not finite is not correct.
        non_finite: Number of images whose logits are not finite.
    """

    correct: dict
    non_finite: int

    @property
    def errors(self) -> dict:
        """Corruption -> [severities] float64, 0-1."""
        return {name: 1 - correct.mean(1) for name, correct in self.correct.items()}


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Whose errors the corruption errors are divided by.

    Attributes:
        name: What the results call it.
        errors: Corruption -> [severities], 0-1, of the same severities.
        clean_error: On images that are not corrupted.
    """

    name: str
    errors: dict
    clean_error: float


def under_corruptions(compiled, corrupted, batch_size) -> Corrupted:
    """Predicts a corrupted set.

    Args:
        compiled: What `forward` made of the model.
        corrupted: A `tfmp.data.corrupted.Made` or `ReadyMade`, made.
        batch_size: Images predicted at once.

    Raises:
        OutOfMemoryError: The device's memory does not hold a batch.
        DataError: The corruptions are not of the same examples.
    """
    correct, non_finite, labels = {}, 0, None
    examples = corrupted.examples * len(corrupted.severities)
    for name in corrupted.corruptions:
        print(f"  {name} ...", flush=True)
        seen = predict(
            None, corrupted.batches(name, batch_size), examples=examples, compiled=compiled
        )
        found = classification.outcomes(seen.logits, seen.labels)
        by_severity = found.labels.reshape(len(corrupted.severities), -1)
        labels = by_severity[0] if labels is None else labels
        if not (by_severity == labels).all():
            raise DataError(
                "Expected the same examples in the same order under all corruptions. Received: "
                f"{name} with other labels. Prepare that set anew."
            )
        correct[name] = found.correct.reshape(by_severity.shape)
        non_finite += int((~found.finite).sum())
    return Corrupted(correct, non_finite)


def summarize_corruptions(found, severities, clean_error, baseline=None, *, seed=0) -> dict:
    """The errors of a corrupted set.

    Args:
        found: A `Corrupted`.
        severities: Of its rows.
        clean_error: On images that are not corrupted, 0-1.
        baseline: A `Baseline`, or None.
        seed: Decides the resampling behind the intervals.

    Returns:
        A dict: `errors`, corruption -> severity -> error; `mean_errors`, corruption -> mean over
        the severities; `mean_error` over those of ImageNet-C that are there, `extra_mean_error`
        over the others, NaN for none; `corruptions`, how many of ImageNet-C's there are;
        `intervals` at 95 % by bootstrap over the examples; `non_finite`, and `examples`. With a
        baseline also `baseline`: its `name`, `clean_error` and `mean_errors`, `ce` and
        `relative_ce` by corruption, `mce` and `relative_mce` (ratios; see
        `tfmp.metrics.corruption`), and the interval of `mce`, which takes the baseline as given.
    """
    errors = found.errors
    means = {name: float(values.mean()) for name, values in errors.items()}
    against = _against(errors, clean_error, baseline) if baseline else {}
    return {
        "examples": next(iter(found.correct.values())).shape[1],
        "corruptions": sum(name in corruption.IMAGENET_C for name in errors),
        "non_finite": found.non_finite,
        "clean_error": clean_error,
        "mean_error": corruption.mean_over(means),
        "extra_mean_error": corruption.mean_over(means, corruption.EXTRA),
        "mean_errors": means,
        "errors": {
            name: dict(zip(map(str, severities), values.tolist(), strict=True))
            for name, values in errors.items()
        },
        "intervals": _intervals(found.correct, against, seed),
        **({"baseline": against} if against else {}),
    }


def _intervals(correct, against, seed):
    """Of the mean errors, and of mCE where it is known."""
    # By example, so that resampling keeps what the corruptions of one image have in common.
    columns = {name: 1 - values.mean(0) for name, values in correct.items()}
    whole = {
        "mean_error": [columns[name] for name in corruption.IMAGENET_C if name in columns],
        "extra_mean_error": [columns[name] for name in corruption.EXTRA if name in columns],
    }
    if against and math.isfinite(against["mce"]):
        theirs = against["mean_errors"]
        whole["mce"] = [
            columns[name] / theirs[name] for name in corruption.IMAGENET_C if name in theirs
        ]
    means = {name: np.mean(chosen, 0) for name, chosen in whole.items() if chosen}
    drawn = bootstrap.intervals_of_means(
        np.stack([*columns.values(), *means.values()], 1), replicates=REPLICATES, seed=seed
    ).tolist()
    by_name = dict(zip(columns, drawn[: len(columns)], strict=True))
    return {"mean_errors": by_name, **dict(zip(means, drawn[len(columns) :], strict=True))}


def _against(errors, clean_error, baseline):
    ce = corruption.corruption_errors(errors, baseline.errors)
    relative = corruption.relative_errors(
        errors, clean_error, baseline.errors, baseline.clean_error
    )
    return {
        "name": baseline.name,
        "clean_error": baseline.clean_error,
        "mean_errors": {name: float(np.mean(baseline.errors[name])) for name in ce},
        "ce": ce,
        "relative_ce": relative,
        "mce": corruption.mean_over(ce),
        "relative_mce": corruption.mean_over(relative),
    }
