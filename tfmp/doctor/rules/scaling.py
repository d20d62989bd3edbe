"""Loss scales: where one is missing, or does not reach the gradients."""

import re
from collections.abc import Iterator

import keras

from tfmp import loss_scale
from tfmp.doctor import flow, hand, source
from tfmp.doctor.finding import Finding
from tfmp.doctor.subject import Subject, scale_of, scales
from tfmp.doctor.trace import is_graph


def no_loss_scale(subject: Subject) -> Iterator[Finding]:
    """Gradients that pass through float16 without a loss scale become zero.

    float16 rounds what is below 3e-8 to zero, and many gradients are that small: the layers before
    stop learning, silently. A loss scale multiplies the loss before the backward pass and divides
    the gradients behind it. Keras' `compile` adds one only where the model's own policy is named
    exactly mixed_float16: with a policy per layer or a `DTypePolicyMap`, with
    `auto_scale_loss=False`, in a loop of one's own, and for all further optimizers of a GAN there
    is none. A frozen float16 part in front of float32 layers needs none: no gradient enters it. Nor
    does bfloat16, which has float32's range.

    Example:
        inputs = keras.Input((4,))
        x = keras.layers.Dense(8, dtype="mixed_float16")(inputs)  # the model itself is float32
        model = keras.Model(inputs, keras.layers.Dense(1)(x))
        model.compile("adam", "mse")
        model.optimizer  # an Adam without loss scale

    Mend:
        `tfmp.compile(model, ...)`, or `tfmp.LossScaleOptimizer(optimizer)` around each optimizer
        before it is built; a `train_step` of one's own then calls `optimizer.scale_loss(loss)`.

    References:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740, section 3.2.
        https://github.com/keras-team/keras/issues/19244
    """
    around = subject.around
    by_hand = bool(subject.step and around and hand.scales(subject.step, around.ranges))
    for name, optimizer in subject.optimizers:
        if scales(optimizer) or _unused(subject, name) or by_hand:
            continue
        where = _float16_of(subject, name, optimizer)
        if where:
            yield Finding(
                "no_loss_scale",
                "error",
                None,
                f"{name} ({type(optimizer).__name__}) has no loss scale, and gradients pass "
                f"through float16 ({', '.join(where[:3])}{' ...' if len(where) > 3 else ''}): "
                "small ones become zero. Use tfmp.compile, or tfmp.LossScaleOptimizer around it.",
                {"optimizer": name, "float16_layers": where[:20]},
            )
    if not subject.optimizers and subject.model.dtype_policy.name != "mixed_float16":
        where = _float16_of(subject, "optimizer", None)
        if where:
            yield Finding(
                "no_loss_scale",
                "info",
                None,
                "Keras' compile will add no loss scale, since the model's own policy is "
                f"{subject.model.dtype_policy.name}, though layers train in float16: "
                f"{', '.join(where[:3])}. Compile by tfmp.compile.",
                {"policy": subject.model.dtype_policy.name, "float16_layers": where[:20]},
            )


def unscaled_loss(subject: Subject) -> Iterator[Finding]:
    """A `train_step` that never scales its loss divides its gradients all the same.

    In Keras 3 `LossScaleOptimizer.apply` divides the gradients by the scale, 32768 at first,
    whether or not the loss was multiplied by it. A `train_step` of one's own has to call
    `optimizer.scale_loss(loss)`; without it SGD learns 32768 times too slowly, and Adam,
    whose epsilon is then large beside its gradients, too slowly as well. Nothing says so.

    Example:
        class Model(keras.Model):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = keras.ops.mean((self(x) - y) ** 2)  # no self.optimizer.scale_loss
                weights = self.trainable_variables
                self.optimizer.apply(tape.gradient(loss, weights), weights)
                return {"loss": loss}

    Mend:
        `tape.gradient(self.optimizer.scale_loss(loss), weights)`, with the scaling inside of the
        tape. Optimizers without a loss scale return the loss as it is.

    References:
        https://github.com/keras-team/keras/issues/19479
        https://github.com/keras-team/keras/issues/20894
    """
    names = _unscaled(subject)
    if names:
        yield Finding(
            "unscaled_loss",
            "error",
            None,
            f"The train_step applies gradients by an optimizer ({', '.join(names)}) that divides "
            "them by its loss scale, and never calls its scale_loss: updates come out too small by "
            "that factor. Call optimizer.scale_loss(loss) inside of the tape, and take its "
            "gradients.",
            {"optimizers": names, "scale": scale_of(dict(subject.optimizers)[names[0]])},
        )


