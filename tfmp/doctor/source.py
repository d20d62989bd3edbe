"""What a model's own `train_step` does with its gradients, read from its source."""

import ast
import dataclasses
import inspect
import textwrap

import keras

CLIPS = ("clip", "clip_by_global_norm", "clip_by_norm", "clip_by_value", "clip_by_average_norm")
APPLIES = ("apply", "apply_gradients")
SCALES = ("scale_loss", "get_scaled_loss", "stateless_scale_loss")
# Names by which somebody unscales gradients by hand.
UNSCALES = ("dynamic_scale", "get_unscaled_gradients", "loss_scale", "unscale")


@dataclasses.dataclass(frozen=True)
class Step:
    """A `train_step` of a user's.

    Attributes:
        where: Name of its class and method.
        applies: Whether it gives gradients to an optimizer.
        unscaled: Optimizers, as the source names them, that it never scales a loss by.
        clips_scaled: The function by which it clips gradients that are still scaled, or None.
    """

    where: str
    applies: bool
    unscaled: tuple[str, ...]
    clips_scaled: str | None


def step(model: keras.Model) -> Step | None:
    """Reads a model's `train_step`; None: it is Keras' own, or its source isn't there."""
    owner = next(cls for cls in type(model).__mro__ if "train_step" in vars(cls))
    if owner.__module__.startswith("keras.") or "train_step" in vars(model):
        return None
    trees = _methods(type(model))
    if "train_step" not in trees or _calls_keras_step(trees["train_step"]):
        return None
    # What train_step calls is read, too, as far as it is a method.
    reached = _reached(trees, "train_step")
    names = {name for tree in reached.values() for name in _names(tree)}
    clips = None
    if names & set(SCALES) and not names & set(UNSCALES):
        clips = next(filter(None, map(_clipped, reached.values())), None)
    return Step(
        where=f"{owner.__name__}.train_step",
        applies=bool(_callers(reached, APPLIES)),
        unscaled=_unscaled(reached),
        clips_scaled=clips,
    )


def _methods(cls) -> dict[str, ast.AST]:
    """The source of each method of a user's classes, by name; a subclass's wins."""
    found: dict[str, ast.AST] = {}
    for owner in cls.__mro__:
        if owner.__module__.startswith(("keras.", "tensorflow.", "tfmp.")) or owner is object:
            continue
        for name, member in vars(owner).items():
            function = inspect.unwrap(getattr(member, "python_function", member))
            if name in found or not inspect.isfunction(function):
                continue
            try:
                found[name] = ast.parse(textwrap.dedent(inspect.getsource(function)))
            except (OSError, TypeError, SyntaxError):
                continue
    return found


def _reached(trees, first) -> dict[str, ast.AST]:
    reached: dict[str, ast.AST] = {}
    left = [first]
    while left:
        name = left.pop()
        if name in trees and name not in reached:
            reached[name] = trees[name]
            left += _names(trees[name])
    return reached


def _names(tree) -> list[str]:
    """Every attribute and name in a tree."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.append(node.attr)
        elif isinstance(node, ast.Name):
            found.append(node.id)
    return found


def _calls_keras_step(tree) -> bool:
    """Whether it leaves the work to `super().train_step`."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "train_step"
        for node in ast.walk(tree)
    )


def _callers(trees, methods) -> set[str]:
    """What the source calls one of the methods of, as it is written."""
    return {
        ast.unparse(node.func.value)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
    }


def _unscaled(trees) -> tuple[str, ...]:
    applying, scaling = _callers(trees, APPLIES), _callers(trees, SCALES)
    if scaling - applying:
        return ()  # by another name, which may stand for any of them
    return tuple(sorted(applying - scaling))


def clips_in_apply(optimizer) -> str | None:
    """The function by which a user's optimizer clips gradients before it hands them on."""
    for name in ("apply", "apply_gradients"):
        tree = _methods(type(optimizer)).get(name)
        if tree is not None:
            definition = next(x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef))
            arguments = [x.arg for x in definition.args.args[1:2]]
            found = _clipped(tree, arguments)
            if found:
                return found
    return None


def _clipped(tree, arguments=()) -> str | None:
    """The function that clips what came from a tape's `gradient`, unless it was divided before.

    Args:
        tree: Source of a function.
        arguments: Names of its arguments that are gradients; those called so are, anyhow.
    """
    named = {x.arg for x in ast.walk(tree) if isinstance(x, ast.arg) and "grad" in x.arg}
    gradients: set[str] = {*arguments, *named}
    unscaled: set[str] = set()

    def mentions(node, names):
        return any(isinstance(x, ast.Name) and x.id in names for x in ast.walk(node))

    for node in _statements(tree):
        for call in ast.walk(node):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if name in CLIPS and _takes(node, call, gradients - unscaled):
                return name
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value:
            targets = {
                x.id
                for target in getattr(node, "targets", [getattr(node, "target", None)])
                for x in ast.walk(target)
                if isinstance(x, ast.Name)
            }
            fresh = any(
                isinstance(x, ast.Call) and getattr(x.func, "attr", "") in ("gradient", "gradients")
                for x in ast.walk(node.value)
            )
            if fresh or mentions(node.value, gradients):
                gradients |= targets
                divided = any(
                    isinstance(x, ast.BinOp) and isinstance(x.op, ast.Div)
                    for x in ast.walk(node.value)
                )
                unscaled |= targets if divided or mentions(node.value, unscaled) else set()
    return None


def _takes(node, call, names) -> bool:
    """Whether a call is given one of the names, or an element of it in a comprehension."""
    inside = {x.id for arg in call.args for x in ast.walk(arg) if isinstance(x, ast.Name)}
    if any(
        isinstance(x, ast.Call) and getattr(x.func, "attr", "") in ("gradient", "gradients")
        for arg in call.args
        for x in ast.walk(arg)
    ):
        return True
    for loop in ast.walk(node):
        if isinstance(loop, ast.comprehension | ast.For):
            source = {x.id for x in ast.walk(loop.iter) if isinstance(x, ast.Name)}
            if source & names:
                names = names | {x.id for x in ast.walk(loop.target) if isinstance(x, ast.Name)}
    return bool(inside & names)


def _statements(tree):
    """Simple statements in the order of the text."""
    simple = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)
    found = [node for node in ast.walk(tree) if isinstance(node, simple)]
    return sorted(found, key=lambda node: node.lineno)
