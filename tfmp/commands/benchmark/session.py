"""A benchmark's run: its cases, its children in turns, its table and its file."""

import contextlib
import dataclasses
import datetime
import errno
import importlib
import itertools
import os
import pathlib
import signal
import sys
import tempfile
import time

from tfmp import cli, distribution, power, recipes
from tfmp.commands.benchmark import children, compare, rows
from tfmp.data import synthetic
from tfmp.errors import TfmpError, UserError
from tfmp.files import write_json

# By optimizer; constant, and low enough for every batch size and for float16 without a loss scale.
LEARNING_RATES = {"sgd": 0.05, "adamw": 1e-4, "adam_gan": 2e-4, "lamb": 1e-3}
VARIABLES = ("CUDA_", "KERAS_", "NVIDIA_", "OMP_", "TF_", "XLA_")


def measure(config, former=None):
    """Measures every case in its repeats, and writes the file after each of them.

    The repeats are the outermost loop and the programs the innermost, so that a drift of the
    machine reaches all rows alike.

    Args:
        config: A `tfmp.commands.benchmark.Config`.
        former: Content of the file to compare with, or None: measuring ends with the first
            process if its device or versions are others.

    Returns:
        The dict in the JSON file.

    Raises:
        UserError: A mistake in the flags, a file that can't be written, or see `former`.
        TfmpError: A measurement failed or is invalid; the file and the table say which.
    """
    plans = [(case, flags(config, case)) for case in _cases(config)]
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    file = output_file(config.output or f"runs/benchmark-{now}.json")
    programs = ["tfmp", "torch"] if config.peer == "torch" else ["tfmp"]
    outcomes: dict = {(case, program): [] for case, _ in plans for program in programs}
    rounds = [
        (case, words, program)
        for _, (case, words), program in itertools.product(range(config.repeats), plans, programs)
        if program == "tfmp" or not case.is_ours_alone
    ]
    results, driver = {}, power.driver_version()
    with ended_by_sigterm():
        for number, (case, words, program) in enumerate(rounds, start=1):
            print(f"{number}/{len(rounds)} {program}: {case} ... ", end="", flush=True)
            outcome = _measured(config, program, case, words)
            outcomes[case, program].append(outcome)
            ours = [x for x in outcomes[case, "tfmp"] if "error" not in x]
            print(_in_short(case, outcome, *ours[:1]), flush=True)
            results = write_json(file, _results(config, outcomes, driver))
            if former:
                compare.check(former, results)
    environment = results["environment"]
    print(f"\n{_line(environment)}\n{rows.table(results['rows'])}", flush=True)
    for row in results["rows"]:
        if row.get("profile"):
            title = f"{row['program']}: {rows.Case(*rows.key(row)[1:])}"
            print(f"\n{title}\n{rows.profile(row['profile'])}", flush=True)
    print(f"\nwritten to {file}", flush=True)
    bad = [row for row in results["rows"] if row["status"] != "ok"]
    if bad:
        raise TfmpError(f"{len(bad)} of {len(results['rows'])} rows failed or are invalid.")
    return results


def _cases(config):
    lists = config.policies, config.jit_compile, config.batch_sizes, config.inputs
    more = config.loss_scale, config.remat, config.replicas, config.steps_per_execution
    cases = [
        rows.Case(policy, xla == "true", batch, source, scale, remat == "true", *counts)
        for policy, xla, batch, source, scale, remat, *counts in itertools.product(*lists, *more)
    ]
    if config.scaling == "weak":
        cases = [dataclasses.replace(x, batch_size=x.batch_size * x.replicas) for x in cases]
    return cases


def flags(config, case):
    """The recipe's flags in a case, checked.

    Args:
        config: A `tfmp.commands.benchmark.Config`.
        case: A `rows.Case`.

    Returns:
        List of words.

    Raises:
        UserError: No such recipe, a flag that it refuses, or a batch that the replicas can't share.
    """
    distribution.check_batch_size(case.batch_size, case.replicas)
    config_type = recipes.config_type(config.recipe)
    optimizer = cli.parse(config_type, list(config.recipe_flags)).optimizer
    settings = {
        "dataset": config.dataset,
        "validation_fraction": 0,
        "image_size": config.image_size,
        "model": config.model,
        "policy": case.policy,
        "tf32": str(config.tf32).lower(),
        "jit_compile": str(case.jit_compile).lower(),
        "remat": str(case.remat).lower(),
        "strategy": "mirrored" if case.replicas > 1 else "none",
        "batch_size": case.batch_size,
        "steps_per_execution": 1,  # an epoch of the synthetic examples may have no more
        "learning_rate": LEARNING_RATES[optimizer] * 256 / case.batch_size,
        "warmup_epochs": 0,
        "epochs": 100_000,
    }
    if not recipes.takes_images(config.recipe):
        del settings["image_size"]
    if not config.model:
        del settings["model"]
    if config.recipe == "gan":  # which takes no run without validation
        del settings["validation_fraction"]
    given = {flag.lstrip("-").partition("=")[0] for flag in config.recipe_flags}
    if taken := [name for name in settings if {name, f"no{name}"} & given]:
        raise UserError(
            f"Expected --recipe_flags without --{taken[0]}: the benchmark sets it, by a flag of "
            "its own where it can be chosen."
        )
    words = [*(f"--{name}={value}" for name, value in settings.items()), *config.recipe_flags]
    cli.parse(config_type, words)
    return words


