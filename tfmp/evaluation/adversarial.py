"""How many predictions survive attacks, and whether the attacks themselves can be trusted.

Gradients are taken in float32, such that they can't vanish where the model is sure, and plainly
under the model's own policy: half precision rounds small ones to 0, so that an attack finds no way
and the model looks robust when it isn't.

References:
    Athalye et al. 2018, "Obfuscated gradients give a false sense of security", section 3.1, and
    Carlini et al. 2019, "On evaluating adversarial robustness", section 4 (the checks).
"""

import dataclasses
import time

import numpy as np
import tensorflow as tf

from tfmp.errors import OutOfMemoryError, UserError
from tfmp.evaluation import attacks
from tfmp.evaluation.predictions import PROGRESS_SECONDS, traced
from tfmp.metrics import paired


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """How to attack.

    Attributes:
        epsilons: Radii in 1/255 of the range of a pixel, ascending, by norm ("linf", "l2").
        steps: Of PGD.
        restarts: Of PGD, each from another random place; noise is drawn as often.
        batch_size: Images attacked at once.
        seed: Decides the random places and noise, together with the batch size.
    """

    epsilons: dict
    steps: int = 20
    restarts: int = 1
    batch_size: int = 256
    seed: int = 0


def drawn(examples, count, seed):
    """Which examples `sample` takes: [examples] bool; arguments as there."""
    chosen = np.zeros(examples, bool)
    chosen[np.random.default_rng(seed).permutation(examples)[:count]] = True
    return chosen


def sample(dataset, examples, count, seed):
    """Some images of a data set, drawn at random and kept in its order.

    Args:
        dataset: A finite `tf.data.Dataset`, as `tfmp.evaluation.predict` takes it.
        examples: Number of examples that it has.
        count: How many to draw; all where there are no more.
        seed: Decides which.

    Returns:
        Images [count, height, width, channels] uint8 and labels [count] int64.
    """
    chosen = drawn(examples, count, seed)
    images, labels, seen = [], [], 0
    for batch, batch_labels, weights in dataset.as_numpy_iterator():
        real = np.flatnonzero(weights > 0)
        kept = real[chosen[seen : seen + len(real)]]
        seen += len(real)
        images.append(batch[kept])
        labels.append(batch_labels[kept].astype(np.int64))
    return np.concatenate(images), np.concatenate(labels)


def attack(compiled, gradients, images, labels, settings, *, jit_compile):
    """Attacks a model in each norm, at each epsilon, by gradients of each precision.

    Args:
        compiled: What `forward` made of the model under attack.
        gradients: Built models by policy, of the same weights; the attacks climb by theirs.
        images: [examples, height, width, channels] of 0-255.
        labels: [examples] int64.
        settings: A `AttackSettings`.
        jit_compile: Whether XLA compiles the attack, by policy.

    Returns:
        A dict: `examples`, `accuracy` of the images as they are, `gradients`: policy -> how many
        images' gradients are `zero` or `non_finite`; norm -> method ("noise", "fgsm POLICY",
        "pgd POLICY", "worst") -> epsilon -> accuracy; `differences`, where the accuracy under PGD
        depends on the gradients' precision by more than chance; `checks` with `holds`.

    Raises:
        OutOfMemoryError: The device's memory does not hold a batch.
        UserError: There are no images.
    """
    if not len(images):
        raise UserError("Expected images to attack. Received: none.")
    given = _Given(compiled, images.astype(np.float32), labels, settings)
    clean = given.right(lambda batch, *_: batch)
    found: dict = {"examples": len(labels), "accuracy": float(clean.mean()), "gradients": {}}
    right: dict = {}
    ascents = {
        policy: attacks.ascent(model, plain=policy != "float32")
        for policy, model in gradients.items()
    }
    for policy, ascent in ascents.items():
        found["gradients"][policy] = _quality(given, ascent, jit_compile[policy])
    for norm, epsilons in settings.epsilons.items():
        steppers = {
            policy: attacks.stepper(ascent, norm, jit_compile=jit_compile[policy])
            for policy, ascent in ascents.items()
        }
        right[norm] = {e: _at(given, steppers, norm, e) for e in epsilons}
        found[norm] = _by_method(right[norm])
    found["differences"] = _differences(right, list(gradients))
    return found | {"checks": _checks(right, clean)}


