"""Optimizers and their learning rate, from the settings of a run."""

import keras

OPTIMIZERS = {
    "sgd": lambda **kwargs: keras.optimizers.SGD(momentum=0.9, nesterov=True, **kwargs),
    "adamw": keras.optimizers.AdamW,
    "lamb": keras.optimizers.Lamb,
}


def learning_rate(config, steps_per_epoch):
    """Linear warm-up from 0 and cosine decay to 0, proportional to the images of an update.

    Args:
        config: A `TrainingConfig`.
        steps_per_epoch: Training steps of an epoch.

    Returns:
        A Keras learning-rate schedule over training steps; with gradient accumulation Keras asks
        it at every accumulated step.

    References:
        Goyal et al., "Accurate, Large Minibatch SGD", 2017, sections 2.1 and 2.2.
        Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5.
    """
    peak = config.learning_rate / 256 * config.batch_size * config.gradient_accumulation_steps
    epochs = config.epochs / 10 if config.warmup_epochs is None else config.warmup_epochs
    warmup = round(epochs * steps_per_epoch)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else peak,
        warmup_target=peak if warmup else None,
        warmup_steps=warmup,
        decay_steps=max(1, config.epochs * steps_per_epoch - warmup),
    )


def build(config, model, steps_per_epoch):
    """The optimizer of a run, without loss scaling.

    Args:
        config: A `TrainingConfig`.
        model: Built Keras model: its biases and normalization weights get no weight decay.
        steps_per_epoch: Training steps of an epoch.

    Returns:
        A Keras optimizer.
    """
    accumulate = config.gradient_accumulation_steps
    optimizer = OPTIMIZERS[config.optimizer](
        learning_rate=learning_rate(config, steps_per_epoch),
        weight_decay=config.weight_decay or None,
        use_ema=bool(config.ema),
        # Keras moves the average at every accumulated step.
        ema_momentum=config.ema ** (1 / accumulate) if config.ema else 0.99,
        gradient_accumulation_steps=accumulate if accumulate > 1 else None,
    )
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(
            var_list=[v for v in model.trainable_variables if len(v.shape) < 2]
        )
    return optimizer
