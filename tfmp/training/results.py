"""What a run leaves: results.json, curves.png, model.keras, and a table on the screen."""

import collections
import dataclasses
import datetime
import math
import time

import tfmp
from tfmp import distribution, hardware, loss_scale, provenance, workers
from tfmp.data import to_device
from tfmp.errors import TfmpError
from tfmp.files import read_metrics, write_json
from tfmp.training import cost, curves, ending, inference
from tfmp.training.accelerate import uses_xla
from tfmp.training.loop import naming_errors


def announce(session, config, data, learner, steps_per_epoch):
    """Prints what a run will run on.

    Args:
        session: A `tfmp.training.Session`.
        config: A `tfmp.training.TrainingConfig`.
        data: A `tfmp.data.Data`.
        learner: A compiled `tfmp.training.Learner`.
        steps_per_epoch: Training steps of an epoch.
    """
    model, sizes, cache = learner.model, data.sizes, session.compile_cache
    classes = f", {len(data.class_names)} classes" if data.class_names else ""
    scaled = loss_scale.is_dynamic(learner.optimizer)
    rows = {
        "device": f"{session.device.name} ({session.device.kind})",
        "policy": f"{session.policy} ({session.policy_reason})",
        "XLA": _xla(session, learner)[1],
        "compile cache": f"on, {len(cache.found)} programs found" if cache else "off",
        "TF32": "on" if session.tf32 else "off",
        "loss scale": f"dynamic, from {config.initial_scale:g}" if scaled else "none",
        "replicas": session.replicas,
        **_of_workers(session, data),
        "data": f"{data.name}: {sizes['train']:,} training, {sizes['validation']:,} validation and "
        f"{sizes['test']:,} test {data.example}s of {_shape(data.input_shape)}{classes}",
        "model": f"{model.name}, {model.count_params():,} parameters",
        "steps": f"{config.epochs} epochs of {steps_per_epoch:,} steps, "
        f"{config.batch_size} {data.example}s a step, {learner.steps_per_execution} steps a call",
        "workdir": session.workdir,
    }
    _table(f"tfmp {tfmp.__version__}, {session.name}", rows)
    if session.device.kind == "cpu" and session.policy != "float32":
        print(
            "note: half precision is emulated on this CPU, for its numerics and not for speed; "
            "--policy=auto takes what is fastest here."
        )
    for note in data.notes:
        print(f"note: {note}")
    print(flush=True)


def _of_workers(session, data):
    """Rows about this process and its part of the data, where it is one of several."""
    if session.worker.count == 1:
        return {}
    other = "reads no other file" if data.read_by == "file" else "reads all, decodes its own"
    share = f"part {session.worker.index + 1} of {session.worker.count} of each batch"
    return {"this is": session.worker, "sharding": f"by {data.read_by}: {share}; {other}"}


def finish(session, config, data, learner, fitted, began, more=None):
    """Evaluates the trained model on the test examples and writes the run's files.

    Of several workers the chief writes, and the others wait for it; then each may end.

    Args:
        session: A `tfmp.training.Session`.
        config: A `tfmp.training.TrainingConfig`.
        data: A `tfmp.data.Data`.
        learner: The trained `tfmp.training.Learner`.
        fitted: A `tfmp.training.loop.Fitted`.
        began: `time.perf_counter()` at the run's begin.
        more: Dict of what else `results.json` is to hold.

    Returns:
        The dict in `results.json`; of several workers, on all but the chief, an empty one.

    Raises:
        NonFiniteError: The run has come to nothing finite; see `tfmp.training.ending`.
        TfmpError: A file can't be written.
    """
    # All workers have a part in it, up to here.
    ending.check_training(
        learner,
        config.epoch_steps(data.sizes["train"]),
        session,
        validated=data.validation is not None,
    )
    test = _evaluate(learner, data, config)
    ending.check(learner, "test", test)
    if not session.worker.is_chief:
        print(f"Done; the chief writes the results to {session.workdir}.")
        workers.finish(session.worker)
        return {}
    rows = read_metrics(session.workdir / "metrics.csv")
    results = _collect(session, config, data, learner, fitted, rows, test) | (more or {})
    file = session.workdir / "results.json"
    try:
        save_model(learner.model, session.workdir / "model.keras")
        curves.plot(rows, session.workdir / "curves.png", session.name, learner.monitor)
        results = _write(file, results, fitted, began)
        # Behind the results, so that nothing that happens here can lose them.
        if config.measure_inference and not distribution.is_tpu(session.strategy):
            _measure_inference(session, config, data, learner, results)
            results = _write(file, results, fitted, began)
    except OSError as error:
        raise TfmpError(
            f"Can't write the results to {session.workdir}: {error}. The run's state is in its "
            "checkpoints: mend this and go on with --resume."
        ) from error
    _summarize(results, session.workdir)
    workers.finish(session.worker)
    return results


