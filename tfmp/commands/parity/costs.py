"""What the runs of each kind took: time, memory, energy, and what the loss scale did."""

import statistics

from tfmp.files import read_metrics

# Of the accuracy that the reference runs end with, to tell the time to.
TARGET_SHARE = 0.99

FIELDS = {
    "training_seconds": lambda results: results["cost"]["seconds"],
    "joules": lambda results: results["cost"]["joules"],
    "examples_per_second": lambda results: results["examples_per_second"],
    "peak_memory_bytes": lambda results: results["peak_memory_bytes"],
    "final_loss_scale": lambda results: results["loss_scale"]["final"],
    "skipped_steps": lambda results: results["loss_scale"]["skipped_steps"],
}


def compare(kinds, target_accuracy=None):
    """Medians over each kind's runs.

    Args:
        kinds: Two lists of `tfmp.commands.parity.runs.Evaluated`.
        target_accuracy: Validation accuracy to tell the time to; None: see `TARGET_SHARE`.

    Returns:
        A dict of lists of two, None where it is not known: the `FIELDS`, seconds, bytes and
        examples/s, and `seconds_to_target`, training seconds without compiling until an epoch ends
        with `target_accuracy`.
    """
    found = {name: [_median(kind, field) for kind in kinds] for name, field in FIELDS.items()}
    target = target_accuracy or _target(kinds[0])
    times = [[_seconds_to(run, target) for run in kind] for kind in kinds]
    return found | {
        "target_accuracy": target,
        "seconds_to_target": [None if None in each else statistics.median(each) for each in times],
    }


def _median(kind, field):
    try:
        values = [field(run.results) for run in kind]
    except (KeyError, TypeError):  # evaluations alone, or other runs than ours
        return None
    return None if None in values else statistics.median(values)


def _target(reference):
    final = [run.results.get("final", {}).get("val_accuracy") for run in reference]
    return None if None in final else TARGET_SHARE * statistics.mean(final)


def _seconds_to(run, target):
    seconds = run.results.get("seconds", {}).get("per_epoch", [])
    rows = read_metrics(run.log)
    # A resumed run knows the seconds of its last part only.
    if target is None or len(rows) != len(seconds):
        return None
    for index, row in enumerate(rows):
        if row.get("val_accuracy", 0.0) >= target:
            return sum(seconds[: index + 1])
    return None
