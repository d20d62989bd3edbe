"""One comparison: trains, evaluates, compares, writes and prints."""

import dataclasses
import datetime

from tfmp import evaluation, files, provenance
from tfmp.commands.parity import costs, report, runs, shifts
from tfmp.errors import DifferentError, TfmpError, UndecidedError, UserError
from tfmp.evaluation import parity


def compare(config):
    """Compares two kinds of runs.

    Args:
        config: A `tfmp.commands.parity.Config`.

    Returns:
        What parity.json holds, where the kinds are equivalent.

    Raises:
        DifferentError: They differ; the files are written before.
        UndecidedError: There are not enough runs to tell; likewise.
        NonFiniteError: A training became non-finite.
        StoppedError: The user stopped a training.
        UserError: A mistake in the flags or the runs.
    """
    workdir = _workdir(config)
    plans = runs.plan(config, workdir)
    evaluation.make_workdir(workdir)
    for plan in plans:
        runs.train(plan)
    evaluated = [runs.evaluate(plan, workdir, config.group_by) for plan in plans]
    kinds = [[x for x in evaluated if x.kind == kind] for kind in ("reference", "other")]
    _check(kinds)
    shifted, constants = _shifted(config, plans, evaluated, workdir)
    found = parity.compare(
        [x.predictions for x in kinds[0]],
        [x.predictions for x in kinds[1]],
        kinds[0][0].class_names,
        paired=_paired(kinds),
        groups=kinds[0][0].groups,
        shifts=shifted,
        margins=parity.Margins(
            accuracy=config.margin,
            part=config.part_margin,
            ece=config.ece_margin,
            corruption=config.corruption_margin,
            auroc=config.auroc_margin,
        ),
        alpha=config.alpha,
    )
    written = {
        "kinds": ["reference", "other"]
        if config.reference_runs
        else [config.reference, config.policy],
        **found,
        "costs": costs.compare(kinds, config.target_accuracy),
        "made_with": {
            "config": dataclasses.asdict(config),
            "runs": [[x.made_with for x in kind] for kind in kinds],
            "corrupted_images": constants,
            "versions": provenance.versions(),
            "git_commit": provenance.git_commit(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    }
    try:
        written = files.write_json(workdir / "parity.json", written)
    except OSError as error:
        raise TfmpError(f"Can't write to {workdir}: {error}.") from error
    print(report.text(written, workdir), flush=True)
    return _end(written)


def _shifted(config, plans, evaluated, workdir):
    """Two lists of `Shifts`, and the constants of the corrupted images; None where not asked."""
    words = shifts.flags(config)
    if not words:
        return None, None
    found, constants = shifts.evaluate(plans, evaluated, workdir, words)
    pairs = list(zip(evaluated, found, strict=True))
    kinds = [[x for run, x in pairs if run.kind == kind] for kind in ("reference", "other")]
    return kinds, constants


def _end(written):
    sentence = f"{written['verdict']}: {written['reason']}."
    if written["verdict"] == "different":
        raise DifferentError(sentence)
    if written["verdict"] != "equivalent":
        raise UndecidedError(sentence)
    return written


def _workdir(config):
    workdir = files.workdir("parity", config.workdir)
    try:
        if workdir.exists() and any(workdir.iterdir()) and not config.resume:
            raise UserError(
                f"{workdir} is not empty. Add --resume to go on with a comparison there, or choose "
                "another --workdir."
            )
    except OSError as error:
        raise UserError(f"Can't use --workdir={workdir}: {error}.") from None
    return workdir


def _paired(kinds):
    """Whether the runs have the same seeds, in the same order."""
    seeds = [[run.made_with.get("run", {}).get("seed") for run in kind] for kind in kinds]
    return seeds[0] == seeds[1] and None not in seeds[0] and len(set(seeds[0])) == len(seeds[0])


def _check(kinds):
    """Refuses runs of other data, classes or groups than the first has."""
    first = kinds[0][0]
    for run in (x for kind in kinds for x in kind):
        if run.class_names != first.class_names or run.data != first.data:
            raise UserError(
                f"Expected runs evaluated on the same data. Received: {first.name} on "
                f"{first.data} and {run.name} on {run.data}, or other classes."
            )
        same_groups = (run.groups is None) == (first.groups is None) and (
            run.groups is None or (run.groups == first.groups).all()
        )
        if not same_groups:
            raise UserError(
                f"Expected the same groups in all runs. Received: others in {run.name}."
            )
