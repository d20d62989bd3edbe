"""One evaluation: loads, predicts, summarizes, writes and prints."""

import json

from tfmp import evaluation, files, hardware
from tfmp.commands.evaluate import report, results
from tfmp.errors import NonFiniteError, TfmpError, UserError
from tfmp.evaluation import plots
from tfmp.metrics import calibration, classification


def evaluate(config):
    """Evaluates a model on a data set.

    Args:
        config: A `tfmp.commands.evaluate.Config`.

    Returns:
        What `evaluation.json` holds.

    Raises:
        UserError: The model, the data or the groups don't fit, or the folder can't be used.
        NonFiniteError: Some logits are not finite; all files are written before.
        TfmpError: The files can't be written.
    """
    workdir = evaluation.new_workdir("evaluate", config.workdir, "evaluation.json")
    hardware.set_tf32(config.tf32)
    subject = evaluation.load(config.model)
    asked = {name: getattr(config, name) for name in ("data_dir", "manual_dir", "split")}
    data, options = evaluation.data_for(subject, config.dataset, **asked)
    _check_validation(config, subject, data)
    groups = None
    if config.group_by:
        examples = data.sizes["test"]
        groups = evaluation.read_groups(config.group_by, data.name, examples, **options)
    models = evaluation.under_policies(subject, config.policies)
    jit_compile = {policy: results.compiles(config, policy) for policy in models}
    evaluation.make_workdir(workdir)
    predictions = _predictions(config, models, jit_compile, data)
    found = results.Evaluated(config, subject, data, groups, jit_compile, predictions)
    written = _write(found, workdir)
    print(report.text(written, found.name, workdir), flush=True)
    _check_finite(written, found.name, workdir)
    return written


def _check_validation(config, subject, data):
    if config.temperature_scaling and data.validation is None:
        raise UserError(
            "Expected validation images for --temperature_scaling, such as a run with "
            f"--validation_fraction above 0 has. Received: {data.name}, without."
        )
    uses = config.temperature_scaling or config.split == "validation"
    if uses and data.name != subject.run.get("config", {}).get("dataset"):
        print(
            f"note: {subject.path} does not say what it was trained on. Where {data.name} has no "
            "validation images of its own they are held out of train, and it may have seen them."
        )


def _predictions(config, models, jit_compile, data):
    """`Predictions` by policy; under "validation" what a temperature is to be fitted to."""
    parts = {policy: (policy, config.split) for policy in models}
    if config.temperature_scaling:
        parts["validation"] = (next(iter(models)), "validation")
    predictions = {}
    for part, (policy, split) in parts.items():
        print(f"predicting {data.name}, {split}, under {policy} ...", flush=True)
        model = models[policy]
        predictions[part] = evaluation.predict(
            model,
            getattr(data, split)(model.input_shape[0] or config.batch_size),
            jit_compile=jit_compile[policy],
            examples=data.sizes[split],
        )
    return predictions


def _write(found, workdir):
    """Writes all files, evaluation.json last: where it is, the others are whole."""
    collected = results.collect(found)
    more = {"made_with": json.dumps(collected["made_with"])}
    if found.groups is not None:
        more["groups"] = found.groups
    outcomes = found.outcomes()
    try:
        for policy in found.jit_compile:
            suffix = "" if policy == found.own else f"-{policy}"
            more["policy"] = policy
            found.predictions[policy].save(workdir / f"predictions{suffix}.npz", **more)
        title = f"{found.subject.path.name} on {found.name}, {found.own}"
        if outcomes.finite.all():
            bins = calibration.equal_width_bins(outcomes, found.config.bins)
            plots.reliability(bins, workdir / "reliability.png", title)
        matrix = classification.confusion(outcomes)
        plots.confusion(matrix, found.data.class_names, workdir / "confusion.png", title)
        return files.write_json(workdir / "evaluation.json", collected)
    except OSError as error:
        raise TfmpError(
            f"Can't write the evaluation to {workdir}: {error}. Evaluate again where there is "
            "space."
        ) from error


def _check_finite(written, name, workdir):
    counts = {p: values["non_finite"][name] for p, values in written["policies"].items()}
    if any(counts.values()):
        named = ", ".join(f"{count:,} under {policy}" for policy, count in counts.items() if count)
        raise NonFiniteError(
            f"Logits are not finite in {named}, of {written['examples'][name]:,} examples: they "
            f"count as wrong, and what averages probabilities is unknown there. See {workdir}."
        )
