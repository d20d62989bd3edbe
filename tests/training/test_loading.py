"""`load` in a fresh process: training goes on, bit for bit, as if it had never stopped."""

import json
import shutil
import zipfile

import keras
import numpy as np
import pytest

import tfmp
from tfmp import policies
from tfmp.errors import UserError
from tfmp.training import (
    Classifier,
    Learner,
    TrainingConfig,
    compile_learner,
    fit,
    loading,
    optimizers,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, 4)).astype("float32")
LABELS = RNG.normal(size=(12, 1)).astype("float32")
BAD = IMAGES.copy()
BAD[5] = np.inf
FIT = {"batch_size": 3, "shuffle": False, "verbose": 0}

# Loads models and trains each on its own data; leaves all variables.
CHILD = """
import sys, keras, numpy as np, tfmp
for path in sys.argv[1:]:
    model, data = tfmp.load(path), np.load(path + ".npz")
    model.fit(data["x"], data["y"], batch_size=3, shuffle=False, verbose=0)
    variables = [*model.variables, *model.optimizer.variables]
    np.savez(
        path + "-after.npz",
        *[v.numpy() for v in variables],
        kind=type(model.optimizer).__module__.split(".")[0],
        policies=[x.dtype_policy.name for x in model.layers],
        names=[v.name for v in variables],
    )
"""


def network(policy):
    keras.utils.set_random_seed(0)
    with policies.scope(policy):
        return keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(5, "tanh"),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(1, dtype="float32"),
            ]
        )


def adamw():
    return keras.optimizers.AdamW(0.1, global_clipnorm=1.0)


def ours(inner=adamw, **kwargs):
    return tfmp.LossScaleOptimizer(inner(), **kwargs)


# How a file's model was compiled: policy, optimizer, and whether by tfmp.
FILES = {
    "ours": ("mixed_float16", lambda: ours(initial_scale=64.0, hysteresis=3), True),
    "ours by name": ("mixed_float16", lambda: "adam", True),
    "ours, static": ("float32", lambda: ours(static_scale=4.0), True),
    "ours, Keras' compile": ("mixed_bfloat16", lambda: ours(dynamic_growth_steps=2), False),
    "Keras' own, added": ("mixed_float16", adamw, False),
    "Keras' own, given": (
        "float32",
        lambda: keras.optimizers.LossScaleOptimizer(adamw(), initial_scale=32.0),
        False,
    ),
    "none": ("float32", adamw, False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def files(folder):
    """Saved models, and what each is after training on without a stop."""
    models = {}
    for name, (policy, make, by_tfmp) in FILES.items():
        model = network(policy)
        compiled = tfmp.compile if by_tfmp else keras.Model.compile
        compiled(model, optimizer=make(), loss="mse", run_eagerly=True, jit_compile=False)
        model.fit(BAD if name == "ours" else IMAGES, LABELS, **FIT)
        path = folder / f"{len(models)}.keras"
        model.save(path)
        np.savez(f"{path}.npz", x=IMAGES, y=LABELS)
        model.fit(IMAGES, LABELS, **FIT)
        models[name] = path, model
    return models


@pytest.fixture(scope="module")
def run(folder, digits):
    """A finished run's folder, and its model trained on as `load` is to compile it."""
    config = TrainingConfig(
        epochs=1, warmup_epochs=0, batch_size=256, optimizer="adamw", initial_scale=1024.0
    )
    keras.utils.set_random_seed(0)
    with policies.scope("mixed_float16"):
        inner = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Rescaling(1 / 255, dtype="float32"),
                keras.layers.Dense(16),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(10, dtype="float32"),
            ]
        )
    classifier = Classifier(inner, lambda images, seed: images)
    optimizer = optimizers.build(config, inner, 50)  # of which it makes 5: the rate isn't 0 yet
    compile_learner(classifier, optimizer, jit_compile=False)
    fit(classifier, digits, config, folder / "run")
    images, labels, _ = next(digits.test(12).as_numpy_iterator())
    np.savez(folder / "run.npz", x=images, y=labels)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    inner.compile(optimizer, loss, auto_scale_loss=False, jit_compile=False)
    before = inner.get_weights()
    inner.fit(images, labels, **FIT)
    assert all((a != b).any() for a, b in zip(before, inner.get_weights(), strict=True))
    return folder / "run", inner


