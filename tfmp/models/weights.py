"""Weights from a file into a built model."""

import pathlib
import warnings
import zipfile

from tfmp.errors import UserError


def load_weights(model, file):
    """Loads saved weights into a model of the same layers.

    Args:
        model: Built Keras model.
        file: Path of a `.keras` file (such as a run's `model.keras`) or a `.weights.h5` file.

    Raises:
        UserError: No such file, another kind of file, or weights of another model.
    """
    file = pathlib.Path(file).expanduser()
    if not file.name.endswith((".keras", ".weights.h5")):
        raise UserError(f"Expected a file of weights, .keras or .weights.h5. Received: {file}.")
    try:
        if not file.is_file():
            raise UserError(f"Expected a file of weights. Received: {file}, which does not exist.")
        with warnings.catch_warnings():
            # Keras only warns of a layer that it leaves as it was.
            warnings.filterwarnings("error", "Skipping")
            model.load_weights(file)
    except UserError:
        raise
    except (ValueError, OSError, KeyError, UserWarning, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The weights in {file} don't fit {model.name} with {model.output_shape[-1]} classes: "
            f"{reason} Give the model that they were saved from."
        ) from error