def output_file(name):
    """The path of `--output`, whose folder is made and can be written.

    Raises:
        UserError: It can't.
    """
    file = pathlib.Path(name).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Or the mistake would show after the first measurement.
        with tempfile.TemporaryFile(dir=file.parent):
            pass
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    except OSError as error:
        raise UserError(f"Can't write --output={file}: {error.strerror}.") from None
    return file


def spec(config, case, words):
    """What a child gets to measure a case; `words` are those of `flags`."""
    settings = cli.parse(recipes.config_type(config.recipe), words)
    # What a recipe works out of its settings, for a peer that has none of it.
    sizes = getattr(importlib.import_module(f"tfmp.recipes.{config.recipe}"), "sizes", None)
    return dataclasses.asdict(case) | {
        "recipe": config.recipe,
        "flags": words,
        "model": config.model,
        "image_size": config.image_size,
        "sizes": sizes(settings) if sizes else {},
        "classes": synthetic.CLASSES,
        "optimizer": settings.optimizer,
        "learning_rate": LEARNING_RATES[settings.optimizer],
        "weight_decay": settings.weight_decay,
        "clip_norm": settings.clip_norm,
        "tf32": config.tf32,
        "steps": config.steps,
        "windows": config.windows,
        "profile": config.profile,
        "spawned_at": time.monotonic(),
    }


def _measured(config, program, case, words):
    """What a child measured, with the power meanwhile; or {"error": why it did not}."""
    with power.Sampler(power.device_indices(case.replicas)) as sampler:
        try:
            outcome = children.measure(
                program,
                spec(config, case, words),
                peer_python=config.peer_python or sys.executable,
                limit_s=config.limit_seconds,
            )
        except children.ChildError as error:
            return {"error": str(error)}
        return outcome | {"watts": sampler.mean_watts(outcome["window_at"])}


def _in_short(case, outcome, ours=None):
    if "error" in outcome:
        return f"failed: {outcome['error']}"
    row = rows.summarize("", case, [outcome], ours)
    return rows.speed_in_words(row) + (f" ({row['reason']})" if row["reason"] else "")


def _results(config, outcomes, driver):
    """What the file holds: rows of what has been measured so far."""
    good = {
        key: [outcome for outcome in repeats if "error" not in outcome]
        for key, repeats in outcomes.items()
    }
    found = [
        rows.summarize(program, case, repeats, next(iter(good[case, "tfmp"]), None))
        for (case, program), repeats in outcomes.items()
        if repeats
    ]
    rows.relate(found)
    made_with: dict = {
        program: next((o for (_, p), some in good.items() if p == program for o in some), {})
        for program in ("tfmp", "torch")
    }
    ours, peer = made_with["tfmp"], made_with["torch"]
    return {
        "format": compare.FORMAT,
        "config": dataclasses.asdict(config),
        "environment": {
            "device": ours.get("device"),
            "versions": ours and ours["versions"] | {"driver": driver},
            "git_commit": ours.get("git_commit"),
            "peer": peer and {name: peer[name] for name in ("device", "versions")},
            "variables": {n: v for n, v in os.environ.items() if n.startswith(VARIABLES)},
        },
        "rows": found,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _line(environment):
    """Device and versions, in a line."""
    device, versions = environment["device"], environment["versions"]
    if not device:
        return "nothing was measured"
    peer = (environment["peer"] or {}).get("versions", {})
    shown = versions | {name: peer.get(name) for name in ("torch", "torchvision")}
    return f"{device['name']}; " + ", ".join(f"{n} {v}" for n, v in shown.items() if v)


@contextlib.contextmanager
def ended_by_sigterm():
    """SIGTERM ends the run as Ctrl-C does, and so the child that is running."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
