"""What is advised on: a recipe's model, or the model that a function of the user's returns."""

import importlib
import os
import re
import sys
import traceback

import keras

from tfmp import policies, recipes
from tfmp.commands import benchmark
from tfmp.commands.benchmark import rows, session
from tfmp.errors import UserError

# Windows of a probe; their median counts.
WINDOWS = 3
# A card of 24 GB holds a step of ResNet-50 at 224 px and batch 256 (19.6 GiB in float32) only
# just: smaller ones get smaller batches.
LARGE_MEMORY_BYTES = 30e9
BOLD = re.compile("\x1b\\[[0-9;]*m")  # Keras' own, which would go on behind a message cut short
LONGEST_REASON = 500  # characters of an error's message


def is_function(target):
    """Whether a target is MODULE:FUNCTION."""
    return ":" in target


def defaults(spec, device):
    """A spec with what the user left open, by the device.

    Args:
        spec: Dict with `target`, `model`, `image_size` and `batch_sizes`, as in `Config`.
        device: A `tfmp.hardware.Device`.
    """
    on_cpu = device.kind == "cpu"
    sizes: tuple[int, ...] = (32,)
    if not on_cpu:
        large = 256 if is_function(spec["target"]) else recipes.large_batch(spec["target"])
        large //= 1 if (device.memory_bytes or 0) > LARGE_MEMORY_BYTES else 4
        sizes = (large // 2, large)
    found = spec | {"batch_sizes": tuple(spec["batch_sizes"]) or sizes}
    if is_function(spec["target"]):
        return found
    choose = recipes.default_model if on_cpu else recipes.large_model
    found["model"] = spec["model"] or choose(spec["target"])
    if recipes.takes_images(spec["target"]):
        # On a CPU the recipe's default model, on images small enough for a minute and large enough
        # to show what arithmetic costs: at 8 px the calls themselves take half of the time.
        found["image_size"] = spec["image_size"] or (32 if on_cpu else 224)
    return found


def benchmark_config(spec):
    """The `tfmp.commands.benchmark.Config` of a recipe's probes.

    Raises:
        UserError: No such recipe.
    """
    usual = recipes.default_model(spec["target"])
    config = benchmark.Config(
        recipe=spec["target"],
        model=spec["model"] or usual,
        image_size=spec["image_size"],
        repeats=1,
        windows=WINDOWS,
        steps=spec["steps"],
        limit_seconds=spec["limit_seconds"],
    )
    return benchmark.complete(config)


def case(policy, jit_compile, batch_size):
    """The `rows.Case` of a probe."""
    return rows.Case(policy, jit_compile, batch_size, "device", "recipe")


def recipe_flags(spec, probe):
    """(`benchmark_config`, the recipe's flags in a probe), checked.

    Raises:
        UserError: No such recipe, or a flag that it refuses.
    """
    config = benchmark_config(spec)
    return config, session.flags(config, probe)


def load(target, policy):
    """The model that MODULE:FUNCTION returns, alone or before its data, under a policy.

    Args:
        target: MODULE:FUNCTION; the module is looked for in the current folder first.
        policy: Name of the dtype policy.

    Returns:
        A built Keras model that knows its inputs.

    Raises:
        UserError: There is no such module or function, or it returns something else.
    """
    called = function(target)
    with policies.scope(policy):
        made = call(called, target)
    return _checked(model_of(made), target)


def call(called, target):
    """What the function that MODULE:FUNCTION names returns.

    Args:
        called: The function.
        target: MODULE:FUNCTION, for the message.

    Raises:
        UserError: It fails, called without arguments.
    """
    try:
        return called()
    except Exception as error:
        raise UserError(f"{target}, called without arguments: {said(error)}") from error


def model_of(made):
    """The model of what a function returned: alone, or the first of a tuple, before its data."""
    return made[0] if isinstance(made, tuple) and made else made


def function(target):
    """The function that MODULE:FUNCTION names.

    Args:
        target: MODULE:FUNCTION; the module is looked for in the current folder first.

    Raises:
        UserError: There is no such module or function, or the module can't be imported.
    """
    name, _, function_name = target.partition(":")
    if not name or not function_name:
        raise UserError(f"Expected MODULE:FUNCTION. Received: {target!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{name} can't be imported: {said(error)}") from error
        raise UserError(
            f"Expected MODULE:FUNCTION with a module of the current folder or an installed one. "
            f"There is no module {error.name!r} in {os.getcwd()}."
        ) from None
    except Exception as error:
        raise UserError(f"{name} can't be imported: {said(error)}") from error
    found = getattr(module, function_name, None)
    if not callable(found):
        raise UserError(
            f"Expected a function in {name} ({module.__file__}). Received: {function_name!r}, "
            f"which is {'not there' if found is None else f'{type(found).__name__}'}."
        )
    return found


def said(error):
    """An error and where it came from, in a line."""
    frames = traceback.extract_tb(error.__traceback__)
    # The last place outside of libraries and of this file, if there is one.
    own = [x for x in frames if "site-packages" not in x.filename and x.filename != __file__]
    own = [x for x in own if not x.filename.startswith("<frozen")]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    # Keras wraps what fails in loading in the configs of all that holds it.
    reason = str(error).rpartition("Exception encountered:")[2].partition("Full object config:")[0]
    reason = " ".join(BOLD.sub("", reason).split())[:LONGEST_REASON].rstrip(".")
    return f"{type(error).__name__}: {reason}{place}."


def _checked(model, target):
    if not isinstance(model, keras.Model):
        raise UserError(f"Expected {target} to return a Keras model. Received: {type(model)}.")
    inputs = getattr(model, "inputs", None)
    if not model.built or not inputs:
        raise UserError(
            f"Expected {target} to return a built functional or Sequential model, which begins "
            f"with keras.Input(...). Received: {type(model).__name__} {model.name!r}, which "
            f"{'does not know its inputs' if model.built else 'is not built'}."
        )
    for x in inputs:
        if None in x.shape[1:] or x.dtype == "string":
            raise UserError(
                f"Expected inputs of numbers and of known sizes but for the batch, such as "
                f"keras.Input((224, 224, 3)). Received: {x.name!r}, {x.dtype} of {x.shape}."
            )
    if not model.trainable_variables:
        raise UserError(f"Expected {target} to return a model with weights to train.")
    return model
