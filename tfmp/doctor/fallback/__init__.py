"""Which layers must stay float32 for a model to train in half precision, by trying."""

import dataclasses
import re
from collections.abc import Callable

import keras
from keras.dtype_policies import DTypePolicyMap

from tfmp import policies
from tfmp.doctor.calling import is_graph
from tfmp.doctor.fallback import judge
from tfmp.doctor.fallback.minimal import minimal_set
from tfmp.doctor.fallback.trial import Run, Steps, loss_of
from tfmp.doctor.finding import Finding
from tfmp.doctor.mend import pattern
from tfmp.errors import DifferentError, NonFiniteError, UserError
from tfmp.layer_paths import parts
from tfmp.policies.temporary import under

__all__ = ["Fallback", "Run", "Trial", "loss_of", "search"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One try.

    Attributes:
        float32: Paths of the layers that were kept in float32.
        problem: Why it was not good; None: it was.
        losses: Loss of each step.
        seconds: Time that it took.
    """

    float32: tuple[str, ...]
    problem: str | None
    losses: tuple[float, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Fallback:
    """What must stay float32.

    Attributes:
        float32: Paths of the layers, in the order of the model.
        policy_map: The policy with these layers in float32, an entry for each in their order, for
            `policies.set_policy` and `policies.save`.
        candidates: Paths of all layers that were considered, in the order of suspicion.
        suspected: How many of them, the first ones, a finding of the doctor names.
        reference: The `Run` in float32.
        trials: All tries in half precision, in their order.
    """

    float32: tuple[str, ...]
    policy_map: DTypePolicyMap
    candidates: tuple[str, ...]
    suspected: int
    reference: Run
    trials: tuple[Trial, ...]


def search(
    model: keras.Model,
    data,
    *,
    part: keras.Model | None = None,
    policy: str = "mixed_float16",
    findings: list[Finding] | None = None,
    steps: int = 3,
    tolerance: float = 0.1,
    seed: int = 0,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Fallback:
    """Finds a smallest set of layers that must stay float32 for training to be as in float32.

    Each try trains a few eager steps on one batch from the model's present weights. It is good if
    loss, unscaled gradients, weights and outputs are finite, each step's loss is within a tolerance
    of float32's, and each first gradient within 0.5 of its norm; or, in a model that
    amplifies rounding, within four times what rounding the weights alone does in float32. None of
    the layers found can be left out; where several layers mend the same, another set may be smaller
    yet. With k layers of n found it takes about k log2(n) tries. The same seed gives the same ones.

    A few steps say nothing about what overflows after many: go on from trained weights for that.

    Args:
        model: A compiled Keras model of any kind. Its variables and policy are afterwards as
            before; what its optimizer lacked is built. Python's, NumPy's and Keras' seeds are set.
        data: A batch as its `train_step` takes it, such as (inputs, labels).
        part: The model whose layers are searched where that is another one, inside of `model`.
        policy: The half policy, "mixed_float16" or "mixed_bfloat16".
        findings: What the doctor says about it; None: `tfmp.doctor.diagnose` is asked, with the
            batch.
        steps: Training steps of a try.
        tolerance: Share by which the loss of a step may differ from float32's.
        seed: Seed of all that is random.
        on_trial: Called with each `Trial`.

    Raises:
        UserError: The model is not compiled or not built by its call, or has nothing in half.
        NonFiniteError: Training is not finite in float32 either.
        DifferentError: With all layers in float32 training is not as in float32: what the model
            computes outside of its layers is half.
    """
    part = model if part is None else part
    if not getattr(model, "compiled", False):
        raise UserError(f"Expected a compiled model. Received: {model.name!r}, which is not.")
    if not part.built and part is model:
        part(data[0] if isinstance(data, tuple) else data)
    with under(part, policy):
        if findings is None:
            findings = _diagnosed(part, data if part is model else ())
        patterns, suspected = _candidates(part, findings)
    if not patterns:
        raise UserError(f"Expected layers that compute in half. Received none in {part.name!r}.")
    names = {found: path for path, found in patterns.items()}
    trials: list[Trial] = []
    with Steps(model, data, part, steps, seed) as training:
        reference = training.run("float32")
        if reference.problem:
            raise NonFiniteError(f"In float32, too, {reference.problem}: mend that first.")
        rounded = training.run("float32", rounded=policy.removeprefix("mixed_"))

        def verdict(run):
            return judge.problem(run, reference, rounded, tolerance)

        def is_good(chosen):
            run = _run(training, policies.with_float32(chosen, policy), verdict)
            paths = tuple(names[x] for x in chosen)
            trial = Trial(paths, run.problem, run.losses, run.seconds)
            trials.append(trial)
            on_trial(trial)
            return trial.problem is None

        found = minimal_set(list(patterns.values()), is_good, suspected)
    if found is None:
        raise DifferentError(
            f"With all {len(patterns)} layers in float32, {trials[-1].problem}: what "
            f"{part.name!r} computes outside of its layers, or random numbers that are not Keras', "
            "make the difference."
        )
    order = [x.path for x in parts(part)]
    found.sort(key=lambda x: order.index(names[x]))
    return Fallback(
        tuple(names[x] for x in found),
        policies.with_float32(found, policy),
        tuple(patterns),
        suspected,
        reference,
        tuple(trials),
    )


def _diagnosed(model, data):
    from tfmp.doctor import diagnose  # which is made of its parts, this one too

    inputs, labels = data[:2] if isinstance(data, tuple) and len(data) > 1 else (None, None)
    return diagnose(model, inputs, labels)


def _run(training, policy_map, verdict) -> Run:
    try:
        return training.run(policy_map, judge=verdict)
    except Exception as error:  # whatever a layer raises at a dtype that it can't do
        said = str(error).strip().partition("\n")[0]
        return Run((), (), (), f"{type(error).__name__}: {said}", 0.0)


def _candidates(model, findings):
    """(pattern of each layer by its path, in the order of suspicion; how many are suspected)."""
    held = list(parts(model))
    half = [x for x in held if x.half and not x.hidden and not is_graph(x.layer)]
    suspects: list[str | None] = []
    for finding in findings:
        named = (finding.layer,) if finding.severity != "info" else ()
        suspects += [*finding.float32, *named]
    rank = {path: index for index, path in reversed(list(enumerate(suspects)))}
    # What holds other layers comes after these: it would take them all with it.
    words = [x.path.split("/") for x in half]
    holders = {"/".join(w[:depth]) for w in words for depth in range(1, len(w))}

    def place(index):
        path = half[index].path
        return rank.get(path, len(rank)), path in holders, index

    found: dict[str, str] = {}
    for index in sorted(range(len(half)), key=place):
        x = half[index]
        # Layers that share a name, and have no path, go together.
        one = pattern(x.layer, held) or re.escape(x.layer.name)
        if one not in found.values():
            found[x.path] = one
    return found, sum(path in rank for path in found)
