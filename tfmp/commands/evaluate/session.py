"""One evaluation: loads, predicts, summarizes, writes and prints."""

import dataclasses
import datetime
import pathlib

import numpy as np

from tfmp import data as tfmp_data
from tfmp import evaluation, files, hardware, policies, provenance
from tfmp.errors import NonFiniteError, TfmpError, UserError
from tfmp.evaluation import plots
from tfmp.metrics import classification
from tfmp.training.session import compiles

CALIBRATION = ("nll", "brier", "ece", "adaptive_ece")
CLASSES_IN_JSON = 100


def evaluate(config):
    """Evaluates a model on a data set.

    Args:
        config: A `tfmp.commands.evaluate.Config`.

    Returns:
        What `evaluation.json` holds.

    Raises:
        UserError: The model, the data or the groups don't fit.
        NonFiniteError: Some logits are not finite; all files are written before.
    """
    hardware.set_tf32(config.tf32)
    workdir = _workdir(config)
    subject = evaluation.load(config.model)
    data, options = _data(config, subject)
    examples = data.sizes[config.split]
    groups = None
    if config.group_by:
        groups = evaluation.read_groups(config.group_by, data.name, examples, **options)
    evaluated = _Evaluated(config, subject, data, groups)
    results = evaluated.results()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        evaluated.write(workdir)
        results = files.write_json(workdir / "evaluation.json", results)
    except OSError as error:
        raise TfmpError(f"Can't write the evaluation to {workdir}: {error}.") from error
    _print(results, evaluated.name, workdir)
    wrong = {p: int(c["non_finite"][evaluated.name]) for p, c in results["policies"].items()}
    if any(wrong.values()):
        named = ", ".join(f"{count} under {policy}" for policy, count in wrong.items() if count)
        raise NonFiniteError(
            f"{named} of {examples} examples have logits that are not finite: they count as wrong, "
            f"and nll, brier and calibration can't be told. See {workdir}."
        )
    return results


def _workdir(config):
    if config.workdir is None:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        return pathlib.Path("runs") / f"evaluate-{now}"
    workdir = pathlib.Path(config.workdir).expanduser()
    if (workdir / "evaluation.json").exists():
        raise UserError(f"{workdir} holds an evaluation: expected a new --workdir.")
    return workdir


def _data(config, subject):
    """The data set, and the options that it was loaded with."""
    run = subject.run.get("config", {})
    name = config.dataset or run.get("dataset")
    if name is None:
        raise UserError(f"Expected --dataset: {subject.path} is no run that knows its own.")
    own = {} if config.dataset not in (None, run.get("dataset")) else run
    options = {key: getattr(config, key) or own.get(key) for key in ("data_dir", "manual_dir")}

    def load(image_size):
        fraction = own.get("validation_fraction", 0.1)
        return tfmp_data.load(name, validation_fraction=fraction, image_size=image_size, **options)

    shape = tuple(subject.model.input_shape[1:])
    data = load(own.get("image_size"))
    if None not in shape and data.input_shape != shape and len(set(shape[:2])) == 1:
        data = load(shape[0])
    if any(want not in (None, have) for want, have in zip(shape, data.input_shape, strict=True)):
        raise UserError(
            f"Expected images of {_by(shape)}, as the model takes them. Received: {name} of "
            f"{_by(data.input_shape)}."
        )
    if subject.model.output_shape[-1] != len(data.class_names):
        raise UserError(
            f"Expected a model of {name}'s {len(data.class_names)} classes. Received: "
            f"{subject.path} of {subject.model.output_shape[-1]}."
        )
    if getattr(data, config.split) is None:
        raise UserError(f"Expected a data set with {config.split} images. Received: {name}.")
    return data, options


def _by(shape):
    return "x".join("any" if side is None else str(side) for side in shape)


