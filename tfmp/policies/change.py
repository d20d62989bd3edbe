"""The precision of a built model: what it is, and how to change it and keep the weights."""

import difflib
import re

import keras
from keras.dtype_policies import DTypePolicy, DTypePolicyMap
from keras.src.models.functional import Functional  # it has no public name

from tfmp.errors import UserError
from tfmp.policies.choice import HALF, POLICIES, as_policy, scope

# Marks a layer that its author pinned to float32, so that the pin outlives a float32 model.
_PIN = "_tfmp_float32"


def uses_float16(model: keras.Model) -> bool:
    """Whether any layer computes in float16, whatever the model's own policy says.

    If so, training wants a loss scale; Keras adds one only where the model's own policy is
    mixed_float16.
    """
    return "float16" in _compute_dtypes(model)


def policy_of(model: keras.Model) -> str:
    """The entry of `POLICIES` by which a model's layers compute: the half one if any of them does.

    A model's own `dtype_policy` says nothing: Keras' files don't keep it.
    """
    dtypes = _compute_dtypes(model)
    halves = [dtype for dtype in ("float16", "bfloat16") if dtype in dtypes]
    return f"mixed_{halves[0]}" if halves else "float32"


def _compute_dtypes(model):
    # A functional model computes nothing itself; a subclassed one may.
    return {x.compute_dtype for x in [model, *sublayers(model)] if not _is_graph(x)}


def set_policy(model: keras.Model, policy: str | DTypePolicy) -> keras.Model:
    """A built model under another policy, with the same weights. Use the model it returns.

    A functional or Sequential model is copied, with its weights, seed states and trainable
    flags; the given model stays as it was. Any other model (a subclass with a `call` or a
    constructor of its own) is changed in place and returned. The result isn't compiled.

    Layers that the author pinned to float32 stay float32, also through float32 and back. In a
    model that is float32 altogether pins can't be seen: there, going to a mixed policy leaves in
    float32 the layers that give a functional model's outputs, and `Rescaling` and
    `Normalization`, which take raw values. Name other layers with `with_float32`.

    Inputs that were declared half become float32. Layers of integers or strings stay. Functional
    models that a subclassed one holds compute under the new policy, but `outputs` of theirs keep
    the old dtype's label.

    Args:
        model: A built model, compiled or not.
        policy: One of `POLICIES`, a `DTypePolicy`, or a `DTypePolicyMap` such as `with_float32`
            makes; its keys match as described there.

    Returns:
        The model to go on with. Compile it before training.

    Raises:
        ValueError: The model isn't built, holds half or quantized variables, or has a layer that
            can't be made from its own config or that several composite layers share; or one of
            the map's patterns matches no layer.
    """
    policy = as_policy(policy)
    if not model.built:
        raise UserError(
            f"set_policy: expected a built model. Received {model.name!r} before its weights "
            "exist: call it on a batch, or build(input_shape), first."
        )
    targets, pins = _plan(model, policy)
    default = policy.default_policy if isinstance(policy, DTypePolicyMap) else policy
    pairs: list[tuple[keras.Layer, keras.Layer]] = []
    result = model
    if _is_graph(model):
        with scope(default):
            result = _copy_graph(model, targets, pairs, {})
        pairs = [pair for old, new in pairs for pair in _aligned(old, new)]
        _check_unshared(pairs)
        # Parents come after their children, and setting a parent sets its children too.
        for old, new in reversed(pairs):
            if new.trainable != old.trainable:
                new.trainable = old.trainable
    else:
        pairs = [(layer, layer) for layer in sublayers(model)]
    for old, new in pairs:
        reverse_dtype = getattr(old, "reverse_dtype", None)  # of ReversibleEmbedding's product
        follows = reverse_dtype is not None and reverse_dtype == old.compute_dtype
        if new is not result:
            # Not by the public setter: it writes into a DTypePolicyMap that others may share.
            new._dtype_policy = targets.get(id(old), new._dtype_policy)
            setattr(new, _PIN, id(old) in pins)
        if follows:
            new.reverse_dtype = new.compute_dtype
    result._dtype_policy = default
    for layer in [result, *sublayers(result)]:
        _forget(layer)
    return result


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """All layers under a layer, parents first, without inputs."""
    layers = layer._flatten_layers(include_self=False)
    return [x for x in layers if not isinstance(x, keras.layers.InputLayer)]


