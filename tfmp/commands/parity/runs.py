"""The runs to compare: trained and evaluated in processes of their own, or taken as they are."""

import contextlib
import dataclasses
import importlib
import json
import pathlib
import signal
import subprocess
import sys
import typing
import zipfile

import numpy as np

from tfmp import cli, files, recipes
from tfmp.commands.benchmark.session import ended_by_sigterm
from tfmp.errors import NonFiniteError, StoppedError, TfmpError, UserError
from tfmp.evaluation import Predictions
from tfmp.training.classification import ClassifierConfig
from tfmp.training.session import FREE_SETTINGS

# For a training to save and stop, after Ctrl-C.
SAVING_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before it is there.

    Attributes:
        kind: "reference" or "other".
        name: The run's name, on the screen and under evaluated/.
        folder: Of the run, or of its evaluation.
        recipe: Module of tfmp.recipes that trains it; None: it is taken as it is.
        flags: The recipe's flags.
    """

    kind: str
    name: str
    folder: pathlib.Path
    recipe: str | None = None
    flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A run that was evaluated.

    Attributes:
        kind: "reference" or "other".
        name: The run's name.
        predictions: `tfmp.evaluation.Predictions` of the test examples.
        groups: [examples] of str, or None.
        class_names: List of str.
        data: The data set's name.
        results: The run's results.json; empty where there is none.
        log: Path of its metrics.csv, which may not be there.
        made_with: What the evaluation says of its origin.
    """

    kind: str
    name: str
    predictions: Predictions
    groups: typing.Any
    class_names: list[str]
    data: str
    results: dict
    log: pathlib.Path
    made_with: dict


def plan(config, workdir) -> list[Plan]:
    """All runs, those of one seed next to one another.

    Args:
        config: A `tfmp.commands.parity.Config`.
        workdir: The comparison's folder.

    Raises:
        UserError: A folder is not there or is named twice, or the recipe refuses a flag.
    """
    if config.reference_runs:
        return _taken(config)
    if config.recipe not in recipes.names():
        known = ", ".join(recipes.names())
        raise UserError(f"Expected --recipe out of {known}. Received: {config.recipe}.")
    given = {flag.lstrip("-").partition("=")[0] for flag in config.recipe_flags}
    if taken := sorted({"policy", "seed", "workdir", "resume"} & given):
        raise UserError(f"Expected --recipe_flags without --{taken[0]}, which differs by the run.")
    recipe = importlib.import_module(f"tfmp.recipes.{config.recipe}")
    if not issubclass(recipe.Config, ClassifierConfig):
        raise UserError(f"Expected a --recipe that classifies images. Received: {config.recipe}.")
    plans = []
    for seed in range(config.runs):
        for kind, policy in (("reference", config.reference), ("other", config.policy)):
            name = f"{policy}-{seed}"
            folder = workdir / "runs" / name
            # Behind the recipe's: a --flagfile among them comes first, and the last one wins.
            flags = (*config.recipe_flags, f"--policy={policy}", f"--seed={seed}")
            flags += (f"--workdir={folder}", "--measure_inference=false")
            _check_finished(folder, cli.parse(recipe.Config, list(flags)))
            plans.append(Plan(kind, name, folder, config.recipe, flags))
    return plans


def _taken(config):
    plans = [
        Plan(kind, f"{kind}-{index}-{pathlib.Path(folder).name}", pathlib.Path(folder).expanduser())
        for kind in ("reference", "other")
        for index, folder in enumerate(getattr(config, f"{kind}_runs"))
    ]
    folders = [plan.folder.resolve() for plan in plans]
    for plan, folder in zip(plans, folders, strict=True):
        if not folder.is_dir():
            raise UserError(f"Expected a folder of a run. Received: {plan.folder}.")
        if folders.count(folder) > 1:
            raise UserError(f"Expected each run once. Received: {plan.folder} twice.")
    return plans


def _check_finished(folder, config):
    """A finished run is reused only if it is what would be trained."""
    results = read_json(folder / "results.json")
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    former = results.get("config", now)
    changed = [key for key in now if key not in FREE_SETTINGS and former.get(key) != now[key]]
    if changed:
        raise UserError(
            f"{folder} was trained with --{changed[0]}={former.get(changed[0])}, and now it is "
            f"{now[changed[0]]}. Give the same flags, or choose another --workdir."
        )


# --- processes


