"""What a file or a run's checkpoint holds, read without making the model."""

import dataclasses
import hashlib
import json
import pathlib
import zipfile
import zlib

import h5py
import numpy as np
import tensorflow as tf

from tfmp.errors import UserError
from tfmp.training import loading

# Variables of a LossScaleOptimizer before those of the optimizer in it: iterations, learning rate,
# good steps, scale; ours has four counters more.
SCALE_INDEX, KERAS_OWN, OURS = 3, 4, 8
# What has a policy, or a dtype, but computes nothing by it.
COMPUTE_NOTHING = ("InputLayer", "Functional", "Sequential")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What was found.

    Attributes:
        kind: "keras", "weights" or "run".
        path: What `tfmp.load` takes.
        keras_path: What Keras' own `load_model` takes; None: there is no such file.
        weights: Digests of the model's arrays but seeds; see `digest`.
        dtypes: Number of the float ones by dtype.
        seeds: Digests of random states of layers.
        policies: Policy of each layer by its name; None: the file says nothing of layers.
        optimizer: Name of the class that updates the weights, "unnamed" where there is its state
            alone; None where there is none.
        scaled: Whether there is loss scaling around it.
        scale: The loss scale; None where it is not there.
        state: Digests of the optimizer's arrays without those of the loss scale.
        iterations: Updates so far; None where it is not there.
        classes: Classes of the model's own, which have to be imported.
    """

    kind: str
    path: pathlib.Path
    keras_path: pathlib.Path | None
    weights: tuple[str, ...]
    dtypes: dict[str, int]
    seeds: tuple[str, ...]
    policies: dict[str, str] | None
    optimizer: str | None
    scaled: bool
    scale: float | None
    state: tuple[str, ...]
    iterations: int | None
    classes: tuple[str, ...]


def digest(array) -> str:
    """A word that equal arrays share: of dtype, shape and bytes."""
    array = np.asarray(array)
    head = f"{array.dtype.name}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def read(path) -> Contents:
    """Reads a file or a run's folder.

    Args:
        path: A `.keras` or `.weights.h5` file, the folder of a run, its `checkpoints`, or a
            checkpoint in there.

    Raises:
        UserError: It is none of them, or damaged.
    """
    path = pathlib.Path(path).expanduser()
    try:
        if path.suffix == ".keras" and path.is_file():
            return _keras_file(path)
        if path.name.endswith(".weights.h5") and path.is_file():
            with h5py.File(path, "r") as store:
                return _of_store("weights", path, None, store, {})
        places = (path, path / loading.FIRST_PHASE, *path.parents[:2])
        run = next((x for x in places if (x / "checkpoints").is_dir()), None)
        if run is not None and (path.is_dir() or _is_checkpoint(path)):
            return _run(run)
    except (zipfile.BadZipFile, zlib.error, OSError, KeyError, ValueError, tf.errors.OpError) as e:
        if isinstance(e, UserError):
            raise
        reason = " ".join(str(e).split())
        raise UserError(f"Can't read {path}: it is damaged or no model ({reason}).") from e
    raise UserError(
        "Expected a .keras file, a .weights.h5 file, or the folder of a run with its checkpoints. "
        f"Received: {path}{'' if path.exists() else ', which is not there'}."
    )


def _is_checkpoint(path):
    return path.with_name(path.name.removesuffix(".index") + ".index").is_file()


def _keras_file(path):
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        with archive.open("model.weights.h5") as file, h5py.File(file, "r") as store:
            return _of_store("keras", path, path, store, config)


def _of_store(kind, path, keras_path, store, config):
    """Of Keras' weights; `config` is the model's, {} where there is none."""
    arrays: list[np.ndarray] = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            arrays.append(item[()])

    store.visititems(visit)
    outer = _numbered(store.get("optimizer/vars"))
    scaled = "optimizer/inner_optimizer" in store
    own = _numbered(store.get("optimizer/inner_optimizer/vars")) if scaled else outer
    described = config.get("compile_config", {}).get("optimizer") if config else None
    return _contents(kind, path, keras_path, arrays, config or None, described, scaled, outer, own)


def _run(folder):
    latest = tf.train.latest_checkpoint(folder / "checkpoints")
    description = folder / "model.json"
    if latest is None or not description.is_file():
        raise UserError(
            f"Expected the folder of a run, with {description.name} and a checkpoint. Received: "
            f"{folder}."
        )
    described = json.loads(description.read_text())
    reader = tf.train.load_checkpoint(latest)
    held = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    arrays, outer = (_listed(held, part) for part in ("model", "optimizer"))
    optimizer = described["optimizer"]
    scaled = "LossScale" in optimizer["class_name"]
    before = (OURS if _is_own(optimizer) else KERAS_OWN) if scaled else 0
    file = folder / "model.keras"
    return _contents(
        "run",
        folder,
        file if file.is_file() else None,
        arrays,
        described["model"],
        optimizer,
        scaled,
        outer,
        outer[before:],
    )


def _contents(kind, path, keras_path, arrays, config, described, scaled, outer, own):
    """`Contents` of the model's arrays, its config, the optimizer's, and the optimizer's arrays."""
    seeds = [x for x in arrays if x.shape == (2,) and np.issubdtype(x.dtype, np.integer)]
    weights = [x for x in arrays if not any(x is seed for seed in seeds)]
    floats = [x.dtype.name for x in weights if not np.issubdtype(x.dtype, np.integer)]
    scaled = scaled or "LossScale" in (described or {}).get("class_name", "")
    inner = described
    if described and "inner_optimizer" in described["config"]:
        inner = described["config"]["inner_optimizer"]
    scale = None
    if scaled and len(outer) - len(own) > SCALE_INDEX:  # else it was not built yet
        scale = float(outer[SCALE_INDEX])
    elif described and scaled:
        scale = described["config"].get("initial_scale")
    return Contents(
        kind=kind,
        path=path,
        keras_path=keras_path,
        weights=tuple(map(digest, weights)),
        dtypes={name: floats.count(name) for name in sorted(set(floats))},
        seeds=tuple(map(digest, seeds)),
        policies=None if config is None else dict(_policies(config)),
        optimizer=inner["class_name"] if inner else ("unnamed" if own else None),
        scaled=scaled,
        scale=scale,
        state=tuple(map(digest, own)),
        iterations=int(own[0]) if own else None,
        classes=tuple(sorted(set(_own_classes(config or {})))),
    )


