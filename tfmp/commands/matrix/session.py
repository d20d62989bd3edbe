"""A run of `matrix`: its cells in children, one after the other, its table and its file."""

import dataclasses
import datetime
import itertools
import json
import pathlib
import sys
import tempfile
import time

from tfmp import recipes
from tfmp.commands.advise import target, trained
from tfmp.commands.benchmark import children
from tfmp.commands.benchmark import session as benchmark_session
from tfmp.commands.matrix import judge
from tfmp.errors import DifferentError, UserError
from tfmp.files import write_json

FORMAT = "tfmp matrix 1"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        target: Name of a recipe, or MODULE:FUNCTION.
        policy: Name of the dtype policy.
        jit_compile: Whether XLA compiles the step.
        replicas: Number of replicas.
    """

    target: str
    policy: str
    jit_compile: bool
    replicas: int

    def __str__(self):
        """In words, for the screen."""
        compiled = "XLA" if self.jit_compile else "no XLA"
        several = "1 replica" if self.replicas == 1 else f"{self.replicas} replicas"
        return f"{self.target}, {self.policy}, {compiled}, {several}"


def run(config):
    """Runs every cell, prints the table and writes the file.

    Args:
        config: A `tfmp.commands.matrix.Config`.

    Returns:
        The dict in the JSON file.

    Raises:
        UserError: A mistake in the flags or in what a function returned.
        DifferentError: A cell is red.
    """
    targets = config.targets or tuple(recipes.names())
    cells = {name: found for name in targets if (found := list(_cells(config, name)))}
    if not cells:
        raise UserError(
            "Expected a target that trains on several replicas, or 1 among --replicas. Received: "
            f"{', '.join(targets)}, --replicas={','.join(map(str, config.replicas))}."
        )
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    file = benchmark_session.output_file(config.output or f"runs/matrix-{now}.json")
    rows: list[dict] = []
    made_with: dict = {}
    with benchmark_session.ended_by_sigterm():
        for name, of_target in cells.items():
            found = _of_target(config, name, of_target)
            rows += [_row(config, cell, found) for cell in found]
            known = (outcome for outcome in found.values() if "versions" in outcome)
            made_with = made_with or next(known, {})
            results = write_json(file, _results(config, rows, made_with))
    print(f"\n{table(results['cells'])}\n\nwritten to {file}", flush=True)
    red = [row for row in results["cells"] if row["reasons"]]
    if red:
        raise DifferentError(f"{len(red)} of {len(rows)} cells are red.")
    return results


def _cells(config, name):
    """The cells of a target; a recipe may be for one replica only."""
    replicas = config.replicas
    if not target.is_function(name):
        _flags(config, Cell(name, "float32", False, 1))  # a mistake in a flag shows at once
        try:
            _flags(config, Cell(name, "float32", False, max(replicas)))
        except UserError as error:
            print(f"{name}: no cells of several replicas. {error}", flush=True)
            replicas = [count for count in replicas if count == 1]
    for policy, xla, count in itertools.product(config.policies, config.jit_compile, replicas):
        yield Cell(name, policy, xla == "true", count)


def _of_target(config, name, cells):
    """What was found in each cell of a target: dict by `Cell`."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {cell: pathlib.Path(folder, str(number)) for number, cell in enumerate(cells)}
        for number, (cell, place) in enumerate(places.items(), start=1):
            print(f"{number}/{len(cells)} {cell} ... ", end="", flush=True)
            place.mkdir()
            found[cell] = _trained(config, cell, place)
            print(f"{found[cell]['seconds']:.1f} s", flush=True)
        saved = {
            cell: str(places[cell]) for cell in cells if not {"error", "reload"} & set(found[cell])
        }
        loaded = _loaded(config, name, list(saved.values()))
        for cell, where in saved.items():
            found[cell]["reload"] = loaded.get(where, loaded)
    return found


def _trained(config, cell, place):
    """What a cell's child found, or {"error": why it found nothing}; with its `seconds`."""
    spec = dataclasses.asdict(cell) | {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "flags": [] if target.is_function(cell.target) else _flags(config, cell, place),
        "folder": str(place),
    }
    began = time.monotonic()
    command = [sys.executable, "-m", "tfmp.commands.matrix.cell", json.dumps(spec)]
    try:
        found = children.run(command, children.with_gpus(cell.replicas), config.limit_seconds)
    except children.ChildError as error:
        found = {"error": str(error)}
    if "mistake" in found:
        print(flush=True)
        raise UserError(found["mistake"])
    return found | {"seconds": time.monotonic() - began}


def _loaded(config, name, folders):
    """What `reload` found, by folder, or {"error": why it found nothing}."""
    spec = json.dumps({"target": name, "folders": folders})
    command = [sys.executable, "-m", "tfmp.commands.matrix.reload", spec]
    try:
        return children.run(command, children.with_gpus(), config.limit_seconds)
    except children.ChildError as error:
        return {"error": str(error)}


def _flags(config, cell, place=None):
    """The recipe's flags in a cell, checked."""
    return trained.recipe_flags(
        cell.target,
        config.recipe_flags,
        policy=cell.policy,
        jit_compile=cell.jit_compile,
        replicas=cell.replicas,
        batch_size=config.batch_size,
        workdir=place and place / "run",
    )


def _row(config, cell, found):
    """A cell as the file has it."""
    outcome = found[cell]
    reference = found.get(dataclasses.replace(cell, policy="float32"))
    reasons = judge.reasons(cell, outcome, reference, config.tolerance)
    kept = {k: v for k, v in outcome.items() if k not in ("device", "versions", "git_commit")}
    return (
        dataclasses.asdict(cell)
        | kept
        | {
            "verdict": "red" if reasons else "green",
            "reasons": reasons,
            "deviation": judge.deviation(outcome, reference),
        }
    )


def _results(config, rows, made_with):
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "environment": {name: made_with.get(name) for name in ("device", "versions", "git_commit")},
        "cells": rows,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


HEADER = (
    "target",
    "policy",
    "XLA",
    "replicas",
    "verdict",
    "mean loss",
    "off float32",
    "skipped",
    "outputs",
    "loss scale",
    "reload",
    "ms/step",
    "seconds",
)


def table(rows):
    """The cells as a table, and behind it why the red ones are red."""
    lines = [HEADER, *map(_line, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    why = [f"red: {_cell(row)}: {'; '.join(row['reasons'])}" for row in rows if row["reasons"]]
    return "\n".join([text, *([""] if why else []), *why])


def _cell(row):
    return Cell(*(row[field.name] for field in dataclasses.fields(Cell)))


def _line(row):
    known = "losses" in row
    losses = [x for x in row.get("losses", []) if x is not None]
    # NaN equals nothing.
    reload = row["reload"].get("difference") if known and row["outputs_finite"] else None
    scale = f"{row['scale']:g} ({row['loss_scale']})" if known and row["uses_float16"] else "-"
    return (
        row["target"],
        row["policy"],
        "yes" if row["jit_compile"] else "no",
        str(row["replicas"]),
        row["verdict"],
        f"{sum(losses) / len(losses):.4f}" if losses else "-",
        "-" if row["deviation"] is None else f"{row['deviation']:.2%}",
        f"{row['skipped_steps']} of {row['steps']}" if known else "-",
        ", ".join(row["output_dtypes"]) if known else "-",
        scale,
        "-" if reload is None else "equal" if not reload else f"{reload:.1g} off",
        f"{row['step_ms']:.0f}" if known else "-",
        f"{row['seconds']:.0f}",
    )
