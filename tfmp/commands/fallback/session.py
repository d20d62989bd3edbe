"""A run of `fallback`: the model and its batch, the search, the text and the files."""

import dataclasses
import datetime
import time

from tfmp import doctor, hardware, policies, provenance
from tfmp.commands.advise import target, trained
from tfmp.commands.benchmark import session as benchmark_session
from tfmp.commands.fallback import costs
from tfmp.errors import UserError
from tfmp.files import write_json

FORMAT = "tfmp fallback 1"


def search(config):
    """Searches, prints each try and what was found, and writes the files.

    Args:
        config: A `tfmp.commands.fallback.Config`.

    Returns:
        The dict in the file of details.

    Raises:
        UserError: A mistake in the flags or in what the function returned.
        NonFiniteError: Training is not finite in float32 either.
        DifferentError: Not even all layers in float32 train as float32 does.
    """
    file, details = (
        x and benchmark_session.output_file(x) for x in (config.output, config.details)
    )
    model, batch, part = _prepared(config)
    began = time.monotonic()
    found = doctor.search(
        model,
        batch,
        part=part,
        policy=config.policy,
        steps=config.steps,
        tolerance=config.tolerance,
        seed=config.seed,
        on_trial=lambda trial: print(_line(trial), flush=True),
    )
    seconds = time.monotonic() - began
    policies.save(found.policy_map, file)
    print(f"\n{_summary(config, found, seconds)}\nwritten to {file}", flush=True)
    results = _results(config, part, found, seconds)
    if config.costs:
        patterns = dict(zip(found.float32, found.policy_map, strict=True))
        results["costs"] = costs.measure(
            model,
            batch,
            part,
            patterns,
            config.policy,
            jit_compile=config.jit_compile,
            steps=config.cost_steps,
        )
        print(f"\n{table(results['costs'])}")
    if details:
        write_json(details, results)
        print(f"\nwritten to {details}")
    return results


def table(measured) -> str:
    """What was measured, as text."""
    rows = [(f"{path} adds", cost) for path, cost in measured["layers"].items()]
    totals = {"found": "all found in float32", "nothing": "no layer", "float32": "all layers"}
    rows += [(words, measured[name]) for name, words in totals.items()]
    width = max(len(words) for words, _ in rows)
    lines = ["training step:"]
    for words, cost in rows:
        sign = "+" if words.endswith(" adds") else ""
        step, memory = cost.get("step_ms"), cost.get("peak_memory_bytes")
        spread = cost.get("spread_ms", 0.0)
        said = (
            f"{step:{sign}.2f} ms (windows differ by {spread:.2f})"
            if step is not None
            else "not measured"
        )
        said += "" if memory is None else f", {memory / 2**20:{sign}.1f} MiB at the peak"
        said += f" ({cost['error']})" if "error" in cost else ""
        lines.append(f"  {words.ljust(width)}  {said}")
    if measured["found"].get("peak_memory_bytes") is None:
        lines.append("  memory: this device doesn't say how much of it was used")
    return "\n".join(lines)


def _prepared(config):
    """(compiled model, a batch, the model whose layers are searched)."""
    if not config.target:
        raise UserError("Expected MODULE:FUNCTION or a recipe. Received: nothing.")
    settings = {"policy": config.policy, "batch_size": config.batch_size}
    if not target.is_function(config.target):
        flags = trained.recipe_flags(
            config.target, config.recipe_flags, jit_compile=False, replicas=1, **settings
        )
        learner, batch = trained.recipe(config.target, flags)
        return learner, batch, learner.model
    try:
        model, batch = trained.function(config.target, **settings)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{config.target}: {target.said(error)}") from error
    return model, batch, model


def _line(trial):
    kept = ", ".join(trial.float32[:3]) or "nothing"
    kept += f" and {len(trial.float32) - 3} more" if len(trial.float32) > 3 else ""
    verdict = f"bad   {kept} in float32: {trial.problem}" if trial.problem else f"good  {kept}"
    return f"{trial.seconds:5.1f} s  {verdict}"


def _summary(config, found, seconds):
    of = f"of {len(found.candidates)} layers, {len(found.trials)} tries in {seconds:.1f} s"
    if not found.float32:
        return f"No layer has to stay float32 under {config.policy} ({of})."
    names = "".join(f"\n  {path}" for path in found.float32)
    return f"Must stay float32 under {config.policy} ({of}):{names}"


def _results(config, part, found, seconds):
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "model": {"name": part.name, "class": type(part).__name__},
        "float32": list(found.float32),
        "patterns": list(found.policy_map),
        "candidates": list(found.candidates),
        "suspected": found.suspected,
        "reference_losses": list(found.reference.losses),
        "trials": [dataclasses.asdict(trial) for trial in found.trials],
        "seconds": seconds,
        "costs": None,
        "device": hardware.describe().name,
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
