"""Programs of which each runs in a process of its own: `programs.py NAME ARGUMENT ...`."""

import contextlib
import functools
import gc
import json
import os
import signal
import sys
import warnings

gc.disable()  # as in tests/conftest.py

import keras
import numpy as np
import tensorflow as tf

import tfmp
from tfmp import cli, distribution, errors, models, provenance, workers
from tfmp.models import resnet as resnets
from tfmp.training import loop, session


def tiny(*, classes, input_shape, stem, name):
    """A model with BatchNorm and dropout, in a recipe's choices by the name of tiny."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Rescaling(1 / 128, dtype="float32"),
            layers.Conv2D(8, 3, strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(classes, dtype="float32"),
        ],
        name=name,
    )


class SignalAt(keras.callbacks.Callback):
    """Sends this process a signal before a step."""

    def __init__(self, name, step):
        super().__init__()
        self.number, self.step = signal.Signals[name], step

    def on_train_batch_begin(self, batch, logs=None):
        """Looks at the step."""
        if int(self.model.step.numpy()) == self.step:
            os.kill(os.getpid(), self.number)


def with_signals(fit, signals, *args, extra_callbacks=(), **kwargs):
    """`loop.fit` with more callbacks."""
    return fit(*args, extra_callbacks=[*extra_callbacks, *signals], **kwargs)


def recipes(runs):
    """Runs the recipe several times, and prints each exit status as JSON in the last line.

    Args:
        runs: JSON list of runs: {"flags": [...]}, and with "signal" and "step" a signal that the
            process sends itself; with "worker" only that one of several.
    """
    models.MODELS["tiny"] = resnets.MODELS["tiny"] = tiny
    from tfmp.recipes import resnet  # takes its choices from what is there now

    worker = workers.in_environment() or workers.ALONE
    if worker.count == 1:  # two MirroredStrategies in one process can collide
        distribution.resolve = functools.cache(distribution.resolve)
    fit, statuses = loop.fit, []
    for run in json.loads(runs):
        mine = "signal" in run and run.get("worker", worker.index) == worker.index
        signals = [SignalAt(run["signal"], run["step"])] if mine else []
        loop.fit = functools.partial(with_signals, fit, signals)
        try:
            cli.run(resnet.Config, resnet.run, run["flags"])
            statuses.append(0)
        except SystemExit as ended:
            statuses.append(ended.code)
    print(json.dumps(statuses))


def engine(folder):
    """Trains small models on some replicas: of one process, or each of a process of its own.

    Writes what each ends with to `FOLDER/NAME-WORKER.npz`, of one process `NAME-alone.npz`.
    Prints, as JSON in the last line, what workers that differ are told.

    Args:
        folder: Where to write.
    """
    from helpers import images, make, snapshot, variables

    worker = workers.in_environment() or workers.ALONE
    strategy = distribution.resolve("multi_worker" if worker.count > 1 else "mirrored", 60)
    replicas = strategy.num_replicas_in_sync

    def low():
        """Scales the loss by as much as never overflows by itself."""
        inner = keras.optimizers.SGD(0.1, momentum=0.9)
        return tfmp.LossScaleOptimizer(inner, initial_scale=2.0**8)

    cases: dict[str, dict] = {
        "float32": {"validate": True},
        "overflows": {"policy": "mixed_float16", "optimizer": low, "poison": True},
    }
    if replicas == 2:
        cases["xla"] = {"policy": "mixed_float16", "jit_compile": True}
        cases["steps"] = {"steps_per_execution": 2}
    for name, case in cases.items():
        x, y = images(4 * 12 + 5)
        if case.pop("poison", False):
            for index in range(replicas):  # in a step of its own for each
                x[12 * index + 12 // replicas * index + 1, 3, 3] = 1e6  # infinite in float16
        jit_compile = case.pop("jit_compile", False)
        validation = (x, y) if case.pop("validate", False) else None
        model = tfmp.accelerate(make(strategy, **case), jit_compile=jit_compile)
        logs = model.fit(
            x, y, batch_size=12, epochs=2, shuffle=False, verbose=0, validation_data=validation
        ).history
        metrics = {id(v) for metric in model.metrics for v in metric.variables}
        found = variables(model)
        state = {n: c[0] for n, c in snapshot(model).items() if id(found[n]) not in metrics}
        who = worker.index if worker.count > 1 else "alone"
        np.savez(f"{folder}/{name}-{who}.npz", **{f"log {k}": v for k, v in logs.items()}, **state)
    if worker.count > 1:
        print(json.dumps(list(refused(worker))))
    workers.finish(worker)


def refused(worker):
    """What `start` says where worker 1 differs from the others, and where a batch can't be shared.

    Args:
        worker: This process.
    """
    from tfmp.recipes import resnet

    versions = provenance.versions()
    for name, value in (("seed", 8), ("batch_size", 24), ("tfmp", "0.0.1"), (None, 47)):
        settings: dict = {"batch_size": 48} if name else {"batch_size": value}
        if worker.index == 1 and name == "tfmp":
            provenance.versions = lambda: versions | {"tfmp": "0.0.1"}
        elif worker.index == 1 and name:
            settings[name] = value
        try:
            session.start("refused", resnet.Config(**settings))
        except errors.UserError as error:
            yield f"{error.exit_status}: {error}"
        provenance.versions = lambda: versions


def go_on(file, weights):
    """Loads a model on all replicas, trains one more epoch, and writes its weights.

    Args:
        file: A `.keras` file.
        weights: The `.npz` file to write.
    """
    strategy = distribution.resolve("mirrored")
    with strategy.scope():
        model = tfmp.load(file)
    train(tfmp.accelerate(model, jit_compile=False), weights)


def train(model, weights):
    """One epoch of five steps; writes all variables as replica 0 has them."""
    from helpers import images, snapshot

    x, y = images(40)
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    np.savez(weights, *[copies[0] for copies in snapshot(model).values()])


if __name__ == "__main__":
    if replicas := int(os.environ.get("TFMP_TEST_REPLICAS", 0)):
        from helpers import start

        start(replicas)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    warnings.simplefilter("error")
    # As in pyproject.toml.
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
    with contextlib.suppress(KeyboardInterrupt):
        {"recipes": recipes, "go_on": go_on, "engine": engine}[sys.argv[1]](*sys.argv[2:])