@pytest.fixture(scope="module")
def after(files, run, run_fresh):
    """What a fresh process makes of each file, and of the run."""
    paths = {name: str(path) for name, (path, _) in (files | {"run": run}).items()}
    run_fresh("-c", CHILD, *paths.values())
    found = {}
    for name, path in paths.items():
        with np.load(f"{path}-after.npz") as arrays:
            found[name] = dict(arrays)
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_file_goes_on_as_uninterrupted(files, after, name):
    model, found = files[name][1], after[name]
    assert found["policies"].tolist() == [FILES[name][0]] * 2 + ["float32"]
    counters = tfmp.loss_scale.optimizer.COUNTERS
    arrays = [value for key, value in found.items() if key.startswith("arr_")]
    variables = [*model.variables, *model.optimizer.variables]
    if name == "Keras' own, added":  # the child has tfmp's class, with counters
        pairs = zip(found["names"], arrays, strict=True)
        arrays = [value for label, value in pairs if label not in counters]
    for variable, value in zip(variables, arrays, strict=True):
        np.testing.assert_array_equal(value, variable.numpy(), err_msg=variable.path)
    # Where nothing computes in float16 the optimizer stays what it was.
    assert found["kind"] == ("keras" if name in ("none", "Keras' own, given") else "tfmp")


def test_a_run_goes_on_as_uninterrupted(run, after):
    model, found = run[1], after["run"]
    assert found["kind"] == "tfmp"
    assert found["policies"].tolist().count("mixed_float16") == 4
    variables = [*model.variables, *model.optimizer.variables]
    arrays = [value for key, value in found.items() if key.startswith("arr_")]
    for variable, value in zip(variables, arrays, strict=True):
        np.testing.assert_array_equal(value, variable.numpy(), err_msg=variable.path)
    assert dict(zip(found["names"], arrays, strict=True))["dynamic_scale"] == 1024


def test_a_loaded_run_spares_the_same_weights_from_decay(run):
    model = tfmp.load(run[0])
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape, "float32"))
    gradients = [np.zeros(v.shape, "float32") for v in model.trainable_variables]
    for slot in model.optimizer.inner_optimizer.variables[2:]:
        slot.assign(np.zeros(slot.shape, "float32"))
    model.optimizer.apply(gradients, model.trainable_variables)
    decayed = {v.name for v in model.trainable_variables if not np.allclose(v.numpy(), 1)}
    assert decayed == {"kernel"}


def test_a_model_that_was_not_compiled_loads_so(tmp_path):
    network("mixed_float16").save(tmp_path / "model.keras")
    assert getattr(tfmp.load(tmp_path / "model.keras"), "optimizer", None) is None


def test_a_model_saved_before_its_first_step_loads_with_a_fresh_state(tmp_path):
    model = network("mixed_float16")
    tfmp.compile(model, ours(initial_scale=64.0), loss="mse")
    model.save(tmp_path / "model.keras")
    optimizer = tfmp.load(tmp_path / "model.keras").optimizer
    assert optimizer.dynamic_scale.numpy() == 64
    assert optimizer.iterations.numpy() == 0


