"""The model to evaluate, and what its run knows about its data."""

import dataclasses
import json
import pathlib
import zipfile
import zlib

import keras

from tfmp import files, policies
from tfmp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model whose outputs are logits, and where it comes from.

    Attributes:
        model: Built Keras model.
        path: The file or folder that it was read from.
        sha256: Of the model's file, in hexadecimal.
        run: What the `results.json` beside it holds; empty where there is none.
        logits: Where they come from: "as they are", or what was left away.
    """

    model: keras.Model
    path: pathlib.Path
    sha256: str
    run: dict
    logits: str


def load(path) -> Subject:
    """Reads a model, to predict with.

    Args:
        path: A `.keras` file, or the folder of a finished run.

    Raises:
        UserError: There is no such model, it is damaged, it doesn't classify images, or it gives
            probabilities.
    """
    path = pathlib.Path(path).expanduser()
    file = path / "model.keras" if path.is_dir() else path
    if file.suffix != ".keras" or not file.is_file():
        # (Fine-tuning begins with checkpoints of a folder inside.)
        begun = any((path / name).exists() for name in ("checkpoints", "config.json"))
        unfinished = path.is_dir() and begun
        raise UserError(
            "Expected a .keras file, or the folder of a finished run, with its model.keras. "
            f"Received: {path}."
            + (" That run is not finished: go on with it by --resume." if unfinished else "")
        )
    model = read(file)
    # A list of several tensors' shapes, or nothing at all in a subclass, is not for us.
    inputs, outputs = (getattr(model, name, None) for name in ("input_shape", "output_shape"))
    ranks = [len(x) if isinstance(x, tuple) else None for x in (inputs, outputs)]
    if ranks != [4, 2]:
        raise UserError(
            "Expected a functional or Sequential model that classifies images: one input [batch, "
            "height, width, channels], and one output [batch, classes]. Received: "
            f"{path}, a {type(model).__name__} of {inputs} and {outputs}."
        )
    model, logits = with_logits(model)
    return Subject(model, path, files.sha256(file), _results(file.parent), logits)


def with_logits(model):
    """A model that gives logits, of one that may end in a softmax.

    A softmax in half precision rounds small probabilities to 0, and metrics would see that.

    Args:
        model: Built functional or Sequential Keras model of one output. If it ends in a layer
            with softmax as its activation, that is taken away from it.

    Returns:
        A model that shares its weights, and a few words on what was done.

    Raises:
        UserError: It ends in another activation that makes probabilities.
    """
    last = model.outputs[0]._keras_history.operation
    inner = last
    while isinstance(inner, keras.Model):
        inner = inner.outputs[0]._keras_history.operation
    activation = getattr(inner, "activation", None)
    if activation is keras.activations.softmax:
        inner.activation = keras.activations.linear
        return model, f"{inner.name!r} without its softmax"
    if isinstance(inner, keras.layers.Softmax) and inner is last:
        return keras.Model(model.inputs[0], inner.input), f"the input of {inner.name!r}"
    sigmoids = (keras.activations.sigmoid, keras.activations.hard_sigmoid)
    if isinstance(inner, keras.layers.Softmax) or activation in sigmoids:
        raise UserError(
            f"Expected a model that ends in logits, or in a softmax of its own. Received: "
            f"{inner.name!r} at the end of {model.name!r}. Save it without its last activation."
        )
    return model, "as they are"


def under_policies(subject, others):
    """The model under its own policy, then under each other one; all with the same weights.

    Args:
        subject: A `Subject`.
        others: Names of policies.

    Returns:
        A dict of models by policy; the first is the model's own.

    Raises:
        UserError: The model can't be copied.
    """
    own = policies.policy_of(subject.model)
    models = {own: subject.model}
    for policy in others:
        if policy != own:
            models[policy] = policies.set_policy(subject.model, policy)
            if models[policy] is subject.model:
                raise UserError(
                    "Expected a functional or Sequential model, to copy it for another policy. "
                    f"Received: {type(subject.model).__name__}, of {subject.path}."
                )
    return models


def read(file) -> keras.Model:
    """A model of a `.keras` file, uncompiled.

    Args:
        file: Path of the file.

    Raises:
        UserError: It is damaged, no Keras model, or of classes that are not imported.
    """
    try:
        return keras.saving.load_model(file, compile=False)
    except (zipfile.BadZipFile, zlib.error, OSError, KeyError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"Can't load {file}: it is damaged, no Keras model, or of classes that are not "
            f"imported ({type(error).__name__}: {reason})."
        ) from error


def _results(folder):
    """The run's results, or {} where the file is not of a run of ours."""
    file = folder / "results.json"
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"Can't read {file}: {error}. Evaluate a copy of model.keras elsewhere, with --dataset."
        ) from error
    ours = isinstance(found, dict) and isinstance(found.get("config"), dict)
    return found if ours and isinstance(found.get("data"), dict) else {}
