"""A run of `audit`: the file's contents, what comes of loading it, the table and the file."""

import dataclasses
import datetime
import json
import os
import sys

from tfmp import provenance
from tfmp.commands.audit import contents, judge
from tfmp.commands.benchmark import children
from tfmp.commands.benchmark import session as benchmark_session
from tfmp.errors import DifferentError, UserError
from tfmp.files import write_json

FORMAT = "tfmp audit 1"


def audit(config):
    """Prints what is there and what is lost.

    Args:
        config: A `tfmp.commands.audit.Config`.

    Returns:
        The dict in the JSON file.

    Raises:
        UserError: There is no such file, it is damaged, or `tfmp.load` can't load it.
        DifferentError: Something is missing, or `tfmp.load` loses it.
    """
    file = config.output and benchmark_session.output_file(config.output)
    if not config.file:
        raise UserError("Expected a .keras file, a .weights.h5 file or a run's folder.")
    held = contents.read(config.file)
    # Without a model there is nothing to load weights into.
    loads = config.load and held.kind != "weights"
    loaded = _loaded(config, held) if loads else {"keras": None, "tfmp": None}
    error = (loaded["tfmp"] or {}).get("error")
    if error:
        raise UserError(_explained(config, held, error))
    parts = judge.parts(held, loaded["keras"], loaded["tfmp"])
    results = _results(config, held, loaded["keras"] or {}, parts)
    print(table(parts))
    print("".join(f"\n{line}" for line in _notes(held, results)))
    if file:
        write_json(file, results)
        print(f"written to {file}")
    bad = (judge.LOST, judge.MISSING, *((judge.NOT_LOADED,) if config.load else ()))
    lacking = ", ".join(part.name for part in parts if part.tfmp in bad)
    if held.kind == "weights":
        raise DifferentError(f"{held.path}: tfmp.load takes no file of weights alone.")
    if lacking:
        raise DifferentError(f"{held.path}: {lacking}: missing, or lost by tfmp.load.")
    return results


def table(parts) -> str:
    """The parts as text, in columns."""
    rows = [("", "in the file", "keras load_model", "tfmp.load")]
    rows += [(part.name, part.file, part.keras, part.tfmp) for part in parts]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _loaded(config, held):
    """What `loaded.load` found in a fresh process."""
    spec = {"path": str(held.path), "modules": list(config.modules)}
    spec["keras_path"] = held.keras_path and str(held.keras_path)
    command = [sys.executable, "-m", "tfmp.commands.audit.loaded", json.dumps(spec)]
    try:
        # No GPU is needed, and starting one takes seconds.
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
        found = children.run(command, environment, config.limit_seconds)
    except children.ChildError as error:
        raise UserError(f"{held.path} can't be loaded in a fresh process: {error}") from None
    if "mistake" in found:
        raise UserError(found["mistake"])
    return found


def _explained(config, held, error):
    if held.classes and not config.modules:
        return (
            f"{held.path} holds classes of its own ({', '.join(held.classes)}): name the modules "
            f"that define them by --modules=MODULE. ({error})"
        )
    return f"tfmp.load can't load {held.path}: {error}"


def _notes(held, results):
    if held.kind == "run" and held.keras_path is None:
        yield "Keras: there is no model.keras in it yet, which it could load."
    if results["keras_error"]:
        yield f"Keras can't load it: {results['keras_error']}"
    for warning in results["keras_warnings"]:
        yield f"Keras warns: {warning}"


def _results(config, held, keras, parts):
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "kind": held.kind,
        "parts": [vars(part) for part in parts],
        "policies": held.policies,
        "optimizer": held.optimizer,
        "loss_scale": held.scale,
        "iterations": held.iterations,
        "own_classes": list(held.classes),
        "keras_error": keras.get("error"),
        "keras_warnings": keras.get("warnings", []),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
