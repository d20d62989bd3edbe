"""What the README shows is run as it stands there."""

import pathlib
import re

import keras
import numpy as np
import pytest

from tfmp.commands import matrix

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TWO_CPUS = """import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.distribute.MirroredStrategy = (
    lambda make=tf.distribute.MirroredStrategy: make(["CPU:0", "CPU:1"])
)
"""


def test_the_example_of_policies():
    names: dict = {}
    exec(EXAMPLES[0], names)
    model = names["model"]
    assert keras.config.dtype_policy().name == "float32"
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.get_layer("predictions").compute_dtype == "float32"
    assert model.get_layer("logits").compute_dtype == "float16"
    out = model.predict(np.zeros((1, 64, 64, 3), "uint8"), verbose=0)
    assert out.dtype == np.float32


@pytest.mark.parametrize(
    ("example", "check"),
    [
        (1, "assert int(model.optimizer.iterations.numpy()) == 8"),
        (2, "assert int(optimizer.iterations.numpy()) == 4"),
    ],
)
def test_the_examples_of_loss_scaling_run_on_two_replicas(example, check, tmp_path, run_fresh):
    assert len(EXAMPLES) == 7
    scaled = "assert strategy.num_replicas_in_sync == 2"
    (tmp_path / "example.py").write_text("\n".join([TWO_CPUS, EXAMPLES[example], scaled, check]))
    run_fresh(tmp_path / "example.py", cwd=tmp_path)


def test_the_example_of_the_matrix_is_green(tmp_path, monkeypatch):
    (tmp_path / "readme_models.py").write_text(EXAMPLES[3])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cells = {"policies": ("mixed_float16",), "jit_compile": ("true",), "replicas": (1,)}
    config = matrix.Config(targets=("readme_models:build",), output="matrix.json", **cells)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert [row["verdict"] for row in matrix.run(config)["cells"]] == ["green"]


def test_the_example_of_the_doctor():
    names: dict = {}
    exec(EXAMPLES[4], names)
    assert [(x.rule, x.layer) for x in names["findings"] if x.severity == "error"] == [
        ("half_output", "head")
    ]
    assert names["model"].get_layer("head").compute_dtype == "float32"


def test_the_example_of_the_tracer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(EXAMPLES[6], names)
    assert {x.name for x in (tmp_path / "runs/trace").iterdir()} == {
        "precision_trace.json",
        "precision_trace.png",
    }


def test_the_commands_name_what_exists():
    for file in re.findall(r"recipes/[\w/]+\.(?:flags|md)", README):
        assert (ROOT / file).exists(), file


def test_the_example_of_the_search_finds_its_layer():
    names: dict = {}
    exec(EXAMPLES[5], names)
    assert names["found"].float32 == ("unit",)
    assert names["model"].get_layer("unit").compute_dtype == "float32"
    assert names["model"].get_layer("first").compute_dtype == "float16"
