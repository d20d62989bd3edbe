"""A recipe's run from its flags to its files, whatever it trains."""

from tfmp import distribution, models, policies, workers
from tfmp.training import learner, loop, optimizers, results, same_data, session, tpu


def prepare(name, config, *, load, build, learn, load_weights=models.load_weights):
    """All that comes before the first step.

    Args:
        name: The recipe's name.
        config: A `tfmp.training.TrainingConfig`.
        load: Function of no argument that returns a `tfmp.data.Data`.
        build: `build(data)` returns a built model of the global policy.
        learn: `learn(model, data)` returns a `Learner` of it, not compiled.
        load_weights: `load_weights(model, file)` loads `config.weights`.

    Returns:
        (`Session`, `Data`, compiled `Learner`, training steps of an epoch).

    Raises:
        UserError: A setting that can't be met; the message says what to do.
    """
    # --- what it runs on
    started = session.start(name, config)
    # --- data
    data = load()
    if config.resume:
        workers.chief_first(started.worker, "data", lambda: _same(data, started.workdir))
    epoch_steps = config.epoch_steps(data.sizes["train"])
    # --- model
    with started.strategy.scope():
        with policies.scope(started.policy):
            model = build(data)
        if config.float32_layers:
            model = policies.set_policy(
                model, policies.load(config.float32_layers, expected_policy=started.policy)
            )
        if config.weights:
            load_weights(model, config.weights)
        if config.sync_batch_norm:
            distribution.synchronize_batch_norm(model)
        # --- training step
        learned = compiled(started, config, learn(model, data), epoch_steps)
    return started, data, learned, epoch_steps


def _same(data, workdir):
    same_data.check(data, workdir)
    return "the same"


def compiled(started, config, learned, epoch_steps):
    """The same learner, compiled as the settings say; call it in the strategy's scope.

    Args:
        started: A `Session`.
        config: A `tfmp.training.TrainingConfig`.
        learned: A `Learner`.
        epoch_steps: Training steps of an epoch.
    """
    learner.compile_learner(
        learned,
        optimizers.build(config, learned.model, epoch_steps),
        jit_compile=started.jit_compile,
        fused_layers=started.fused_layers,
        steps_per_execution=tpu.steps_per_execution(config, epoch_steps)
        if distribution.is_tpu(started.strategy)
        else config.steps_per_execution or 1,
        microbatches=config.gradient_accumulation_steps,
        remat=config.remat,
    )
    return learned


def run(config, prepared, began, callbacks=()):
    """Trains, evaluates on the test examples, and writes the run's files.

    Args:
        config: A `tfmp.training.TrainingConfig`.
        prepared: What `prepare` returned.
        began: `time.perf_counter()` at the run's begin.
        callbacks: Keras callbacks of the recipe's own.

    Returns:
        The dict in `results.json`; of several workers, on all but the chief, an empty one.
    """
    started, data, learned, epoch_steps = prepared
    results.announce(started, config, data, learned, epoch_steps)
    hint = f"Go on with the same flags and --resume --workdir={started.workdir}."
    with started.power() as power:
        fitted = loop.fit(
            learned,
            data,
            config,
            started.workdir,
            resume_hint=hint,
            extra_callbacks=callbacks,
            power=power,
        )
    return results.finish(started, config, data, learned, fitted, began)