def _write(file, results, fitted, began):
    results["seconds"]["total"] = fitted.seconds_before + time.perf_counter() - began
    return write_json(file, results)


def _measure_inference(session, config, data, learner, results):
    """Completes the cost card."""
    print("measuring predictions (--measure_inference=false does without) ...", flush=True)
    size = config.batch_size // (session.replicas * config.gradient_accumulation_steps)
    measured = inference.measure(
        session,
        learner.model,
        features=learner.inputs(next(iter(data.train(size, seed=config.seed)))[0]),
        jit_compile=results["jit_compile"],
    )
    results["cost"] = cost.with_inference(results["cost"], measured)
    results["seconds"]["inference"] = measured["seconds"]
    results["compile_cache"] = _compile_cache(session.compile_cache)


def _collect(session, config, data, learner, fitted, rows, test):
    """What results.json holds, but for the seconds in total."""
    optimizer = learner.optimizer
    parameters = {
        "total": learner.model.count_params(),
        "trainable": sum(math.prod(v.shape) for v in learner.model.trainable_variables),
    }
    return {
        "name": session.name,
        "config": dataclasses.asdict(config),
        "policy": session.policy,
        "policy_reason": session.policy_reason,
        "compute_dtypes": _compute_dtypes(learner.model),
        "jit_compile": _xla(session, learner)[0],
        "fused_layers": session.fused_layers and uses_xla(learner),
        "compile_cache": _compile_cache(session.compile_cache),
        "tf32": session.tf32,
        "deterministic": session.deterministic,
        "strategy": type(session.strategy).__name__.lstrip("_"),
        "replicas": session.replicas,
        "workers": session.worker.count,
        "device": dataclasses.asdict(session.device),
        "model": {"name": learner.model.name, "parameters": parameters},
        "data": {
            "name": data.name,
            "input_shape": data.input_shape,
            "class_names": data.class_names,
            "sizes": data.sizes,
            "example": data.example,
            "origin": data.origin,
        },
        "final": _last(rows) | test,
        "best": _best(rows, learner),
        "epochs": len(rows),
        "steps": int(learner.step),
        "steps_per_execution": learner.steps_per_execution,
        "examples_per_second": fitted.examples_per_second,
        **_tokens(data, fitted),
        "seconds": {
            "compile": fitted.compile_seconds,
            "per_epoch": fitted.seconds_per_epoch,
        },
        "cost": _cost(session, config, data, fitted),
        "peak_memory_bytes": hardware.peak_memory_bytes(),
        "loss_scale": {
            "initial": config.initial_scale if loss_scale.is_dynamic(optimizer) else 1.0,
            "final": float(loss_scale.scale(optimizer)),
            "skipped_steps": int(loss_scale.skipped_steps(optimizer)),
            **_further_optimizers(learner),
        },
        "seed": config.seed,
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _further_optimizers(learner):
    """Scale and skipped steps of the optimizers beside that of `compile`, by their names."""
    return {
        optimizer.name: {
            "final": float(loss_scale.scale(optimizer)),
            "skipped_steps": int(loss_scale.skipped_steps(optimizer)),
        }
        for optimizer in loss_scale.scaled_optimizers_of(learner)[1:]
    }


def _cost(session, config, data, fitted):
    steps = config.epoch_steps(data.sizes["train"])
    return cost.card(
        fitted,
        epoch_examples=steps * config.batch_size,
        devices=session.devices,
        price_per_hour=config.price_per_hour,
        joules_missing=cost.joules_missing(fitted, session.device.kind),
        inference_missing=_inference_missing(session, config),
    )


def _inference_missing(session, config):
    if not config.measure_inference:
        return "--measure_inference=false"
    on_tpu = distribution.is_tpu(session.strategy)
    return "predictions are not timed on a TPU" if on_tpu else "the measurement did not end"


def _xla(session, learner):
    """Whether XLA compiles the training step, and in words."""
    if session.jit_compile and not uses_xla(learner):
        return False, "off: synchronized BatchNorm on several replicas can't be compiled"
    words = "on, with fused layers" if session.fused_layers else "on"
    return session.jit_compile, words if session.jit_compile else "off"


def _compile_cache(cache):
    """Whether programs were kept, and how many: none added where all were found."""
    return {
        "enabled": cache is not None,
        "programs_found": len(cache.found) if cache else 0,
        "programs_added": cache.added if cache else 0,
    }


def save_model(model, file):
    """Saves a model, without an optimizer, for `keras.saving.load_model`.

    Args:
        model: Built Keras model.
        file: Path that ends in `.keras`; written beside and renamed, never half there.
    """
    partial = file.with_name(f"partial-{file.name}")
    model.save(partial)
    partial.replace(file)


def _evaluate(learner, data, config):
    if data.test is None:
        return {}
    worker = distribution.worker(learner.distribute_strategy)
    with learner.distribute_strategy.scope():
        batches = to_device(data.test(config.batch_size))  # as in validation: compiled already
    with naming_errors(config, learner.model, worker):
        logs = learner.evaluate(batches, return_dict=True, verbose=0)
    logs |= learner.derived(logs)
    return {f"test_{name}": float(value) for name, value in logs.items()}


def _compute_dtypes(model):
    """Number of layers that compute in each dtype, as they are and not as they were asked for."""
    return dict(collections.Counter(layer.compute_dtype for layer in model.layers))


def _last(rows):
    return {name: value for name, value in rows[-1].items() if name != "epoch"} if rows else {}


def _best(rows, learner):
    """The epoch of the best validation metric, or of the lowest loss without validation.

    An epoch without a good step, whose loss is NaN, is none; nor is one without the metric.
    """
    rows = [row for row in rows if not math.isnan(row.get("loss", 0.0))]
    name, choose = f"val_{learner.monitor}", max if learner.monitor_mode == "max" else min
    known = [row for row in rows if not math.isnan(row.get(name, math.nan))]
    if not known:
        name, choose, known = "loss", min, rows
    if not known:
        return {}
    best = choose(known, key=lambda row: row[name])
    return {"epoch": int(best["epoch"]) + 1, name: best[name]}


def _tokens(data, fitted):
    speed = fitted.examples_per_second
    return {"tokens_per_second": speed and speed * data.tokens} if data.tokens else {}


def _summarize(results, workdir):
    final, seconds = results["final"], results["seconds"]
    memory = results["peak_memory_bytes"]
    tests = {
        name.replace("_", " "): _rounded(value)
        for name, value in final.items()
        if name.startswith("test_")
    }
    if loss := tests.pop("test loss", None):
        tests["test loss"] = loss  # behind what is asked for
    rows = {
        **tests,
        "best epoch": ", ".join(f"{k} {v:.4g}" for k, v in results["best"].items()),
        "speed": _speed(results),
        "seconds": f"{seconds['total']:.1f} in all, {seconds['compile']:.1f} to the first step",
        "peak memory": f"{memory / 2**30:.2f} GiB" if memory else "not measured on this device",
        "loss scale": _scales(results["loss_scale"]),
        **cost.lines(results["cost"], results["device"]["kind"]),
        "files": ", ".join(sorted(path.name for path in workdir.iterdir())),
        "workdir": workdir,
    }
    print()
    _table("Done", rows)


def _scales(found):
    further = {name: x for name, x in found.items() if isinstance(x, dict)}
    return "; ".join(
        f"{name}{x['final']}, {x['skipped_steps']} steps skipped"
        for name, x in {"": found, **{f"{k} ": v for k, v in further.items()}}.items()
    )


def _speed(results):
    if not results["examples_per_second"]:
        return "too few steps to tell"
    unit, speed = results["data"]["example"], results["examples_per_second"]
    if "tokens_per_second" in results:
        unit, speed = "token", results["tokens_per_second"]
    return f"{speed:,.0f} {unit}s/s, compile time apart"


def _shape(shape):
    """A shape in words, or those of several inputs by name."""
    if isinstance(shape, dict):
        return ", ".join(f"{_shape(part)} {name}" for name, part in shape.items())
    return "x".join(map(str, shape))


def _rounded(value):
    return f"{value:.4f}" if value is not None else "none"


def _table(title, rows):
    width = max(map(len, rows))
    print(title)
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
