"""One examination: loads, predicts, tries each axis, writes and prints."""

import dataclasses
import functools
import typing
from collections.abc import Callable

import numpy as np

from tfmp import evaluation, files, hardware, policies
from tfmp.commands.evaluate.results import compiles
from tfmp.commands.robustness import corruptions, report
from tfmp.data import Data
from tfmp.errors import NonFiniteError, TfmpError
from tfmp.metrics import classification


@dataclasses.dataclass(frozen=True)
class Found:
    """What each axis starts from.

    Attributes:
        config: A `tfmp.commands.robustness.Config`.
        subject: A `tfmp.evaluation.Subject`.
        data: A `tfmp.data.Data`.
        policy: The model's own.
        jit_compile: Whether XLA compiles under it.
        compiled: What `tfmp.evaluation.forward` made of the model.
        test: Makes the test images in batches that the model takes.
        own: `Predictions` of the test images as they are.
        others: `tfmp.data.Data` out of distribution, by name.
        corrupted: A `tfmp.commands.robustness.corruptions.Plan`, or None.
        arrays: What robustness.npz is to hold, which the axes add to.
    """

    config: typing.Any
    subject: evaluation.Subject
    data: Data
    policy: str
    jit_compile: bool
    compiled: Callable
    test: Callable
    own: evaluation.Predictions
    others: dict
    corrupted: corruptions.Plan | None
    arrays: dict = dataclasses.field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Images that the model takes at once."""
        return self.subject.model.input_shape[0] or self.config.batch_size


def robustness(config):
    """Examines a model.

    Args:
        config: A `tfmp.commands.robustness.Config`.

    Returns:
        What `robustness.json` holds.

    Raises:
        UserError: The model or the data don't fit, or the folder can't be used.
        NonFiniteError: Logits of images as they are are not finite; the file is written before.
        TfmpError: The file can't be written.
    """
    workdir = evaluation.new_workdir("robustness", config.workdir, "robustness.json")
    hardware.set_tf32(config.tf32)
    subject = evaluation.load(config.model)
    asked = {name: getattr(config, name) for name in ("data_dir", "manual_dir")}
    data, options = evaluation.data_for(subject, config.dataset, **asked)
    others = {}
    if "ood" in config.chosen:
        places = {"data_dir": options["data_dir"], "manual_dir": config.manual_dir}
        others = evaluation.outside_data(config.ood, data, **places)
    corrupted = None
    if "corruptions" in config.chosen:
        corrupted = corruptions.plan(config, subject, data, options)
    evaluation.make_workdir(workdir)
    found = _start(config, subject, data, others, corrupted)
    results = _summary(found)
    for axis in config.chosen:
        print(f"{axis} ...", flush=True)
        results[axis] = {data.name: TRY[axis](found)}
    more = {"policy": found.policy, "jit_compile": found.jit_compile}
    results["made_with"] = evaluation.made_with(config, subject, data, **more)
    try:
        if found.arrays:
            files.write_arrays(workdir / "robustness.npz", found.arrays)
        written = files.write_json(workdir / "robustness.json", results)
    except OSError as error:
        raise TfmpError(
            f"Can't write the results to {workdir}: {error}. Start again where there is space."
        ) from error
    print(report.text(written, data.name, workdir), flush=True)
    _check_finite(written, data.name, workdir)
    return written


def _start(config, subject, data, others, corrupted):
    policy = policies.policy_of(subject.model)
    jit_compile = compiles(config, policy)
    compiled = evaluation.forward(subject.model, jit_compile=jit_compile)
    print(f"predicting {data.name} under {policy} ...", flush=True)
    assert data.test is not None, "data_for has looked"
    test = functools.partial(data.test, subject.model.input_shape[0] or config.batch_size)
    examples = data.sizes["test"]
    own = evaluation.predict(subject.model, test(), examples=examples, compiled=compiled)
    facts = policy, jit_compile, compiled, test, own
    return Found(config, subject, data, *facts, others, corrupted)


def _summary(found):
    right = classification.outcomes(found.own.logits, found.own.labels)
    values = {
        "examples": len(right.labels),
        "accuracy": float(right.correct.mean()),
        "non_finite": int((~right.finite).sum()),
    }
    return {name: {found.data.name: value} for name, value in values.items()}


def _input(found):
    return evaluation.vary_inputs(found.compiled, found.test, found.own)


def _corruptions(found):
    right = classification.outcomes(found.own.logits, found.own.labels).correct
    values, seen = corruptions.evaluate(found, right)
    # [corruptions, severities, examples], in the order of "errors".
    found.arrays["corrupted_correct"] = np.stack(list(seen.correct.values()))
    return values


def _ood(found):
    seen = evaluation.predict_others(found.compiled, found.others, found.batch_size)
    # In the order of "against".
    for index, predictions in enumerate(seen.values()):
        found.arrays[f"ood_logits_{index}"] = predictions.logits
    return evaluation.detect(seen, found.own)


def _adversarial(found):
    config = found.config
    # Radii in ascending order, each once, which the checks want.
    epsilons = {norm: sorted(set(getattr(config, norm))) for norm in ("linf", "l2")}
    settings = evaluation.AttackSettings(
        {norm: values for norm, values in epsilons.items() if values},
        steps=config.steps,
        restarts=config.restarts,
        batch_size=found.batch_size,
        seed=config.seed,
    )
    gradients = evaluation.under_policies(found.subject, ("float32",))
    images, labels = evaluation.sample(
        found.test(), found.data.sizes["test"], config.attack_examples, config.seed
    )
    jit_compile = {policy: compiles(config, policy) for policy in gradients}
    given = found.compiled, gradients, images, labels, settings
    return evaluation.attack(*given, jit_compile=jit_compile)


# What each axis gives; the key is its name in the flag and in the file.
TRY = {"input": _input, "corruptions": _corruptions, "ood": _ood, "adversarial": _adversarial}


def _check_finite(written, name, workdir):
    count = written["non_finite"][name]
    if count:
        raise NonFiniteError(
            f"Logits are not finite for {count:,} of {written['examples'][name]:,} test images as "
            f"they are: they count as wrong, and what needs them is unknown. See {workdir}."
        )