def _is_graph(layer: keras.Layer) -> bool:
    """Whether a model is no more than layers and their connections, which can be copied."""
    cls = type(layer)
    if issubclass(cls, keras.Sequential):
        return cls is keras.Sequential and layer._functional is not None
    plain = cls.__init__ is Functional.__init__ and cls.call is Functional.call
    return issubclass(cls, Functional) and plain


def _effective(layer: keras.Layer) -> DTypePolicy:
    """The policy that a layer computes by, also where it holds a map."""
    policy = layer.dtype_policy
    if isinstance(policy, DTypePolicyMap):
        # Layers without a `build` of their own have no path; Keras gives those the default.
        return policy[layer.path] if layer.path else policy.default_policy
    return policy


def _plan(model: keras.Model, policy: DTypePolicy) -> tuple[dict[int, DTypePolicy], set[int]]:
    """The new policy of each sublayer by its id, and the ids of those pinned to float32."""
    layers = [x for x in sublayers(model) if _has_float_policy(x)]
    was_mixed = any(x.compute_dtype in HALF for x in layers)
    pins = {id(x) for x in layers if getattr(x, _PIN, False)}
    if was_mixed:
        pins |= {id(x) for x in layers if x.compute_dtype == "float32"}
    default = policy.default_policy if isinstance(policy, DTypePolicyMap) else policy
    if not pins and not was_mixed and default.compute_dtype in HALF:
        raw = (keras.layers.Rescaling, keras.layers.Normalization)
        kept = [*_output_layers(model), *(x for x in layers if isinstance(x, raw))]
        pins = {id(y) for x in kept for y in [x, *sublayers(x)]}
    float32 = DTypePolicy("float32")
    targets = {id(x): float32 if id(x) in pins else default for x in layers}
    if isinstance(policy, DTypePolicyMap):
        # Parents come first, so that an entry for a sublayer wins over its parent's.
        for layer, member in _matches(layers, policy):
            for x in [layer, *sublayers(layer)]:
                if id(x) in targets:
                    targets[id(x)] = member
                    # Under a float32 default the entry tells nothing of the author's pins.
                    pinned = member == float32 and default.compute_dtype in HALF
                    (pins.add if pinned else pins.discard)(id(x))
    return targets, pins


def _has_float_policy(layer: keras.Layer) -> bool:
    """True for what `set_policy` may change, False for integers, strings and float64."""
    policy = _effective(layer)
    if policy.name in HALF or policy.quantization_mode is not None:
        raise UserError(
            f"set_policy: expected float32 variables under every layer. Received layer "
            f"{layer.name!r} with policy {policy.name!r}: build the model again under the new one."
        )
    return policy.name in POLICIES


def _matches(
    layers: list[keras.Layer], policy: DTypePolicyMap
) -> list[tuple[keras.Layer, DTypePolicy]]:
    found = []
    unused = set(policy)
    for layer in layers:
        for pattern in policy:
            if any(
                n == pattern or re.fullmatch(pattern, n) for n in (layer.name, layer.path or "")
            ):
                found.append((layer, policy[pattern]))
                unused.discard(pattern)
    if unused:
        names = sorted({layer.name for layer in layers})
        near = {p: difflib.get_close_matches(p, names) or names[:5] for p in sorted(unused)}
        hints = "; ".join(f"{p!r} (near: {', '.join(n)})" for p, n in near.items())
        raise UserError(
            "policy map: expected every entry to match the name or path of a layer. Received, "
            f"without a match: {hints}. Correct or remove them."
        )
    return found


def _output_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers that give a graph's outputs, looked for in nested models too."""
    if not _is_graph(model):
        return []
    found = []
    for tensor in model.outputs:
        operation = tensor._keras_history.operation
        if isinstance(operation, keras.Layer):
            found += _output_layers(operation) if _is_graph(operation) else [operation]
    return found


