"""The model to evaluate, and what its run knows about its data."""

import dataclasses
import json
import pathlib
import zipfile
import zlib

import keras

from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model whose outputs are logits, and where it comes from.

    Attributes:
        model: Built Keras model.
        path: The file or folder that it was read from.
        run: What the run's `results.json` holds; empty where there is none.
        logits: How the outputs are logits: "as they are", or what was left away.
    """

    model: keras.Model
    path: pathlib.Path
    run: dict
    logits: str


def load(path) -> Subject:
    """Reads a model, to predict with.

    Args:
        path: A `.keras` file, or the folder of a finished run.

    Raises:
        UserError: There is no such model, it is damaged, or it has several outputs.
    """
    path = pathlib.Path(path).expanduser()
    file = path / "model.keras" if path.is_dir() else path
    if file.suffix != ".keras" or not file.exists():
        raise UserError(
            f"Expected a .keras file, or the folder of a finished run. Received: {path}."
            + (" It holds no model.keras: go on with its --resume." if path.is_dir() else "")
        )
    model = _read(file)
    if len(model.outputs or [None]) != 1 or len(model.inputs or [None]) != 1:
        raise UserError(
            f"Expected a model of one input and one output. Received: {path}, with "
            f"{len(model.inputs)} and {len(model.outputs)}."
        )
    model, logits = with_logits(model)
    return Subject(model, path, _results(file.parent), logits)


def with_logits(model):
    """A model that gives logits, of one that may end in a softmax.

    A softmax in half precision rounds small probabilities to zero, and metrics would see that.

    Args:
        model: Built Keras model of one output.

    Returns:
        A model that shares its weights, and one line on what was done.
    """
    last = model.layers[-1]
    softmax = keras.activations.softmax
    if getattr(last, "activation", None) is softmax and not isinstance(last, keras.Model):
        if isinstance(last, keras.layers.Activation):
            return keras.Model(model.inputs, last.input), f"the input of {last.name!r}, a softmax"
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        copy.layers[-1].activation = keras.activations.linear
        outputs = copy.layers[-1](copy.layers[-1].input)
        return keras.Model(copy.inputs, outputs), f"{last.name!r} without its softmax"
    if isinstance(last, keras.layers.Softmax):
        return keras.Model(model.inputs, last.input), f"the input of {last.name!r}, a softmax"
    return model, "as they are"


def _read(file):
    try:
        return keras.saving.load_model(file, compile=False)
    except (zipfile.BadZipFile, zlib.error, OSError, KeyError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"Can't load {file}: it is damaged, no model, or of classes that are not imported "
            f"({type(error).__name__}: {reason})."
        ) from error


def _results(folder):
    try:
        return json.loads((folder / "results.json").read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"Can't read {folder / 'results.json'}: {error}.") from error
