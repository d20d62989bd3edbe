"""Optimizers and their learning rate, from the settings of a run."""

import keras

from tfmp import loss_scale, policies


def _adamw(weight_decay, **kwargs):
    # Keras' AdamW refuses None; without decay it is Adam.
    if weight_decay is None:
        return keras.optimizers.Adam(**kwargs)
    return keras.optimizers.AdamW(weight_decay=weight_decay, **kwargs)


OPTIMIZERS = {
    "sgd": lambda **kwargs: keras.optimizers.SGD(momentum=0.9, nesterov=True, **kwargs),
    "adamw": _adamw,
    # Of GANs: with the decay 0.9 of the gradients' mean they oscillate (Radford et al. 2016).
    "adam_gan": lambda **kwargs: keras.optimizers.Adam(beta_1=0.5, **kwargs),
    "lamb": keras.optimizers.Lamb,
}


def learning_rate(config, steps_per_epoch):
    """Linear warm-up from 0 and cosine decay to 0, proportional to the images of an update.

    Args:
        config: A `TrainingConfig`.
        steps_per_epoch: Training steps of an epoch.

    Returns:
        A Keras learning-rate schedule over training steps.

    References:
        Goyal et al., "Accurate, Large Minibatch SGD", 2017, sections 2.1 and 2.2.
        Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5.
    """
    peak = config.learning_rate / 256 * config.batch_size
    epochs = config.epochs / 10 if config.warmup_epochs is None else config.warmup_epochs
    warmup = round(epochs * steps_per_epoch)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else peak,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
        decay_steps=max(1, config.epochs * steps_per_epoch - warmup),
    )


def build(config, model, steps_per_epoch):
    """The optimizer of a run: the loss is scaled where some layer computes in float16.

    Everywhere else the scale is 1 for good, and steps with infinite gradients are skipped and
    counted all the same.

    Args:
        config: A `TrainingConfig`.
        model: Built Keras model: its biases, normalization weights and embeddings get no weight
            decay.
        steps_per_epoch: Training steps of an epoch.

    Returns:
        A `tfmp.LossScaleOptimizer`.
    """
    optimizer = OPTIMIZERS[config.optimizer](
        learning_rate=learning_rate(config, steps_per_epoch),
        weight_decay=config.weight_decay or None,
        global_clipnorm=config.clip_norm or None,
        use_ema=bool(config.ema),
        ema_momentum=config.ema or 0.99,
    )
    exclude_from_weight_decay(optimizer, model)
    if policies.uses_float16(model):
        return loss_scale.wrap(optimizer, initial_scale=config.initial_scale)
    return loss_scale.wrap(optimizer, static_scale=1.0)


def exclude_from_weight_decay(optimizer, model):
    """Spares all that is no kernel; a Keras optimizer's config doesn't hold that.

    That is vectors, such as those of normalization, and what has more axes but is a bias (of
    attention's heads, or of each position) or an embedding.

    Args:
        optimizer: Keras optimizer without loss scaling, before it is built.
        model: Built Keras model.
    """
    if optimizer.weight_decay:
        spared = [
            v
            for v in model.trainable_variables
            if len(v.shape) < 2 or v.name in ("bias", "embeddings")
        ]
        optimizer.exclude_from_weight_decay(var_list=spared)