def _copy_graph(model, targets, pairs, done) -> keras.Model:
    """Copies a functional or Sequential model and its nested ones, without weights.

    Appends (old, new) of every layer and model to `pairs`; `done` holds the copies of shared ones.
    """

    def copy(layer):
        if id(layer) not in done:
            if not isinstance(layer, keras.Layer):
                return layer  # an operation such as `a + b` has no state
            if _is_graph(layer):
                done[id(layer)] = _copy_graph(layer, targets, pairs, done)
            else:
                done[id(layer)] = _copy_layer(layer, targets)
                pairs.append((layer, done[id(layer)]))
        return done[id(layer)]

    def fresh(tensor):
        dtype = "float32" if tensor.dtype in HALF else tensor.dtype
        return keras.Input(batch_shape=tensor.shape, dtype=dtype, name=tensor.name)

    # clone_model would compile the copy, with the optimizer's old loss scale.
    compiled, model.compiled = model.compiled, False
    try:
        # A Sequential model has no `input` before it was called.
        given = model.inputs if isinstance(model, keras.Sequential) else model.input
        inputs = keras.tree.map_structure(fresh, given)
        result = keras.models.clone_model(model, input_tensors=inputs, clone_function=copy)
    finally:
        model.compiled = compiled
    result._dtype_policy = targets.get(id(model), result._dtype_policy)
    pairs.append((model, result))
    return result


def _copy_layer(layer: keras.Layer, targets: dict[int, DTypePolicy]) -> keras.Layer:
    """A layer made from its config, its own and nested policies changed."""
    members = [layer, *sublayers(layer)]
    by_name = {x.name: targets[id(x)] for x in members if id(x) in targets}
    try:
        config = _with_policies(layer.get_config(), by_name)
        if type(layer) is keras.layers.Lambda:
            # from_config would refuse a lambda, or run it without its module's globals.
            config = {key: config[key] for key in ("name", "trainable", "dtype", "arguments")}
            return keras.layers.Lambda(
                layer.function, output_shape=layer._output_shape, mask=layer.mask, **config
            )
        return type(layer).from_config(config)
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"set_policy: expected a layer that Keras can make from its config. Received "
            f"{layer.name!r} ({type(layer).__name__}), which fails: {reason} - Give the class a "
            "get_config with every argument of its constructor."
        ) from error


def _with_policies(config, by_name: dict[str, DTypePolicy]):
    """A layer's config with the policies of `by_name`, at every depth."""
    if isinstance(config, list | tuple):
        return type(config)(_with_policies(x, by_name) for x in config)
    if not isinstance(config, dict):
        return config
    new = {key: _with_policies(value, by_name) for key, value in config.items()}
    if "batch_shape" in config and config.get("dtype") in HALF:
        new["dtype"] = "float32"  # an input layer inside a wrapped model
    elif "dtype" in config and config.get("name") in by_name:
        new["dtype"] = keras.dtype_policies.serialize(by_name[config["name"]])
    return new


def _aligned(old: keras.Layer, new: keras.Layer) -> list[tuple[keras.Layer, keras.Layer]]:
    """Pairs each sublayer with its copy, children before parents, and copies the variables."""
    if _is_graph(old):
        return [(old, new)]  # its layers have pairs of their own
    olds, news = [old, *sublayers(old)], [new, *sublayers(new)]
    shapes, new_shapes = ([v.shape for v in x.variables] for x in (old, new))
    if len(olds) != len(news) or shapes != new_shapes:
        raise UserError(
            f"set_policy: expected a layer that its config describes fully. Received {old.name!r} "
            f"({type(old).__name__}), whose copy has other sublayers or variables: give the class "
            "a get_config with every argument of its constructor."
        )
    for source, target in zip(old.variables, new.variables, strict=True):
        target.assign(source)
    return list(reversed(list(zip(olds, news, strict=True))))


def _check_unshared(pairs: list[tuple[keras.Layer, keras.Layer]]) -> None:
    """Refuses a layer that two composite layers hold: each would get a copy of its own."""
    seen: set[int] = set()
    for old, _ in pairs:
        if id(old) in seen:
            raise UserError(
                "set_policy: expected layers that are shared by calling them again. Received "
                f"{old.name!r}, which several composite layers hold: build the model again under "
                "the new policy and load its weights."
            )
        seen.add(id(old))


def _forget(layer: keras.Layer) -> None:
    """Drops what a layer or model computed under its former policy."""
    if isinstance(layer, keras.layers.Normalization):
        # It holds mean and variance as constants of the compute dtype.
        if layer.input_mean is None:
            layer.finalize_state()
        else:
            layer.build(layer._build_input_shape)
    if isinstance(layer, keras.Model):
        layer.train_function = layer.test_function = layer.predict_function = None
        layer.compiled = False
