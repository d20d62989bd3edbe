"""What training on a TPU does otherwise. No TPU has run it: tests have a stand-in of two CPUs.

- Policy: `mixed_bfloat16` in the place of `mixed_float16`, since TPUs multiply in bfloat16, whose
  range is that of float32. So there is no loss scale, and no step is skipped.
- Shapes: training drops the remainder, and evaluation pads it, as all of `tfmp.data` does: each is
  known to the compiler.
- A call from the host runs many steps, since the host's part of a step would keep the TPU waiting.
- A step is Keras' own. A TPU runs one program on all replicas, where `tfmp.accelerate` builds one
  for each. So dropout masks are the same on every replica, and the moving statistics of each
  replica's BatchNormalization are its own, unless it is synchronized.
"""

from tfmp import policies
from tfmp.errors import UserError
from tfmp.training import logs
from tfmp.training.accelerate import Engine

STEPS_PER_EXECUTION = 100


def policy(resolved):
    """The policy for a TPU.

    Args:
        resolved: What `tfmp.policies.resolve` gave.
    """
    if resolved.name != "mixed_float16":
        return resolved
    return policies.Resolved("mixed_bfloat16", "a TPU multiplies in bfloat16, not in float16")


def steps_per_execution(config, epoch_steps):
    """Training steps of a call: as asked for, or where nothing is, many.

    Args:
        config: A `tfmp.training.TrainingConfig`.
        epoch_steps: Training steps of an epoch.

    Returns:
        The largest divisor of `epoch_steps` and `save_every_steps` up to STEPS_PER_EXECUTION.
    """
    return config.steps_per_execution or next(
        n
        for n in range(STEPS_PER_EXECUTION, 0, -1)
        if epoch_steps % n == 0 and config.save_every_steps % n == 0
    )


def check(config):
    """Refuses settings that only `tfmp.accelerate` can meet.

    Args:
        config: A `tfmp.training.TrainingConfig`.

    Raises:
        UserError: There is one.
    """
    for name, none in (("gradient_accumulation_steps", 1), ("remat", False), ("trace_every", 0)):
        if getattr(config, name) != none:
            raise UserError(f"--{name} is not for --strategy=tpu. Leave it out.")


def accelerate(model):
    """Makes `model.fit` and `evaluate` run Keras' own steps on a TPU, many in a call.

    (Keras 3.15's own `fit` fails for several steps a call under any strategy of several replicas.)

    Args:
        model: Keras model, made and compiled in the scope of its strategy. Changed in place.
    """
    made = TpuEngine(model, jit_compile=False, fused_layers=False, microbatches=1, remat=False)
    model._maybe_symbolic_build = made.build
    model.make_train_function = made.make_train_function
    model.make_test_function = made.make_test_function
    model.train_function = model.test_function = None


class TpuEngine(Engine):
    """Builds the functions that Keras' `fit` and `evaluate` call, for a TPU."""

    def make_train_function(self, force=False):
        """Keras' hook: sets and returns the model's `train_function`."""
        if self.model.train_function is None or force:
            self.model.train_function = self._of_iterator(self._on_all(self.model.train_step))
        return self.model.train_function

    def make_test_function(self, force=False):
        """Keras' hook: sets and returns the model's `test_function`."""
        if self.model.test_function is None or force:
            self.model.test_function = self._of_iterator(self._on_all(self.model.test_step))
        return self.model.test_function

    def _on_all(self, step):
        """A function of a global batch whose logs are those of the metrics of all replicas."""

        def on_all(data):
            self.model.distribute_strategy.run(step, args=(data,))
            return logs.flatten(self.model.get_metrics_result())

        return on_all
