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
        applies: Optimizers, as the source names them, that it gives gradients to.
        unscaled: Optimizers, as the source names them, that it never scales a loss by.
        clips_scaled: The function by which it clips gradients that are still scaled, or None.
    """

    where: str
    applies: tuple[str, ...]
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
        applies=tuple(sorted(_callers(reached, APPLIES) - {"super()"})),
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
    for node in _statements(tree):
        if isinstance(node, ast.For):
            gradients |= _given(node, gradients)
            continue
        within = gradients - unscaled
        for loop in ast.walk(node):
            within |= _given(loop, within) if isinstance(loop, ast.comprehension) else set()
        for call in (x for x in ast.walk(node) if isinstance(x, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if name in CLIPS and any(_is_gradient(x, within) for x in call.args):
                return name
        value = getattr(node, "value", None)
        if not isinstance(node, ast.Expr | ast.Return) and value and _is_gradient(value, gradients):
            made = _assigned(node)
            gradients |= made
            by_hand = any(isinstance(x, ast.Div) for x in ast.walk(value))
            unscaled |= made if by_hand or _names_in(value) & unscaled else set()
    return None


def _names_in(node) -> set[str]:
    return {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}


def _is_gradient(node, names) -> bool:
    """Whether an expression has one of the names in it, or calls a tape's `gradient`."""
    called = {getattr(x.func, "attr", "") for x in ast.walk(node) if isinstance(x, ast.Call)}
    return bool(_names_in(node) & names or called & {"gradient", "gradients"})


def _given(loop, names) -> set[str]:
    """What a loop calls the elements of something that has one of the names in it."""
    return _names_in(loop.target) if _is_gradient(loop.iter, names) else set()


def _assigned(node) -> set[str]:
    targets = getattr(node, "targets", None) or [node.target]
    return {name for target in targets for name in _names_in(target)}


def _statements(tree):
    """Simple statements, and heads of loops, in the order of the text."""
    kinds = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return, ast.For)
    found = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return sorted(found, key=lambda node: node.lineno)
