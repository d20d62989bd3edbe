"""The runs on corrupted images and on other data sets, by `python -m tfmp robustness`."""

import dataclasses
import json
import zipfile

import numpy as np

from tfmp import cli
from tfmp.commands import robustness
from tfmp.commands.parity import runs
from tfmp.errors import UserError
from tfmp.evaluation.shifts import Shifts

# What decides its numbers, of all its settings.
SETTINGS = ("axes", "ood", "corruptions", "severities", "corruption_examples", "corrupted", "seed")


def flags(config) -> list[str]:
    """Those of `python -m tfmp robustness`; none if there is nothing for it to do.

    Args:
        config: A `tfmp.commands.parity.Config`.
    """
    axes = [axis for axis in ("corruptions", "ood") if getattr(config, axis)]
    if not axes:
        return []
    given = {"axes": axes, "ood": config.ood}
    if config.corruptions:
        fields = dataclasses.fields(robustness.CorruptionConfig)
        given |= {field.name: getattr(config, field.name) for field in fields}
    words = []
    for name, value in given.items():
        if value is not None:
            value = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            words.append(f"--{name}={value}")
    return words


def evaluate(plans, evaluated, workdir, words):
    """Each run's predictions of the same images, in a process of its own unless that was done.

    The first run makes the corrupted images, if they are not there, and shows its progress.

    Args:
        plans: List of `runs.Plan`.
        evaluated: List of `runs.Evaluated`, of the same runs.
        workdir: The comparison's folder.
        words: Of `flags`.

    Returns:
        List of `tfmp.evaluation.shifts.Shifts`, and the constants of the corrupted images, a dict,
        or None.

    Raises:
        UserError: A run can't be evaluated, or was with other settings or on other images.
    """
    found: list[Shifts] = []
    first: dict = {}
    for plan, run in zip(plans, evaluated, strict=True):
        folder = workdir / "robustness" / plan.name
        if not (folder / "robustness.json").exists():
            shown = plan is plans[0]
            print(f"{plan.name}: robustness ... ", end="\n" if shown else "", flush=True)
            command = ["-m", "tfmp", "robustness", str(plan.folder), f"--workdir={folder}", *words]
            log = folder.with_name(f"{plan.name}.log")
            # Logits that are not finite are for the comparison to judge.
            runs.run_python(command, log, accepted=(0, 3), shown=shown)
            print(f"{plan.name}: done" if shown else "done", flush=True)
        shifts, corrupted = _read(folder, run, words)
        first = first or corrupted
        if corrupted.get("images") != first.get("images"):
            raise UserError(
                f"Expected all runs on the same corrupted images. Received: other ones in {folder}."
                f" Remove {folder.parent}, so that it is made again."
            )
        found.append(shifts)
    return found, first.get("constants")


def _read(folder, run, words):
    """A run's `Shifts`, and what was found on its corrupted images."""
    results = runs.read_json(folder / "robustness.json")
    try:
        made_with = results["made_with"]
        if made_with["model_sha256"] != run.made_with.get("model_sha256"):
            raise ValueError("the examination of another model")
        asked = json.loads(json.dumps(dataclasses.asdict(cli.parse(robustness.Config, words))))
        changed = [name for name in SETTINGS if made_with["config"][name] != asked[name]]
        if changed:
            raise ValueError(f"one with --{changed[0]}={made_with['config'][changed[0]]}")
        # (NumPy leaves a damaged file open.)
        with open(folder / "robustness.npz", "rb") as file, np.load(file) as arrays:
            return _shifts(results, run.data, arrays)
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"Expected an examination with {' '.join(words)} in {folder}. Received: "
            f"{type(error).__name__}: {error}. Remove the folder, so that it is made again."
        ) from error


def _shifts(results, data, arrays):
    corrupted = results.get("corruptions", {}).get(data, {})
    against = results.get("ood", {}).get(data, {"against": {}})["against"]
    outside = {name: arrays[f"ood_logits_{index}"] for index, name in enumerate(against)}
    wrong = {}
    if corrupted:
        wrong = dict(zip(corrupted["errors"], ~arrays["corrupted_correct"], strict=True))
    failed = [found["non_finite"] for found in (corrupted, *against.values()) if found]
    return Shifts(wrong, outside, sum(failed)), corrupted
