"""A run of `doctor`: the model and its data, the findings, the text and the file."""

import dataclasses
import datetime
import difflib
import pathlib
import textwrap
import zipfile

import keras
import numpy as np

from tfmp import doctor, policies, provenance
from tfmp.commands.advise import target
from tfmp.commands.benchmark import session as benchmark_session
from tfmp.doctor import page
from tfmp.doctor.rules import RULES
from tfmp.errors import DifferentError, UserError
from tfmp.evaluation import loading
from tfmp.files import write_json

FORMAT = "tfmp doctor 1"


def examine(config):
    """Prints what the doctor finds.

    Args:
        config: A `tfmp.commands.doctor.Config`.

    Returns:
        The dict in the JSON file.

    Raises:
        UserError: A mistake in the flags, or in what the function returned.
        DifferentError: There are errors or warnings.
    """
    file = config.output and benchmark_session.output_file(config.output)
    model = _model(config)
    inputs, labels = _data(config.data)
    with policies.scope(config.policy):
        findings = doctor.diagnose(model, inputs, labels)
    results = {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "model": {
            "name": model.name,
            "class": type(model).__name__,
            "layers": len(policies.change.sublayers(model)),
            "policy": policies.policy_of(model),
        },
        "findings": [vars(x) | {"evidence": dict(x.evidence)} for x in findings],
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    print(table([x for x in findings if config.infos or x.severity != "info"]))
    if file:
        write_json(file, results)
        print(f"\nwritten to {file}")
    errors, warnings = (sum(x.severity == s for x in findings) for s in ("error", "warning"))
    if errors or warnings:
        raise DifferentError(
            f"{config.target} in {config.policy}: {errors} errors and {warnings} warnings; "
            "--explain=RULE says more of each."
        )
    return results


def explain(rule: str) -> None:
    """Prints what the page of hazards says of a rule.

    Raises:
        UserError: There is no such rule.
    """
    if rule not in RULES:
        close = difflib.get_close_matches(rule, RULES, 3, 0.0)
        raise UserError(
            f"Expected --explain of a rule, such as {', '.join(close)}. Received: {rule}."
        )
    print(page.section(rule).strip())


def table(findings) -> str:
    """The findings as text: severity, rule and layer in columns, under each what to do."""
    if not findings:
        return "Nothing found."
    heads = [(x.severity, x.rule, x.layer or "(the model)") for x in findings]
    widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
    lines = []
    for head, finding in zip(heads, findings, strict=True):
        columns = (word.ljust(width) for word, width in zip(head, widths, strict=True))
        lines.append("  ".join(columns).rstrip())
        lines.append(textwrap.indent(textwrap.fill(finding.message, 92), "    "))
    return "\n".join(lines)


def _model(config):
    if config.target.endswith(".keras"):
        model = loading.read(pathlib.Path(config.target).expanduser())
        whole = policies.policy_of(model) == "float32" and config.policy != "float32"
        return policies.set_policy(model, config.policy) if whole else model
    if not target.is_function(config.target):
        raise UserError(
            "Expected a .keras file or MODULE:FUNCTION, such as my_models:build. Received: "
            f"{config.target!r}."
        )
    with policies.scope(config.policy):
        model = target.model_of(target.call(target.function(config.target), config.target))
    if not isinstance(model, keras.Model):
        raise UserError(
            f"Expected {config.target} to return a Keras model, or a tuple that begins with one. "
            f"Received: {type(model).__name__}."
        )
    return model


def _data(data):
    """(inputs, labels), or (None, None)."""
    if data is None or data == "random":
        return data, None
    if target.is_function(data):
        made = target.call(target.function(data), data)
        pair = isinstance(made, tuple) and len(made) == 2
        return made if pair else (made, None)
    try:
        with np.load(pathlib.Path(data).expanduser()) as arrays:
            if "x" in arrays:
                return arrays["x"], arrays.get("y")
            found = ", ".join(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"Can't read {data}: {error}.") from None
    raise UserError(f"Expected {data} to hold an array x. Received: {found or 'nothing'}.")