class _Evaluated:
    """The predictions under each policy, and what they come to."""

    def __init__(self, config, subject, data, groups):
        self.config, self.subject, self.data, self.groups = config, subject, data, groups
        self.name = data.name if config.split == "test" else f"{data.name}/validation"
        self.own = policies.policy_of(subject.model)
        self.device = hardware.describe()
        others = [policy for policy in config.policies if policy != self.own]
        self.predictions = {}
        for policy in [self.own, *others]:
            print(f"predicting {self.name} under {policy} ...", flush=True)
            self.predictions[policy] = self._predict(policy, config.split)

    def _predict(self, policy, split):
        model = self.subject.model
        if policy != self.own:
            model = evaluation.under(model, policy)
        return evaluation.predict(
            model,
            getattr(self.data, split)(self.config.batch_size),
            jit_compile=compiles(self.config.jit_compile, self.device, policy),
            examples=self.data.sizes[split],
        )

    def results(self):
        own, intervals = self._summary(self.own)
        results = self._by_name(own) | {"intervals": self._by_name(intervals)}
        if self.config.temperature_scaling:
            results |= self._scaled()
        results["policies"] = {}
        for policy, predictions in self.predictions.items():
            values = own if policy == self.own else self._summary(policy, intervals=False)[0]
            if "float32" in self.predictions and policy != "float32":
                reference = self.predictions["float32"]
                values = values | {"against_float32": evaluation.compare(predictions, reference)}
            results["policies"][policy] = self._by_name(values)
        if len(self.data.class_names) <= CLASSES_IN_JSON:
            results["confusion"] = {self.name: self.confusion().tolist()}
        return results | {"made_with": self._made_with()}

    def _summary(self, policy, intervals=True, temperature=1.0):
        config = self.config
        return evaluation.summarize(
            self.predictions[policy],
            self.data.class_names,
            groups=self.groups,
            bins=config.bins,
            temperature=temperature,
            replicates=config.replicates if intervals else 0,
            seed=config.seed,
        )

    def _scaled(self):
        """Calibration with a temperature fitted on the validation images."""
        if self.data.validation is None:
            raise UserError(f"--temperature_scaling needs validation images: {self.name} has none.")
        print("predicting the validation images ...", flush=True)
        validation = self._predict(self.own, "validation")
        temperature = classification.temperature(validation.logits, validation.labels)
        values, intervals = self._summary(self.own, temperature=temperature)
        return {
            "temperature": {self.name: temperature},
            "temperature_scaled": self._by_name(
                {k: values[k] for k in CALIBRATION}
                | {"intervals": {k: intervals[k] for k in CALIBRATION if k in intervals}}
            ),
        }

    def _by_name(self, values):
        """Metric -> data set -> value."""
        return {metric: {self.name: value} for metric, value in values.items()}

    def _made_with(self):
        config = dataclasses.asdict(self.config)
        return {
            "config": config | {"workdir": self.config.workdir},
            "model": str(self.subject.path),
            "logits": self.subject.logits,
            "policy": self.own,
            "run": {k: self.subject.run.get(k) for k in ("name", "policy", "seed", "git_commit")},
            "data": {
                "name": self.data.name,
                "split": self.config.split,
                "class_names": self.data.class_names,
                "examples": self.data.sizes[self.config.split],
            },
            "device": dataclasses.asdict(self.device),
            "tf32": hardware.tf32_in_force(),
            "versions": provenance.versions(),
            "git_commit": provenance.git_commit(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def outcomes(self):
        own = self.predictions[self.own]
        return classification.outcomes(own.logits, own.labels)

    def confusion(self):
        return classification.confusion(self.outcomes())

    def write(self, workdir):
        found = self.outcomes()
        more = {} if self.groups is None else {"groups": self.groups}
        for policy, predictions in self.predictions.items():
            suffix = "" if policy == self.own else f"-{policy}"
            predictions.save(workdir / f"predictions{suffix}.npz", **more)
        title = f"{self.subject.path.name} on {self.name}"
        if found.finite.all():
            bins = classification.equal_width_bins(found, self.config.bins)
            plots.reliability(bins, workdir / "reliability.png", title)
        matrix = classification.confusion(found)
        plots.confusion(matrix, self.data.class_names, workdir / "confusion.png", title)


def _print(results, name, workdir):
    intervals = results["intervals"]
    print(f"\n{name}, {results['examples'][name]:,} examples, {results['made_with']['policy']}")
    for metric in ("accuracy", "top5_accuracy", *CALIBRATION):
        if metric in results:
            value, interval = results[metric][name], intervals.get(metric, {}).get(name)
            between = f"   {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
            print(f"  {metric:<16}" + ("unknown" if value is None else f"{value:.4f}") + between)
    for what in ("class", "group"):
        if f"worst_{what}" in results:
            worst = results[f"worst_{what}"][name]
            low, high = intervals[f"per_{what}_accuracy"][name][worst["name"]]
            print(
                f"  worst {what:<10}{worst['accuracy']:.4f}   {low:.4f} to {high:.4f}   "
                f"{worst['name']}, {worst['examples']:,} examples"
            )
    if "temperature" in results:
        scaled = results["temperature_scaled"]
        print(
            f"  at temperature {results['temperature'][name]:.3f}: nll {scaled['nll'][name]:.4f}, "
            f"ece {scaled['ece'][name]:.4f}"
        )
    for policy, values in results["policies"].items():
        if "against_float32" in values:
            against = values["against_float32"][name]
            print(
                f"  {policy} against float32: {against['flips']} flips "
                f"({against['became_wrong']} became wrong, {against['became_right']} right), "
                f"accuracy {values['accuracy'][name] - _accuracy(results, name):+.4f}, logits "
                f"differ by {_number(against['largest_logit_difference'])} at most"
            )
    print(f"\n{workdir}/evaluation.json")


def _accuracy(results, name):
    return results["policies"]["float32"]["accuracy"][name]


def _number(value):
    return "an unknown amount" if value is None or not np.isfinite(value) else f"{value:.3g}"
