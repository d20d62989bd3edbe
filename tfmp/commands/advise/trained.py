"""What is trained a few steps: a recipe, or what a function of the user's returns, with a batch."""

import importlib
import inspect

import keras
import numpy as np
import tensorflow as tf

from tfmp import cli, distribution, policies, recipes
from tfmp.commands.advise import target
from tfmp.errors import UserError


class MistakeError(UserError):
    """What the user has to mend in what a function returns."""


def recipe(name, flags):
    """A recipe, prepared.

    Args:
        name: Module of `tfmp.recipes`.
        flags: Its flags, as `recipe_flags` makes them.

    Returns:
        (compiled `Learner`, a batch of the training data).
    """
    module = importlib.import_module(f"tfmp.recipes.{name}")
    config = cli.parse(module.Config, flags)
    _, data, learner, _ = module.prepare(config)
    return learner, next(iter(data.train(config.batch_size, seed=config.seed)))


def recipe_flags(name, given, *, policy, jit_compile, replicas, batch_size, workdir=None):
    """A recipe's flags for a few steps, checked.

    Args:
        name: Module of `tfmp.recipes`.
        given: Further flags, of the user's.
        policy: Name of the dtype policy.
        jit_compile: Whether XLA compiles the step.
        replicas: Number of replicas.
        batch_size: Examples in a step.
        workdir: Folder of the run; None: only to be checked.

    Raises:
        UserError: No such recipe, or a flag that it refuses or that is set here.
    """
    if name not in recipes.names():
        known = ", ".join(recipes.names())
        raise UserError(
            f"Expected a recipe out of {known}, or MODULE:FUNCTION. Received: {name!r}."
        )
    settings = {
        "policy": policy,
        "jit_compile": str(jit_compile).lower(),
        "strategy": "mirrored" if replicas > 1 else "none",
        "batch_size": batch_size,
        # The full learning rate at once: a few steps are to change something.
        "warmup_epochs": 0,
    }
    names = {flag.lstrip("-").partition("=")[0] for flag in given}
    if taken := [x for x in settings if {x, f"no{x}"} & names]:
        raise UserError(f"Expected --recipe_flags without --{taken[0]}, which is set for it.")
    words = [*(f"--{x}={value}" for x, value in settings.items()), *given]
    words += [f"--workdir={workdir}"] if workdir else []
    cli.parse(importlib.import_module(f"tfmp.recipes.{name}").Config, words)
    return words


def function(name, *, policy, replicas=1, batch_size):
    """A user's model under a policy.

    Args:
        name: MODULE:FUNCTION, which returns (compiled Keras model, data); data are a
            `tf.data.Dataset` of batches (x, y) or arrays (x, y).
        policy: Name of the dtype policy.
        replicas: Number of replicas.
        batch_size: Examples taken of arrays.

    Returns:
        (the model, a batch).

    Raises:
        MistakeError: There is no such function, or it returns something else.
    """
    try:
        called = target.function(name)
        inspect.signature(called).bind()
    except UserError as error:
        raise MistakeError(str(error)) from error
    except TypeError as error:
        raise MistakeError(f"{name} is called without arguments: {error}.") from None
    keras.utils.set_random_seed(0)
    strategy = distribution.resolve("mirrored" if replicas > 1 else "none")
    with strategy.scope(), policies.scope(policy):
        returned = called()
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise MistakeError(
            f"Expected {name} to return (compiled Keras model, data). Received: "
            f"{type(returned).__name__}."
        )
    model, data = returned
    if not isinstance(model, keras.Model) or not model.compiled:
        what = "one that is not compiled" if isinstance(model, keras.Model) else type(model)
        raise MistakeError(f"Expected a compiled Keras model of {name}. Received: {what}.")
    return model, _batch(data, name, batch_size)


def _batch(data, name, batch_size):
    batch, received = data, type(data).__name__
    is_dataset = isinstance(data, tf.data.Dataset)
    if is_dataset:
        batch = next(iter(data), None)
        received = "an empty dataset" if batch is None else f"a dataset of {type(batch).__name__}"
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        raise MistakeError(
            f"Expected data of {name}: a tf.data.Dataset of batches (x, y), or arrays (x, y). "
            f"Received: {received}."
        )
    if batch[-1] is None and len(batch) == 3:
        batch = batch[:2]  # no weights
    if not is_dataset:
        # As Keras' `fit` does; tf.data would stack a list's arrays.
        batch = keras.tree.map_structure(np.asarray, keras.tree.lists_to_tuples(batch))
    for shape in [tuple(x.shape) for x in keras.tree.flatten(batch) if x is not None]:
        if not shape or not shape[0]:
            raise MistakeError(
                f"Expected data of {name} with examples along the first axis, such as of "
                f"dataset.batch(32). Received: an array of shape {shape}."
            )
    if not is_dataset:
        batch = keras.tree.map_structure(lambda x: x[:batch_size], batch)
    return batch