def test_a_loss_scale_that_accelerate_took_over_is_restored(tmp_path):
    model = network("mixed_bfloat16")
    keras_own = keras.optimizers.LossScaleOptimizer(adamw(), initial_scale=32.0)
    model.compile(keras_own, "mse", jit_compile=False)
    tfmp.accelerate(model, jit_compile=False).fit(BAD, LABELS, **FIT)
    model.save(tmp_path / "model.keras")
    loaded = tfmp.load(tmp_path / "model.keras").optimizer
    assert type(loaded) is tfmp.LossScaleOptimizer and loaded.skipped_steps.numpy() == 1
    for a, b in zip(loaded.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_a_path_of_nothing_is_refused(tmp_path):
    (tmp_path / "text.keras").write_text("no zip")
    (tmp_path / "empty").mkdir()
    for name in ("none.keras", "none", "text.keras", "model.h5"):
        with pytest.raises(UserError, match=rf"Expected a \.keras file or.*Received: .*{name}"):
            tfmp.load(tmp_path / name)
    with pytest.raises(UserError, match=r"Expected the folder of a run.*Received: .*empty"):
        tfmp.load(tmp_path / "empty")


def test_a_damaged_or_foreign_file_is_refused(files, tmp_path):
    whole = files["ours"][0].read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "foreign.keras", "w") as archive:
        archive.writestr("readme.txt", "no model")
    (tmp_path / "garbled.keras").write_bytes(whole[:2000] + bytes(2000) + whole[4000:])
    for name in ("cut", "foreign", "garbled"):
        with pytest.raises(UserError, match=rf"{name}\.keras"):
            tfmp.load(tmp_path / f"{name}.keras")


def test_the_state_of_another_optimizer_is_refused(files, tmp_path):
    """A file whose settings name SGD, and whose state is AdamW's."""
    with (
        zipfile.ZipFile(files["ours"][0]) as source,
        zipfile.ZipFile(tmp_path / "mixed.keras", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                inner = config["compile_config"]["optimizer"]["config"]["inner_optimizer"]
                sgd = keras.saving.serialize_keras_object(keras.optimizers.SGD(0.1))
                inner.update(sgd)
                content = json.dumps(config)
            target.writestr(name, content)
    with pytest.raises(UserError, match=r"optimizer's state in .*mixed\.keras"):
        tfmp.load(tmp_path / "mixed.keras")


def damage_checkpoint(folder):
    (data,) = (folder / "checkpoints").glob("*.data-*")
    data.write_bytes(data.read_bytes()[:100])


def remove_checkpoint(folder):
    shutil.rmtree(folder / "checkpoints")


def damage_description(folder):
    (folder / "model.json").write_text('{"model": ')


def remove_description(folder):
    (folder / "model.json").unlink()


def describe_another_model(folder):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Dense(3)])
    learner = Learner(model)
    learner.compile(keras.optimizers.SGD())
    loading.describe(learner, folder)


def without_loss(described):
    del described["loss"]


def with_a_loss_of_theirs(described):
    described["loss"] = {
        "module": "theirs",
        "class_name": "Own",
        "config": {},
        "registered_name": "theirs>Own",
    }


@pytest.mark.parametrize("change", [without_loss, with_a_loss_of_theirs])
def test_a_run_whose_loss_is_not_known_loads_without_one(run, tmp_path, change):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    described = json.loads((folder / "model.json").read_text())
    change(described)
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.warns(UserWarning, match="without the run's loss"):
        model = tfmp.load(folder)
    assert model.loss is None and int(model.optimizer.iterations) > 0


def test_a_loss_that_no_file_can_hold_does_not_end_the_run(run, tmp_path):
    class Own(keras.losses.Loss):
        def get_config(self):
            return {"of": {1, 2}}

    learner = Learner(run[1])
    learner.optimizer = run[1].optimizer
    learner.make_loss = Own
    loading.describe(learner, tmp_path)
    assert json.loads((tmp_path / "model.json").read_text()).keys() == {"model", "optimizer"}


def test_a_class_that_was_not_imported_is_named(tmp_path, twice):
    model = keras.Sequential([keras.Input((4,)), twice[0](), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.save(tmp_path / "own.keras")
    keras.saving.get_custom_objects().pop("theirs>Twice")
    with pytest.raises(UserError, match=r"no class 'Twice' is known\. Import the module"):
        tfmp.load(tmp_path / "own.keras")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_checkpoint, "it is damaged or of another model"),
        (remove_checkpoint, "and a checkpoint"),
        (damage_description, r"model\.json"),
        (remove_description, r"model\.json"),
        (describe_another_model, "it is damaged or of another model"),
    ],
)
def test_a_damaged_or_foreign_run_is_refused(run, tmp_path, damage, said):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    damage(folder)
    with pytest.raises(UserError, match=said):
        tfmp.load(folder)
