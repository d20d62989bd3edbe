"""The axis of corruptions: its images, its baseline, and what comes of them."""

import dataclasses
import json
import pathlib
import typing

from tfmp import evaluation, policies
from tfmp.commands.evaluate.results import compiles
from tfmp.data import corrupted
from tfmp.errors import UserError
from tfmp.metrics import classification, corruption

# Its name as a baseline, and the only images that its published errors are of.
ALEXNET, OF_ALEXNET = "alexnet", ("imagenet2012_corrupted", (224, 224, 3))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be predicted.

    Attributes:
        images: A `tfmp.data.corrupted.Made` or `ReadyMade`; some may still have to be made.
        chosen: [examples] bool, the test images that are corrupted; None: a ready-made set has
            images of its own, and all test images count as clean.
        baseline: An `evaluation.Subject` to evaluate, an `evaluation.Baseline` to look up, or None.
    """

    images: typing.Any
    chosen: typing.Any
    baseline: typing.Any


def plan(config, subject, data, options) -> Plan:
    """Opens all that the axis needs; nothing is made or predicted.

    Args:
        config: A `tfmp.commands.robustness.Config`.
        subject: A `tfmp.evaluation.Subject`.
        data: A `tfmp.data.Data`.
        options: Of `evaluation.data_for`.

    Raises:
        UserError: The images can't be had, or the baseline doesn't fit.
    """
    names, severities = config.corruption_names, tuple(sorted(config.severities))
    count, chosen = config.corruption_examples, None
    if config.corrupted:
        images: typing.Any = corrupted.ready_made(
            config.corrupted,
            names,
            severities,
            examples=count,
            shape=data.input_shape,
            classes=len(data.class_names),
            data_dir=options["data_dir"],
            manual_dir=config.manual_dir,
        )
    else:
        examples = data.sizes["test"]
        chosen = evaluation.drawn(examples, count, config.seed)
        sample, labels = evaluation.sample(
            data.test(config.batch_size), examples, count, config.seed
        )
        more = {"name": data.name, "seed": config.seed, "cache_dir": config.cache_dir}
        images = corrupted.from_images(sample, labels, names, severities, **more)
    return Plan(images, chosen, _baseline(config, subject, data))


def _baseline(config, subject, data):
    if not config.baseline:
        return None
    if config.baseline == ALEXNET:
        if (config.corrupted, tuple(data.input_shape)) != OF_ALEXNET or len(config.severities) < 5:
            raise UserError(
                "Expected --baseline=alexnet with --corrupted=imagenet2012_corrupted at 224 px and "
                "all severities, of which its published errors are. Received: "
                f"{config.corrupted or data.name} at {data.input_shape[0]} px. Name a run instead."
            )
        errors = {name: [error] for name, error in corruption.ALEXNET.items()}
        return evaluation.Baseline(ALEXNET, errors, corruption.ALEXNET_CLEAN)
    path = pathlib.Path(config.baseline).expanduser()
    if path.suffix == ".json":
        return _read(path, data.name)
    found = evaluation.load(path)
    shapes = [(x.model.input_shape[1:], x.model.output_shape[1:]) for x in (subject, found)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"Expected a --baseline of the same images and classes as {subject.path}. Received: "
            f"{path}, of {shapes[1]} and not {shapes[0]}."
        )
    return found


def _read(file, name):
    """The corruptions in a robustness.json."""
    try:
        return json.loads(file.read_text())["corruptions"][name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Expected --baseline={file} to be a robustness.json with the corruptions of {name}. "
            f"Received: {type(error).__name__}: {error}."
        ) from None


def evaluate(found, right):
    """Makes what is missing, and predicts it.

    Args:
        found: A `tfmp.commands.robustness.session.Found`.
        right: [examples] bool, which test images are predicted right as they are.

    Returns:
        What `robustness.json` says of the axis, and an `evaluation.Corrupted`.

    Raises:
        UserError: A file is damaged, or the baseline is of other images.
        TfmpError: The images can't be made.
    """
    images, baseline = found.corrupted.images, found.corrupted.baseline
    chosen = slice(None) if found.corrupted.chosen is None else found.corrupted.chosen
    images.make()
    # All that may be wrong on disk shows before the predictions, which take long.
    identity = {name: images.identity(name) for name in images.corruptions}
    constants = images.constants()
    if isinstance(baseline, dict):
        baseline = _of_file(found.config.baseline, baseline, identity)
    seen = evaluation.under_corruptions(found.compiled, images, found.batch_size)
    if isinstance(baseline, evaluation.Subject):
        baseline = _of_run(found, baseline, chosen)
    values = evaluation.summarize_corruptions(
        seen,
        images.severities,
        1 - float(right[chosen].mean()),
        baseline,
        seed=found.config.seed,
    )
    return values | {"constants": constants, "images": identity}, seen


def _of_file(name, values, identity):
    """The errors that another examination has left, if they are of the same images."""
    theirs = values.get("images", {})
    for corrupted_by, by_severity in identity.items():
        if theirs.get(corrupted_by) != by_severity:
            raise UserError(
                f"Expected --baseline={name} to be of the same images under {corrupted_by}. "
                "Received: others, or other severities. Name the run, and it is evaluated on these."
            )
    errors = {key: list(found.values()) for key, found in values["errors"].items()}
    return evaluation.Baseline(name, errors, values["clean_error"])


def _of_run(found, subject, chosen):
    """The errors of another model on the same images."""
    print(f"  {found.config.baseline}, the baseline ...", flush=True)
    batch_size = subject.model.input_shape[0] or found.config.batch_size
    jit_compile = compiles(found.config, policies.policy_of(subject.model))
    compiled = evaluation.forward(subject.model, jit_compile=jit_compile)
    own = evaluation.predict(None, found.data.test(batch_size), compiled=compiled)
    right = classification.outcomes(own.logits, own.labels).correct
    seen = evaluation.under_corruptions(compiled, found.corrupted.images, batch_size)
    clean = 1 - float(right[chosen].mean())
    return evaluation.Baseline(found.config.baseline, seen.errors, clean)
