"""`load`: a model with its training state, in a fresh process."""

import contextlib
import importlib
import json
import pathlib
import re
import warnings
import zipfile
import zlib

import h5py
import keras
import tensorflow as tf

from tfmp import files, loss_scale
from tfmp.errors import UserError
from tfmp.training import optimizers

DESCRIPTION = "model.json"
FIRST_PHASE = "head"  # folder in a run's, of the phase in which the head trains alone


def load(path):
    """Loads a model with precision, optimizer state, loss scale and counters, to train on.

    Keras' own `load_model` drops the loss scale of a mixed model, and skips its optimizer's state
    with a warning.

    Args:
        path: A `.keras` file of a compiled model, also one saved with Keras' own loss scaling; or
            the folder of a run, finished or not, whose last checkpoint is taken. (A run's own
            `model.keras` holds no training state.) Under a strategy: call it in the scope.

    Returns:
        A Keras model, compiled unless the file's was not. A run's has its learner's
        `make_plain_loss`, the run's loss of labels as its data have them, without what its step did
        to images and labels, and a classifier's accuracy; it has no loss where the step has losses
        of its own, as a GAN's, or a user's own loss can't be made again (a warning). Every layer
        has its precision, the optimizer its state. Keras' files hold neither the model's own
        `dtype_policy`, which computes nothing, nor the seed state of layers such as Dropout; a
        run's checkpoint has the latter.

    Raises:
        UserError: There is no such file or run, the state is of another model, or a class of the
            user's own was not imported.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_dir() and (path.suffix != ".keras" or not zipfile.is_zipfile(path)):
        raise UserError(f"Expected a .keras file or the folder of a run. Received: {path}.")
    try:
        return _load_run(path) if path.is_dir() else _load_file(path)
    except TypeError as error:
        missing = re.search(r"Could not locate (\w+ '\w+')", str(error))
        if not missing:
            raise
        said = f"Can't load {path}: no {missing[1]} is known. Import the module that defines it."
        raise UserError(said) from error
    except (zipfile.BadZipFile, zlib.error, OSError, KeyError) as error:
        raise UserError(f"Can't load {path}: it is damaged or no model ({error}).") from error


def describe(learner, folder):
    """Writes what `load` needs beside the checkpoints of a run.

    Args:
        learner: Compiled `tfmp.training.Learner`.
        folder: Path of the run's folder.
    """
    parts = {"model": learner.model, "optimizer": learner.optimizer}
    described = {k: keras.saving.serialize_keras_object(part) for k, part in parts.items()}
    with contextlib.suppress(TypeError, ValueError):  # a loss of which no file can be made
        described["loss"] = keras.saving.serialize_keras_object(learner.make_plain_loss())
    files.write_json(folder / DESCRIPTION, described)


def _load_run(folder):
    latest = tf.train.latest_checkpoint(folder / "checkpoints")
    if latest is None and (folder / FIRST_PHASE).is_dir():  # the second has saved nothing yet
        return _load_run(folder / FIRST_PHASE)
    if latest is None or not (folder / DESCRIPTION).exists():
        raise UserError(
            f"Expected the folder of a run, with {DESCRIPTION} and a checkpoint. Received: "
            f"{folder}."
        )
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
    except ValueError as error:
        raise UserError(f"Can't load {folder / DESCRIPTION}: it is damaged ({error}).") from error
    model, optimizer = (_made(described[part]) for part in ("model", "optimizer"))
    loss = _loss(described, folder)
    optimizers.exclude_from_weight_decay(loss_scale.inner(optimizer), model)
    classes = isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    metrics = ["accuracy"] if classes else None
    model.compile(optimizer=optimizer, loss=loss, metrics=metrics, auto_scale_loss=False)
    optimizer.build(model.trainable_variables)
    state = tf.train.Checkpoint(
        model=[v.value for v in model.variables],
        optimizer=[v.value for v in optimizer.variables],
    )
    try:
        state.restore(latest).assert_existing_objects_matched().expect_partial()
    except (tf.errors.OpError, ValueError, IndexError, AssertionError) as error:
        raise UserError(
            f"Can't restore {latest}: it is damaged or of another model ({error})."
        ) from error
    return model


def _load_file(file):
    model = keras.saving.load_model(file, compile=False)
    with zipfile.ZipFile(file) as archive:
        settings = json.loads(archive.read("config.json")).get("compile_config")
        if not settings:
            return model
        loss_scale.compile(model, **_made(settings))
        with archive.open("model.weights.h5") as weights, h5py.File(weights, "r") as store:
            _restore(model, store, file)
    return model


def _loss(described, folder):
    """The run's loss; None, with a warning, where it can't be made again."""
    try:
        return _made(described["loss"])
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
    warnings.warn(
        f"The model of {folder} is loaded without the run's loss, which is its learner's own or "
        f"was not written: {reason}.",
        stacklevel=4,
    )
    return None


def _made(described):
    """What Keras makes of a description, in which classes of tfmp may stand."""
    for module in _own_modules(described):
        with contextlib.suppress(ImportError):  # Keras says which class there isn't
            importlib.import_module(module)
    return keras.saving.deserialize_keras_object(described)


def _own_modules(described):
    if isinstance(described, dict):
        if str(described.get("module")).startswith("tfmp."):
            yield described["module"]
        described = list(described.values())
    if isinstance(described, list):
        for part in described:
            yield from _own_modules(part)


def _restore(model, store, file):
    """Restores the optimizer's state from a file's weights."""
    optimizer = model.optimizer
    inner = loss_scale.inner(optimizer)
    unbuilt = [_shapes(optimizer.variables), _shapes(inner.variables), []]
    optimizer.build(model.trainable_variables)
    saved = store.get("optimizer/vars", {})
    shapes = _shapes(saved[str(index)] for index in range(len(saved)))
    if shapes == _shapes(inner.variables):
        inner.load_own_variables(saved)
        return
    if shapes in unbuilt:
        return  # saved before the first step
    if shapes != _shapes(optimizer.variables):  # as `accelerate` has made it of Keras' own
        model.optimizer = optimizer = loss_scale.wrap(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            optimizer.load_own_variables(saved)
        except (UserWarning, ValueError) as error:  # Keras skips a state of another size
            raise UserError(f"Can't restore the optimizer's state in {file}: {error}") from None


def _shapes(variables):
    return [tuple(variable.shape) for variable in variables]