class _Given:
    """The images, and which of them stay right under a change."""

    def __init__(self, compiled, images, labels, settings):
        self.compiled, self.images, self.labels = compiled, images, labels
        self.settings = settings

    def batches(self):
        """(start, images, labels) in batches of one size; the last is filled up by its first."""
        size = self.settings.batch_size
        for start in range(0, len(self.labels), size):
            index = np.arange(start, start + size)
            index[index >= len(self.labels)] = start
            yield start, tf.constant(self.images[index]), tf.constant(self.labels[index])

    def right(self, change, draws=1):
        """[examples] bool: right under every draw of `change(images, labels, seed)`."""
        right, shown = np.ones(len(self.labels), bool), time.perf_counter()
        try:
            for start, images, labels in self.batches():
                for draw in range(draws):
                    place = 2 * (start * draws + draw)
                    seed = tf.constant([self.settings.seed % 2**63, place], tf.int64)
                    logits = self.compiled(change(images, labels, seed)).numpy()
                    fine = np.isfinite(logits).all(1) & (logits.argmax(1) == labels.numpy())
                    right[start : start + len(fine)] &= fine[: len(right) - start]
                if time.perf_counter() - shown > PROGRESS_SECONDS:
                    shown = time.perf_counter()
                    done = min(start + len(fine), len(right))
                    print(f"    {done:,} of {len(right):,}", flush=True)
        except tf.errors.ResourceExhaustedError as error:
            raise OutOfMemoryError(
                f"Out of memory while attacking {self.settings.batch_size} images at once. Lower "
                "--batch_size."
            ) from error
        return right


def _quality(given, ascent, jit_compile):
    """How many images, as they are, have gradients that lead nowhere."""
    compiled = traced(ascent, jit_compile=jit_compile)
    zero = non_finite = 0
    for start, images, labels in given.batches():
        gradient = compiled(images, labels).numpy()[: len(given.labels) - start]
        finite = np.isfinite(gradient).all((1, 2, 3))
        non_finite += int((~finite).sum())
        zero += int((gradient == 0).all((1, 2, 3)).sum())
    return {"zero": zero, "non_finite": non_finite}


def _at(given, steppers, norm, epsilon):
    """[examples] bool by method, of one radius."""
    settings, radius = given.settings, tf.constant(epsilon, tf.float32)
    print(f"  {norm} {_name(epsilon)}/255 ...", flush=True)

    def noise(images, labels, seed):
        return attacks.noise(images, radius, norm, seed)

    right = {"noise": given.right(noise, settings.restarts)}
    for policy, uphill in steppers.items():

        def fgsm(images, labels, seed, uphill=uphill):
            return attacks.fgsm(uphill, images, labels, radius)

        def pgd(images, labels, seed, uphill=uphill):
            more = {"norm": norm, "steps": settings.steps, "seed": seed}
            return attacks.pgd(uphill, images, labels, radius, **more)

        right[f"fgsm {policy}"] = given.right(fgsm)
        right[f"pgd {policy}"] = given.right(pgd, settings.restarts)
    return right | {"worst": np.all(list(right.values()), 0)}


def _by_method(right):
    """Accuracies by method and epsilon, of epsilon -> method -> which are right."""
    methods = next(iter(right.values()))
    return {
        method: {_name(e): float(values[method].mean()) for e, values in right.items()}
        for method in methods
    }


def _name(epsilon):
    """All its digits, and none behind a whole number."""
    return np.format_float_positional(epsilon, trim="-")


def _differences(right, policies):
    """Where PGD by float32 gradients and by others differ: never if there is one precision."""
    found = []
    for norm, by_epsilon in right.items():
        for epsilon, values in by_epsilon.items():
            for policy in policies:
                ours, exact = values[f"pgd {policy}"], values["pgd float32"]
                p = paired.differ(ours, exact)
                if p < paired.ALPHA:
                    accuracies = {policy: float(ours.mean()), "float32": float(exact.mean())}
                    where = {"norm": norm, "epsilon": epsilon, "gradients": policy}
                    found.append(where | {"accuracy": accuracies, "p": p})
    return found


def _checks(right, clean):
    """What must hold of any attack that works; it fails only by more than chance."""
    found = []
    for norm, by_epsilon in right.items():
        smaller, before = 0.0, clean
        for epsilon, values in by_epsilon.items():
            pgd = np.all([x for name, x in values.items() if name.startswith("pgd")], 0)
            fgsm = np.all([x for name, x in values.items() if name.startswith("fgsm")], 0)
            claims = {
                f"epsilon {_name(epsilon)} is no easier than {_name(smaller)}": (before, pgd),
                f"noise of {_name(epsilon)} is weaker than PGD": (values["noise"], pgd),
                f"one step of {_name(epsilon)} is weaker than PGD": (fgsm, pgd),
            }
            for claim, (weaker, stronger) in claims.items():
                p = paired.fewer_right(weaker, stronger)
                found.append({"norm": norm, "check": claim, "holds": p >= paired.ALPHA, "p": p})
            smaller, before = epsilon, pgd
    return found
