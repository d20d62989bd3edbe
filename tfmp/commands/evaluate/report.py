"""What an evaluation says on the screen."""

from tfmp.evaluation.summary import CALIBRATION


def text(results, name, workdir) -> str:
    """The figures of an evaluation, with their 95 % intervals, for people.

    Args:
        results: What evaluation.json holds.
        name: The data set's name there.
        workdir: Folder of the files.
    """
    lines = [
        "",
        f"{name}: {results['examples'][name]:,} examples, {results['made_with']['policy']}",
        *_metrics(results, name),
        *_worst(results, name),
        *_temperature(results, name),
        *_policies(results["policies"], name),
        f"  {'files':<16}{', '.join(sorted(path.name for path in workdir.iterdir()))}",
        f"  {'workdir':<16}{workdir}",
        f"  {'report':<16}python -m tfmp report {workdir}",
    ]
    return "\n".join(lines)


def _metrics(results, name):
    for metric in ("accuracy", "top5_accuracy", *CALIBRATION):
        if metric in results:
            value = results[metric][name]
            interval = results["intervals"].get(metric, {}).get(name)
            by_chance = results.get(f"{metric}_if_calibrated", {}).get(name)
            yield (
                f"  {metric:<16}{_number(value)}{_between(interval)}"
                + (f"   {by_chance:.4f} if calibrated" if by_chance is not None else "")
            )
    if results["non_finite"][name]:
        yield f"  {'not finite':<16}{results['non_finite'][name]:,} examples, counted as wrong"


def _worst(results, name):
    for kind in ("class", "group"):
        if f"worst_{kind}" in results:
            worst = results[f"worst_{kind}"][name]
            interval = results["intervals"][f"per_{kind}_accuracy"][name][worst["name"]]
            yield (
                f"  worst {kind:<10}{worst['accuracy']:.4f}{_between(interval)}"
                f"   {worst['name']}, {worst['examples']:,} examples"
            )


def _temperature(results, name):
    if "temperature_missing" in results:
        yield f"  temperature     none: {results['temperature_missing'][name]}"
    elif "temperature" in results:
        scaled = ", ".join(
            f"{metric} {_number(results['temperature_scaled'][metric][name])}"
            for metric in CALIBRATION
        )
        yield f"  temperature     {results['temperature'][name]:.4f}, which gives {scaled}"


def _policies(policies, name):
    for policy, values in policies.items():
        for reference in policies:
            if f"against_{reference}" in values:
                found = values[f"against_{reference}"][name]
                change = values["accuracy"][name] - policies[reference]["accuracy"][name]
                yield f"  {policy} against {reference}"
                yield (
                    f"    {found['flips']:,} flips, {found['became_wrong']:,} from right to wrong "
                    f"and {found['became_right']:,} from wrong to right; accuracy {change:+.4f}"
                )
                yield (
                    f"    logits differ by {_short(found['largest_logit_difference'])} at most, "
                    f"{_short(found['relative_logit_difference'])} of their spread; "
                    f"ece {_number(values['ece'][name])}, "
                    f"{_number(policies[reference]['ece'][name])} under {reference}"
                )


def _between(interval):
    return f"   {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""


def _number(value):
    return "unknown" if value is None else f"{value:.4f}"


def _short(value):
    return "an unknown amount" if value is None else f"{value:.2g}"