def clipped_before_unscaling(subject: Subject) -> Iterator[Finding]:
    """Gradients that are clipped while they are scaled are clipped away.

    A loss scale of 32768 makes gradients 32768 times as large; a clip norm of 1 that is applied
    then cuts nearly every one, and the optimizer divides what is left by 32768: steps come out too
    small, and their size depends on the scale.

    Example:
        class Model(keras.Model):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = self.optimizer.scale_loss(keras.ops.mean((self(x) - y) ** 2))
                gradients = tape.gradient(loss, self.trainable_variables)
                gradients, _ = tf.clip_by_global_norm(gradients, 1.0)  # of scaled ones
                self.optimizer.apply(gradients, self.trainable_variables)
                return {"loss": loss}

    Mend:
        Let the inner optimizer clip, which sees unscaled gradients:
        `tfmp.LossScaleOptimizer(keras.optimizers.Adam(global_clipnorm=1.0))`.

    References:
        Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740, section 3.2 (gradients
            are unscaled before they are clipped).
    """
    for name, optimizer in subject.optimizers:
        clip = source.clips_in_apply(optimizer) if scales(optimizer) else None
        if clip:
            yield Finding(
                "clipped_before_unscaling",
                "error",
                None,
                f"{type(optimizer).__name__}.apply clips gradients ({clip}) before they are "
                "divided by the loss scale. Give the inner optimizer clipnorm, global_clipnorm or "
                "clipvalue instead.",
                {"clip": clip, "optimizers": [name]},
            )
    step = source.step(subject.model)
    scaling = [name for name, x in subject.optimizers if scales(x)]
    if step and step.clips_scaled and scaling and not _straight(subject.step):
        yield Finding(
            "clipped_before_unscaling",
            "error",
            None,
            f"{step.where} clips gradients ({step.clips_scaled}) that still are multiplied by the "
            "loss scale: nearly all are cut, and the steps shrink with the scale. Give the inner "
            "optimizer clipnorm, global_clipnorm or clipvalue instead.",
            {"clip": step.clips_scaled, "optimizers": scaling},
        )


def replicas_loss_scale(subject: Subject) -> Iterator[Finding]:
    """Keras' LossScaleOptimizer looks at one replica's gradients only.

    Under a strategy with several replicas it decides by the first one's gradients, before they are
    summed, whether a step is skipped. An overflow on another replica is applied: all weights become
    NaN, and the scale stays. `global_clipnorm` is computed of each replica's part, too.

    Example:
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            model = keras.Sequential(
                [keras.Input((4,)), keras.layers.Dense(1, dtype="mixed_float16")]
            )
            optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
            model.compile(optimizer, "mse")

    Mend:
        `tfmp.compile(model, ...)` or `tfmp.LossScaleOptimizer(optimizer)`, which has one verdict
        for all replicas.

    References:
        Seen on Keras 3.15; `tests/distribution/test_overflow.py` shows it.
    """
    strategy = getattr(subject.model, "_distribute_strategy", None)
    replicas = strategy.num_replicas_in_sync if strategy else 1
    for name, optimizer in subject.optimizers:
        keras_own = isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and not isinstance(
            optimizer, loss_scale.LossScaleOptimizer
        )
        if keras_own and replicas > 1 and subject.uses_float16:
            yield Finding(
                "replicas_loss_scale",
                "error",
                None,
                f"{name} is Keras' own LossScaleOptimizer under {replicas} replicas: it looks at "
                "the first one's gradients, and applies an overflow of another. Use "
                "tfmp.LossScaleOptimizer.",
                {"optimizer": name, "replicas": replicas},
            )


def _unused(subject, name) -> bool:
    """Whether a `train_step` of one's own names all optimizers that it uses, and this is none."""
    step = source.step(subject.model)
    if step is None or not step.applies or len(subject.optimizers) == 1:
        return False
    held = {f"self.{name}" for name, _ in subject.optimizers}
    return set(step.applies) <= held and f"self.{name}" not in step.applies


def _unscaled(subject) -> list[str]:
    """Optimizers with a loss scale that get gradients of a loss without it."""
    scaling = [name for name, x in subject.optimizers if scales(x)]
    traced = subject.step
    if traced and traced.own and traced.applied:
        ranges = subject.around.ranges
        return [
            name
            for name in scaling
            if name in traced.applied.keys() - traced.scaled
            and not hand.scaled(traced.applied[name], ranges)
        ]
    step = source.step(subject.model)
    return scaling if step and step.unscaled and _are_scaled(subject, step.unscaled) else []


def _straight(step) -> bool:
    """Whether a traced step hands all gradients on as tapes gave them."""
    begins = {id(x) for x in step.gradients} if step else set()
    return bool(begins) and all(id(x) in begins for x in step.handed)


def _are_scaled(subject, written) -> bool:
    """Whether one of the optimizers, as a `train_step` writes them, has a loss scale."""
    held = {f"self.{name}": optimizer for name, optimizer in subject.optimizers}
    # A name of no attribute may stand for any.
    return any(name not in held or scales(held[name]) for name in written)


def _float16_of(subject, name, optimizer) -> list[str]:
    """Layers in whose float16 the gradients of an optimizer's variables are."""
    variables = _variables(subject, name, optimizer)
    if subject.trace.failures:
        return [
            part.path
            for part in subject.half_parts
            if part.layer.compute_dtype == "float16" and part.layer.trainable_variables
        ]
    found = flow.reached(subject.trace, variables)
    names = []
    for operation in subject.trace.operations:
        if any(x.dtype == "float16" for x in found.get(id(operation), ())):
            names.append(subject.path(operation) or subject.model.name)
    return list(dict.fromkeys(names))


def _variables(subject, name, optimizer):
    """What an optimizer trains: what it was built for, else what its name is of, else all."""
    model = subject.model
    if optimizer is not None and optimizer.built:
        return loss_scale.inner(optimizer)._trainable_variables
    prefix = re.sub(r"_?(optimizer|optim|opt)s?_?|\[.*", "", name)
    held = [part.layer for part in subject.parts if part.parent is None and prefix]
    own = [
        x
        for x in held
        if any(
            value is x and key.lstrip("_").startswith(prefix) for key, value in vars(model).items()
        )
    ]
    if len(own) == 1 and not is_graph(model):
        return own[0].trainable_variables
    return model.trainable_variables