def _numbered(group):
    return [] if group is None else [group[str(index)][()] for index in range(len(group))]


def _listed(held, part):
    """The arrays of a list in a checkpoint, in its order."""
    found = {}
    for name, array in held.items():
        words = name.split("/")
        if words[0] == part and words[1].isdigit():
            found[int(words[1])] = array
    return [found[index] for index in sorted(found)]


def _objects(config):
    """All serialized Keras objects in a config, at every depth."""
    if isinstance(config, dict):
        if "class_name" in config and isinstance(config.get("config"), dict):
            yield config
        for value in config.values():
            yield from _objects(value)
    elif isinstance(config, list):
        for value in config:
            yield from _objects(value)


def _policies(config):
    """(name, policy) of each layer that a config describes."""
    for described in _objects(config):
        name, dtype = (described["config"].get(key) for key in ("name", "dtype"))
        if isinstance(dtype, dict):
            dtype = dtype.get("config", {}).get("name")
        if name and isinstance(dtype, str) and described["class_name"] not in COMPUTE_NOTHING:
            yield name, dtype


def _is_own(described):
    """Whether a class comes from elsewhere than Keras, which names no module of its tensors."""
    module = described.get("module") or "keras"
    registered = described.get("registered_name") or ""
    return ">" in registered or not module.startswith(("keras", "builtins"))


def _own_classes(config):
    for described in _objects(config):
        package = (described.get("registered_name") or "").partition(">")[0]
        if _is_own(described) and package != "tfmp":
            yield described.get("registered_name") or described["class_name"]