def train(plan: Plan):
    """Trains a run, or goes on with it, unless it is finished or taken as it is.

    Raises:
        NonFiniteError: The training became non-finite.
        StoppedError: The user stopped it; its state is saved.
        UserError: The recipe says that the user made a mistake.
        TfmpError: It failed.
    """
    if plan.recipe is None:
        return
    if (plan.folder / "results.json").exists():
        print(f"{plan.name}: trained before", flush=True)
        return
    words = ["-m", f"tfmp.recipes.{plan.recipe}", *plan.flags]
    if (plan.folder / "config.json").exists():
        words.append("--resume")
    print(f"{plan.name}: training ... ", end="", flush=True)
    run_python(words, plan.folder.parent / f"{plan.name}.log")
    results = read_json(plan.folder / "results.json")
    accuracy = results["final"].get("test_accuracy")
    seconds = results["seconds"]["total"]
    print(f"test accuracy {accuracy:.4f} in {seconds:,.0f} s" if accuracy else "done", flush=True)


def evaluate(plan: Plan, workdir, group_by=None) -> Evaluated:
    """Evaluates a run in a process of its own, unless that was done before.

    Args:
        plan: A run that is finished, or a folder that an evaluation has left.
        workdir: The comparison's folder.
        group_by: As for `python -m tfmp evaluate`.

    Raises:
        UserError: It can't be evaluated.
    """
    folder = plan.folder
    if not (folder / "evaluation.json").exists():
        folder = workdir / "evaluated" / plan.name
        if not (folder / "evaluation.json").exists():
            print(f"{plan.name}: evaluating ... ", end="", flush=True)
            words = ["-m", "tfmp", "evaluate", str(plan.folder), f"--workdir={folder}"]
            words += ["--replicates=0", *([f"--group_by={group_by}"] if group_by else [])]
            # Logits that are not finite are for the comparison to judge.
            run_python(words, workdir / "evaluated" / f"{plan.name}.log", accepted=(0, 3))
            print("done", flush=True)
    return _read(plan, folder)


def _read(plan, folder):
    evaluation = read_json(folder / "evaluation.json")
    model = plan.folder / "model.keras"
    try:
        if model.exists() and evaluation["made_with"]["model_sha256"] != files.sha256(model):
            raise ValueError("the evaluation of another model")
        data = evaluation["made_with"]["data"]
        # (NumPy leaves a damaged file open.)
        with open(folder / "predictions.npz", "rb") as file, np.load(file) as arrays:
            predictions = Predictions(arrays["logits"], arrays["labels"])
            groups = arrays.get("groups")
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"Expected an evaluation in {folder}. Received: {type(error).__name__}: {error}. "
            "Remove the folder, so that it is evaluated again."
        ) from error
    return Evaluated(
        kind=plan.kind,
        name=plan.name,
        predictions=predictions,
        groups=groups,
        class_names=data["class_names"],
        data=data["name"],
        results=read_json(plan.folder / "results.json"),
        log=plan.folder / "metrics.csv",
        made_with=evaluation["made_with"],
    )


def _show(stream, file):
    """Copies what comes to a file, and to the screen up to the first empty line."""
    screen = True
    for line in stream:
        file.write(line)
        file.flush()
        screen = screen and bool(line.strip())
        if screen:
            print(line.decode(errors="replace"), end="", flush=True)


def read_json(file):
    """A file's content; {} where it is not there."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"Can't read {file}: {error}. Remove its folder.") from error
    if not isinstance(found, dict):
        raise UserError(f"Can't read {file}: it holds no results. Remove its folder.")
    return found


def run_python(words, log, accepted=(0,), shown=False):
    """Runs Python with its output in a file; Ctrl-C and SIGTERM let it save and stop first.

    Args:
        words: Behind `python`.
        log: Path of the file.
        accepted: Exit statuses that are no failure.
        shown: Whether what it prints up to an empty line, its progress, is on the screen, too.

    Raises:
        StoppedError: It was stopped.
        TfmpError: It failed; the subclass is that of its exit status.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file, ended_by_sigterm():
        begin = file.tell()
        child = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if shown else file,
            stderr=file,
            start_new_session=True,
        )
        try:
            if child.stdout:
                _show(child.stdout, file)
            status = child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                child.wait(SAVING_SECONDS)
            raise StoppedError("Stopped. Go on with the same flags and --resume.") from None
        finally:
            child.kill()
            child.wait()
            if child.stdout:
                child.stdout.close()
    if status in accepted:
        return
    output = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    said = [line for line in output if "error: " in line]
    reason = said[-1].partition("error: ")[2] if said else f"ended with exit status {status}"
    kinds = {2: UserError, 3: NonFiniteError, 75: StoppedError}
    raise kinds.get(status, TfmpError)(f"{log.stem}: {reason} (see {log})")
