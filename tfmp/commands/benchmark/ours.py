"""The child process that times a recipe: one JSON spec as its argument, one JSON line out."""

import dataclasses
import importlib
import itertools
import json
import math
import sys
import time

import tensorflow as tf

from tfmp import cli, distribution, hardware, loss_scale, provenance, training
from tfmp.commands.benchmark import children, profiling, timing
from tfmp.data import to_device
from tfmp.errors import UserError
from tfmp.training import loop
from tfmp.training.replica import changed_layers

# Share of a GPU's memory that logical devices divide among them; CUDA itself takes some.
SHARED_MEMORY = 0.9


class RecipeWork(timing.Work):
    """A recipe's own training step on its own input.

    Args:
        classifier: Compiled `tfmp.training.Learner`.
        batches: Endless `tf.data.Dataset` of (images, labels), as `Data.train` gives it.
        source: "device": one batch, which stays on the device; "host": `batches`, as `fit` gets
            them.
        function: Function of an iterator that trains one step and returns logs.
    """

    def __init__(self, classifier, batches, source, function):
        self.classifier = classifier
        self.falls = classifier.falls
        self.steps_per_call = classifier.steps_per_execution
        self._function = function
        if source == "device":
            self._iterator = self._repeated = itertools.repeat(next(self._placed(batches)))
        else:
            self._iterator = self._placed(batches)
            # A dataset too, so that the function is not traced and compiled again.
            self._repeated = self._placed(batches.take(1).cache().repeat())

    def _placed(self, batches):
        strategy = self.classifier.distribute_strategy
        with strategy.scope():
            batches = to_device(batches)
        return iter(distribution.placed_ahead(strategy, batches, self.steps_per_call))

    def step(self):
        """Calls the training function that `fit` would call."""
        self._function(self._iterator)

    def count(self):
        """Iterations and skipped steps, from the optimizer's variables."""
        return int(self.classifier.step)

    def weight(self):
        """Squares of the last weight, such as the bias of the logits, summed."""
        return float(tf.reduce_sum(self.classifier.model.trainable_variables[-1].value ** 2))

    def loss(self, steps):
        """The metrics are reset before the last call: the loss is of its steps alone."""
        for _ in range(steps // self.steps_per_call - 1):
            self._function(self._repeated)
        self.classifier.reset_metrics()
        return float(self._function(self._repeated)["loss"])


def measure(spec):
    """Prepares the recipe as its own `run` does, and times its step.

    Args:
        spec: Dict: `recipe`, `flags` (of the recipe), `input`, `loss_scale`, `steps`, `windows`,
            `replicas`, `steps_per_execution`, `profile` (whether one is taken), `spawned_at`
            (`time.monotonic()` before this process was started).

    Returns:
        The dict of `timing.measure`, with what was in force.
    """
    if spec["profile"]:
        profiling.check()
    cards = make_replicas(spec["replicas"])
    recipe = importlib.import_module(f"tfmp.recipes.{spec['recipe']}")
    config = cli.parse(recipe.Config, spec["flags"])
    session, data, classifier, _ = recipe.prepare(config)
    classifier.steps_per_execution = spec["steps_per_execution"]
    if spec["loss_scale"] == "none":
        function = _without_loss_scale(classifier, session, remat=config.remat)
    else:
        function = classifier.make_train_function()
    with loop.naming_errors(config, classifier.model):
        batches = data.train(config.batch_size, seed=config.seed)
        work = RecipeWork(classifier, batches, spec["input"], function)
        prepared = time.monotonic() - spec["spawned_at"]
        measured = timing.measure(work, steps=spec["steps"], windows=spec["windows"])
        arithmetic = _arithmetic(classifier.model, session.tf32)
        measured = in_force(measured, prepared, classifier, session.device, session.jit_compile)
        profile = profiling.profile(work) if spec["profile"] else None
    return measured | {
        "cards": cards,
        "all_reduce_ms": all_reduce_ms(classifier),
        "profile": profile,
        "multiply_adds": classifier.multiply_adds(),
        "example": data.example,
        "tokens": data.tokens,
        "arithmetic": arithmetic,
        "peak_tflops": hardware.peak_tflops(session.device.name, arithmetic),
    }


def make_replicas(count):
    """Lets this process have so many devices; before TensorFlow has started.

    Args:
        count: Number of replicas.

    Returns:
        Number of GPUs, or machines, that they are on: where there is a single one, several
        logical devices share it.

    Raises:
        UserError: There are several GPUs, and fewer than that.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if count <= len(gpus) or count == 1:
        return count
    if len(gpus) > 1:
        raise UserError(f"Expected --replicas up to {len(gpus)}, the GPUs. Received: {count}.")
    (card,) = gpus or tf.config.list_physical_devices("CPU")
    limit = None
    if gpus:
        limit = int(SHARED_MEMORY * hardware.cuda_memory_bytes()[0] / count / 2**20)
    part = tf.config.LogicalDeviceConfiguration(memory_limit=limit)
    tf.config.set_logical_device_configuration(card, [part] * count)
    return 1


def all_reduce_ms(classifier, repeats=50):
    """Milliseconds that adding up float32 gradients over the replicas takes; None for one.

    As one vector, where the step of several GPUs adds up parts of it. On GPUs with XLA within a
    program, as there: with writing the vector, and without the host, which has its part only once
    for all repeats.

    Args:
        classifier: A compiled Keras model.
        repeats: Number of sums, one behind the other.
    """
    strategy = classifier.distribute_strategy
    if strategy.num_replicas_in_sync == 1:
        return None
    size = sum(math.prod(v.shape) for v in classifier.trainable_variables)
    in_xla = distribution.sums_within_xla(strategy)
    calls = 1 if in_xla else repeats

    def within(x):
        # Each from the one before, since XLA leaves out what it finds to be the same.
        def step(index, x):
            return index + 1, distribution.sum_within_xla(x / strategy.num_replicas_in_sync)

        return tf.while_loop(lambda index, _: index < repeats, step, (0, x))[1]

    total = within if in_xla else distribution.replica_sum
    total = tf.function(total, jit_compile=in_xla, autograph=False)
    run = tf.function(lambda x: strategy.run(total, args=(x,)), autograph=False)
    vector = strategy.run(lambda: tf.zeros([size]))

    def seconds():
        begin = time.monotonic()
        for _ in range(calls):
            sums = run(vector)
        for x in strategy.experimental_local_results(sums):
            float(x[0])  # waits
        return time.monotonic() - begin

    seconds()  # compiles
    return 1e3 * seconds() / repeats


def in_force(measured, prepared, model, device, jit_compile):
    """A measurement with what it was made with.

    Args:
        measured: The dict of `timing.measure`.
        prepared: Seconds from the process's start until the first step.
        model: A compiled Keras model.
        device: A `tfmp.hardware.Device`.
        jit_compile: Whether XLA compiled the step.

    Returns:
        A dict that JSON can write.
    """
    return measured | {
        "to_first_step_s": prepared + measured["first_step_s"],
        "skipped_steps": sum(
            int(loss_scale.skipped_steps(x)) for x in loss_scale.optimizers_of(model)
        ),
        "peak_memory_bytes": hardware.peak_memory_bytes(),
        "jit_compile": jit_compile,
        "device": dataclasses.asdict(device),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
    }


def _without_loss_scale(classifier, session, *, remat=False):
    """The bare step, of the same layers: no scale, no look at the gradients, nothing undone."""
    optimizer = loss_scale.inner(classifier.optimizer)
    training.compile_learner(classifier, optimizer, jit_compile=session.jit_compile)

    @tf.function(jit_compile=session.jit_compile, autograph=False)
    def step(data):
        with changed_layers(
            classifier, jit_compile=session.jit_compile, fused=session.fused_layers, remat=remat
        ):
            return classifier.train_step(data)

    return lambda iterator: step(next(iterator))


def _arithmetic(model, tf32):
    return "tf32" if tf32 and model.compute_dtype == "float32" else model.compute_dtype


def main(spec):
    """Prints the measurement, or ends as a recipe's command line would."""
    children.answer(measure, spec)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
