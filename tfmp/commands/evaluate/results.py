"""What evaluation.json holds: metric -> data set -> value, and what it was made with."""

import dataclasses
import typing

import numpy as np

from tfmp import evaluation, hardware
from tfmp.data import Data
from tfmp.errors import UserError
from tfmp.evaluation.summary import CALIBRATION
from tfmp.metrics import calibration, classification
from tfmp.training import session

# Above this number the matrix is left to confusion.png and predictions.npz.
CLASSES_IN_JSON = 100


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """All that was predicted.

    Attributes:
        config: A `tfmp.commands.evaluate.Config`.
        subject: A `tfmp.evaluation.Subject`.
        data: A `tfmp.data.Data`.
        groups: [examples] of strings, or None.
        jit_compile: Whether XLA compiled, by policy; the model's own comes first.
        predictions: `Predictions` by policy, and of "validation" where a temperature is wanted.
    """

    config: typing.Any
    subject: evaluation.Subject
    data: Data
    groups: np.ndarray | None
    jit_compile: dict
    predictions: dict

    @property
    def own(self) -> str:
        """The model's own policy."""
        return next(iter(self.jit_compile))

    @property
    def name(self) -> str:
        """What the results call the data."""
        split = self.config.split
        return self.data.name if split == "test" else f"{self.data.name}/{split}"

    def outcomes(self):
        """Those of the model's own policy."""
        own = self.predictions[self.own]
        return classification.outcomes(own.logits, own.labels)


def compiles(config, policy) -> bool:
    """Whether XLA compiles the predictions under a policy; "auto" as in training."""
    return session.compiles(config.jit_compile, hardware.describe(), policy)


def collect(found: Evaluated) -> dict:
    """The whole of evaluation.json."""
    values, intervals = _summary(found, found.own, replicates=found.config.replicates)
    results = _named(found, values) | {"intervals": _named(found, intervals)}
    if found.config.temperature_scaling:
        results |= _temperature(found)
    outcomes = found.outcomes()
    if outcomes.finite.all():
        results |= _named(found, {"reliability": _reliability(outcomes, found.config.bins)})
    if len(found.data.class_names) <= CLASSES_IN_JSON:
        matrix = classification.confusion(outcomes)
        results |= _named(found, {"confusion": matrix.tolist()})
    return results | {"policies": _policies(found, values), "made_with": _made_with(found)}


def _named(found, values):
    return {metric: {found.name: value} for metric, value in values.items()}


def _summary(found, policy, **options):
    return evaluation.summarize(
        found.predictions[policy],
        found.data.class_names,
        groups=found.groups,
        bins=found.config.bins,
        seed=found.config.seed,
        **options,
    )


def _reliability(outcomes, bins):
    """The bins of the calibration error; accuracy and confidence of an empty one are NaN."""
    binned = calibration.equal_width_bins(outcomes, bins)
    return {
        "edges": binned.edges.tolist(),
        "examples": binned.count.tolist(),
        "confidence": binned.confidence.tolist(),
        "accuracy": binned.accuracy.tolist(),
    }


def _temperature(found):
    """Calibration with a temperature fitted on the validation images, or why there is none."""
    known = found.predictions["validation"]
    try:
        fitted = calibration.temperature(known.logits, known.labels)
    except UserError as error:
        return _named(found, {"temperature": None, "temperature_missing": str(error)})
    replicates = found.config.replicates
    values, intervals = _summary(found, found.own, temperature=fitted, replicates=replicates)
    scaled = {
        **_named(found, {k: v for k, v in values.items() if k in CALIBRATION}),
        "intervals": _named(found, {k: v for k, v in intervals.items() if k in CALIBRATION}),
    }
    return {**_named(found, {"temperature": fitted}), "temperature_scaled": scaled}


def _policies(found, own_values):
    """The metrics under each policy, and what it differs in from float32, or else from its own."""
    reference = "float32" if "float32" in found.jit_compile else found.own
    policies = {}
    for policy in found.jit_compile:
        values = own_values if policy == found.own else _summary(found, policy, replicates=0)[0]
        if policy != reference:
            both = found.predictions[policy], found.predictions[reference]
            values = values | {f"against_{reference}": evaluation.compare(*both)}
        policies[policy] = _named(found, values)
    return policies


def _made_with(found):
    more = {"policy": found.own, "jit_compile": found.jit_compile}
    given = found.config, found.subject, found.data, found.config.split
    return evaluation.made_with(*given, **more)
