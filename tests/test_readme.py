"""What the README shows is run as it stands there."""

import pathlib
import re

import keras
import numpy as np

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_example():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    model = names["model"]
    assert keras.config.dtype_policy().name == "float32"
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.get_layer("predictions").compute_dtype == "float32"
    assert model.get_layer("logits").compute_dtype == "float16"
    out = model.predict(np.zeros((1, 64, 64, 3), "uint8"), verbose=0)
    assert out.dtype == np.float32


def test_the_commands_name_what_exists():
    root = pathlib.Path(__file__).parents[1]
    for file in re.findall(r"recipes/[\w/]+\.(?:flags|md)", README):
        assert (root / file).exists(), file
