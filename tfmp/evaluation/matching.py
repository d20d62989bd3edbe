"""The data that suit a model: of its size, channels and classes."""

from tfmp import data as tfmp_data
from tfmp.data import Data, DataError
from tfmp.errors import UserError


def data_for(subject, dataset=None, *, data_dir=None, manual_dir=None, split="test"):
    """Loads data for a model: its run's, or others of the same kind.

    Args:
        subject: A `tfmp.evaluation.Subject`.
        dataset: A name that `tfmp.data.load` takes; None for the run's own.
        data_dir: Where prepared TFDS data lie; None: the run's, else TFDS' own.
        manual_dir: Where files fetched by hand lie; None: the run's.
        split: "test" or "validation". As in the run, validation may be held out of train.

    Returns:
        A `tfmp.data.Data`, and the options that also `tfmp.data.test_feature` takes.

    Raises:
        UserError: No data set is named, it can't be read, has no such split, or has other sizes,
            channels or classes than the model.
    """
    run = subject.run.get("config", {})
    name = dataset or run.get("dataset")
    if name is None:
        raise UserError(f"Expected --dataset: {subject.path} is no run that knows its own.")
    own = run if name == run.get("dataset") else {}
    options: dict = {
        "data_dir": data_dir or own.get("data_dir"),
        "manual_dir": manual_dir or own.get("manual_dir"),
        "image_size": own.get("image_size"),
    }
    fraction = own.get("validation_fraction", 0.1)

    def load():
        return tfmp_data.load(name, validation_fraction=fraction, **options)

    data = load()
    wanted = tuple(subject.model.input_shape[1:])
    if len(wanted) == 3 and wanted[0] and wanted[:2] != data.input_shape[:2]:
        _check_square(subject, wanted)
        options["image_size"] = wanted[0]
        data = load()
    _check_images(subject, wanted, data)
    _check_classes(subject, data)
    if own:
        _compare_origin(subject, data)
    if getattr(data, split) is None:
        raise UserError(f"Expected a data set with {split} images. Received: {name}, without.")
    return data, options


def _check_square(subject, wanted):
    if wanted[0] != wanted[1]:
        raise UserError(
            f"Expected a model of square images, to which the data can be resized. Received: "
            f"{subject.path}, of {_by(wanted)}."
        )


def _check_images(subject, wanted, data: Data):
    fits = len(wanted) == 3 and all(
        want in (None, have) for want, have in zip(wanted, data.input_shape, strict=True)
    )
    if not fits:
        raise UserError(
            f"Expected images of {_by(wanted)}, as {subject.path} takes them. Received: "
            f"{data.name}, of {_by(data.input_shape)}."
        )


def _check_classes(subject, data: Data):
    """Refuses data of another number of classes, or of other ones where the run knows its own."""
    classes, names = subject.model.output_shape[-1], list(data.class_names)
    if classes != len(names):
        raise UserError(
            f"Expected a model of the {len(names)} classes of {data.name}. Received: "
            f"{subject.path}, of {classes}."
        )
    trained = list(subject.run.get("data", {}).get("class_names", names))
    numbers = [str(number) for number in range(classes)]
    if trained != names and numbers not in (trained, names):
        first = next(i for i, name in enumerate(names) if trained[i : i + 1] != [name])
        raise DataError(
            f"Expected the classes that {subject.path} was trained on, in their order. Received: "
            f"{data.name}, whose class {first} is {names[first]!r} and not "
            f"{trained[first] if first < len(trained) else 'there'!r}."
        )
    if trained != names:
        print(f"note: {data.name} numbers its classes; they are taken in the order of training.")


def _compare_origin(subject, data: Data):
    """Says it where the run's own data have changed: what is held out of them may have, too."""
    before = subject.run.get("data", {}).get("origin") or ""
    if data.is_other_than(before):
        print(
            f"note: {data.name} has changed since {subject.path} was trained: it was {before}, and "
            f"is {data.origin or 'of unknown origin'}. Images that are held out of train now may "
            "have been trained on."
        )


def _by(shape):
    return "x".join("any" if side is None else str(side) for side in shape)
