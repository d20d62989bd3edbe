"""`load`: a model with its training state, in a fresh process."""

import json
import pathlib
import warnings
import zipfile
import zlib

import h5py
import keras
import tensorflow as tf

from tfmp import files, loss_scale
from tfmp.errors import UserError
from tfmp.training import (
    optimizers,
    segmentation,  # noqa: F401, for its loss, which Keras finds by name
    tables,  # noqa: F401, for its loss
)

DESCRIPTION = "model.json"


def load(path):
    """Loads a model with precision, optimizer state, loss scale and counters, to train on.

    Keras' own `load_model` drops the loss scale of a mixed model, and skips its optimizer's state
    with a warning.

    Args:
        path: A `.keras` file of a compiled model, also one saved with Keras' own loss scaling; or
            the folder of a run, finished or not, whose last checkpoint is taken. (A run's own
            `model.keras` holds no training state.) Under a strategy: call it in the scope.

    Returns:
        A Keras model, compiled unless the file's was not. A run's has the run's loss, of labels as
        its data have them, without what its step did to images and labels; the generator of a GAN,
        whose step has losses of its own, has none. Every layer has its precision, the
        optimizer its state. Keras' files hold neither the model's own `dtype_policy`, which
        computes nothing, nor the seed state of layers such as Dropout; a run's checkpoint has
        the latter.

    Raises:
        UserError: There is no such file or run, or the state is of another model.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return _load_run(path)
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise UserError(f"Expected a .keras file or the folder of a run. Received: {path}.")
    try:
        return _load_file(path)
    except (zipfile.BadZipFile, zlib.error, OSError, KeyError) as error:
        raise UserError(f"Can't load {path}: it is damaged or no model ({error}).") from error


def describe(learner, folder):
    """Writes what `load` needs beside the checkpoints of a run.

    Args:
        learner: Compiled `tfmp.training.Learner`.
        folder: Path of the run's folder.
    """
    parts = {
        "model": learner.model,
        "optimizer": learner.optimizer,
        "loss": learner.make_plain_loss(),
    }
    described = {k: keras.saving.serialize_keras_object(part) for k, part in parts.items()}
    files.write_json(folder / DESCRIPTION, described)


def _load_run(folder):
    latest = tf.train.latest_checkpoint(folder / "checkpoints")
    if latest is None or not (folder / DESCRIPTION).exists():
        raise UserError(
            f"Expected the folder of a run, with {DESCRIPTION} and a checkpoint. Received: "
            f"{folder}."
        )
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
    except ValueError as error:
        raise UserError(f"Can't load {folder / DESCRIPTION}: it is damaged ({error}).") from error
    model = keras.saving.deserialize_keras_object(described["model"])
    optimizer = keras.saving.deserialize_keras_object(described["optimizer"])
    optimizers.exclude_from_weight_decay(loss_scale.inner(optimizer), model)
    loss = keras.saving.deserialize_keras_object(described["loss"])
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
        loss_scale.compile(model, **keras.saving.deserialize_keras_object(settings))
        with archive.open("model.weights.h5") as weights, h5py.File(weights, "r") as store:
            _restore(model, store, file)
    return model


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
