"""A run of `advise`: facts from a child, probes in children, the text and the file.

This process never starts TensorFlow's devices, so that the probes have all of the GPU's memory.
"""

import dataclasses
import datetime
import json
import sys
import time

from tfmp import hardware, power
from tfmp.commands.advise import predict, report, target, verdict
from tfmp.commands.benchmark import children, rows
from tfmp.commands.benchmark import session as benchmark_session
from tfmp.errors import TfmpError, UserError
from tfmp.files import write_json

FORMAT = "tfmp advise 1"
CHILD = [sys.executable, "-m", "tfmp.commands.advise.probe"]


def advise(config):
    """Prints the advice as it becomes known.

    Args:
        config: A `tfmp.commands.advise.Config`.

    Returns:
        The dict in the JSON file.

    Raises:
        UserError: A mistake in the flags, or in what the function returned.
        TfmpError: The facts could not be had.
    """
    file = config.output and benchmark_session.output_file(config.output)
    if not target.is_function(config.target):
        # A mistake in a flag shows at once.
        target.recipe_flags(dataclasses.asdict(config), target.case("float32", False, 1))
    with benchmark_session.ended_by_sigterm():
        facts = _facts(config)
        device = _device(facts)
        batch_sizes, compared = facts["settings"]["batch_sizes"], facts["compared"]
        predicted = predict.gains(facts["work"], batch_sizes, device, compared, facts["tf32"])
        report.section("Device", report.device_lines(device))
        report.section("Policy", report.policy_lines(facts))
        report.section("Model", report.model_lines(facts, device))
        report.section("Predicted", report.prediction_lines(predicted, compared))
        measured = list(_probes(facts, device)) if config.probe else []
        if lines := list(report.gain_lines(measured, compared)):
            report.section("Gain", lines)
    found = verdict.judge(measured, compared, device, predicted)
    largest = verdict.largest_batch(measured, found["use"], device)
    report.section("Advice", report.advice_lines(found, largest))
    results = {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "device": facts["device"]
        | {
            "tensor_core_types": hardware.tensor_core_types(device),
            "bandwidth_tbs": hardware.bandwidth_tbs(device.name),
            "peak_tflops": {
                name: hardware.peak_tflops(device.name, name)
                for name in ("float16", "bfloat16", "tf32", "float32")
            },
        },
        "versions": facts["versions"] | {"driver": power.driver_version()},
        "policy": facts["policy"] | {"compared": compared, "tf32": facts["tf32"]},
        "model": facts["settings"] | {k: v for k, v in facts["work"].items() if k != "calls"},
        "misaligned": predict.misaligned(facts["work"]),
        "misaligned_batch_sizes": predict.misaligned_batches(facts["work"], batch_sizes),
        "predicted": predicted,
        "measured": measured,
        "gains": verdict.gains(measured, compared),
        "advice": found | {"largest_batch_size": largest},
        "git_commit": facts["git_commit"],
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if file:
        write_json(file, results)
        print(f"\nwritten to {file}")
    return results


def _facts(config):
    command = [*CHILD, "facts", json.dumps(dataclasses.asdict(config))]
    try:
        facts = children.run(command, children.with_gpus(), config.limit_seconds)
    except children.ChildError as error:
        raise TfmpError(f"{config.target} could not be looked at: {error}") from None
    if "mistake" in facts:
        raise UserError(facts["mistake"])
    return facts


def _device(facts):
    capability = facts["device"]["compute_capability"]
    known = {"compute_capability": capability and tuple(capability)}
    return hardware.Device(**(facts["device"] | known))


def _probes(facts, device):
    """Rows of all probes, each printed when it is there."""
    settings, work = facts["settings"], facts["work"]
    print(f"\nMeasured, {settings['steps']} steps in each of {target.WINDOWS} windows")
    for batch_size in settings["batch_sizes"]:
        for policy, jit_compile in _ways(facts):
            compiled = "with XLA" if jit_compile else "without XLA"
            print(f"  {policy}, {compiled}, batch {batch_size}: ", end="", flush=True)
            case = target.case(policy, jit_compile, batch_size)
            outcome = _outcome(settings, case)
            arithmetic = predict.HALF[policy] or ("tf32" if facts["tf32"] else "float32")
            known = {
                "device": facts["device"],
                "multiply_adds": work["multiply_adds"],
                "peak_tflops": hardware.peak_tflops(device.name, arithmetic),
            }
            row = rows.summarize("tfmp", case, [outcome], known)
            print(report.probe_line(row), flush=True)
            yield row


def _ways(facts):
    """(policy, whether XLA compiles) of each probe at a batch size."""
    for policy in dict.fromkeys(["float32", facts["compared"]]):
        for jit_compile in facts["jit_compile"][policy]:
            yield policy, jit_compile


def _outcome(settings, case):
    """What a child measured, or {"error": why it did not}."""
    try:
        if target.is_function(settings["target"]):
            spec = dataclasses.asdict(case) | {
                "target": settings["target"],
                "steps": settings["steps"],
                "windows": target.WINDOWS,
                "spawned_at": time.monotonic(),
            }
            command = [*CHILD, "function", json.dumps(spec)]
            return children.run(command, children.with_gpus(), settings["limit_seconds"])
        config, words = target.recipe_flags(settings, case)
        return children.measure(
            "tfmp",
            benchmark_session.spec(config, case, words),
            peer_python=sys.executable,
            limit_s=settings["limit_seconds"],
        )
    except children.ChildError as error:
        return {"error": str(error)}
