"""Weights from a file into a built model."""

import pathlib
import re
import warnings
import zipfile

from tfmp.errors import UserError

SUFFIXES = (".keras", ".weights.h5")
# The first layer that Keras names, and what it says of a weight's shape there.
SHAPES = re.compile(
    r"^A total of .* <\w+ name=([^,>]+).*\s+.*variable\.shape=(\(.*?\)), .*value\.shape=(\(.*?\))"
)


def load_weights(model, file, backbone=None):
    """Loads saved weights into a model of the same layers.

    Args:
        model: Built Keras model.
        file: Path of a `.keras` file (such as a run's `model.keras`) or a `.weights.h5` file.
        backbone: Model of the same layers without the head. Weights that don't fit the model, such
            as those for other classes or without top, are loaded into it, and the head stays as it
            was. Then the file may be `.h5`, too, as Keras publishes weights.

    Returns:
        The model that the weights were loaded into: `model` or `backbone`.

    Raises:
        UserError: No such file, another kind of file, or weights of another model.
    """
    file = pathlib.Path(file).expanduser()
    suffixes = SUFFIXES if backbone is None else (*SUFFIXES, ".h5")
    if not file.name.endswith(suffixes):
        kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UserError(f"Expected a file of weights, {kinds}. Received: {file}.")
    if not file.is_file():
        raise UserError(f"Expected a file of weights. Received: {file}, which does not exist.")
    if backbone is None:
        return _load(model, file, "Give the model that they were saved from.")
    try:
        return _load(model, file, "")
    except UserError:
        return _load(backbone, file, "Give weights of that model, with or without its head.")


def _load(model, file, advice):
    try:
        with warnings.catch_warnings():
            # Keras only warns of a layer that it leaves as it was.
            warnings.filterwarnings("error", "Skipping")
            model.load_weights(file)
    except (OSError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The weights in {file} can't be read: {reason}.") from error
    except (ValueError, KeyError, UserWarning) as error:
        raise UserError(
            f"The weights in {file} don't fit {model.name} with {model.output_shape[-1]} outputs: "
            f"{_reason(model, file, str(error))} {advice}"
        ) from error
    return model


def _reason(model, file, message):
    """Why weights don't fit, of Keras' long message or of its warning."""
    if "nested container" in message:  # Keras guesses at a file of another Keras, and goes on
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.load_weights(file)
        except (ValueError, KeyError) as error:
            message = str(error)
    if found := SHAPES.search(message):
        name, wanted, received = found.groups()
        return f"{name!r} has weights of the shape {wanted}, and in the file of {received}."
    several = message.startswith("A total of") or "nested container" in message
    return "they are of other layers." if several else message.splitlines()[0]
