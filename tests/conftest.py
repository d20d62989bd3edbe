"""Two logical CPUs, exact float32, quick compiling, Keras' state restored after each test."""

import gc
import html.parser
import json
import os
import re

gc.disable()  # it is a fifth of TensorFlow's import; garbage is collected between tests
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
# No program started by a test keeps what it compiles, unless the test says where.
os.environ["TF_XLA_FLAGS"] = "--tf_xla_persistent_cache_directory="

import fresh
import keras
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config  # no public way to turn it off

from tfmp import report

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.experimental.enable_tensor_float_32_execution(False)
if not tf.config.list_physical_devices("GPU"):
    # XLA compiles small programs twice as fast if it doesn't optimize their machine code. An empty
    # XLA_FLAGS in the environment brings back the code that users have.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
        "--xla_cpu_parallel_codegen_split_count=1",
    )


class Html(html.parser.HTMLParser):
    """A page's tags, its text, and its numbers: (key, value, text)."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.numbers, self._words, self._in = text, [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self._in = dict(attrs), len(self._words)

    def handle_endtag(self, tag):
        if tag == "data":
            attrs, first = self._in
            text = "".join(self._words[first:])
            self.numbers.append((attrs["data-key"], float(attrs["value"]), text))
        if tag in ("td", "th", "dt", "dd", "p", "caption", "h1"):
            self._words.append(" ")

    def handle_data(self, data):
        self._words += [] if self.tags[-1:] == [("style", {})] else [data]

    @property
    def text(self):
        return " ".join("".join(self._words).split())


SCALES = {"%": 0.01, "points": 0.01, "kJ": 1e3, "kWh": 3.6e6, "MiB": 2**20, "GiB": 2**30}


def printed(text, unit):
    """The number that a text says, and how far off it may be by its rounding."""
    form = r"([+-]?[\d,]+)(\.\d+)?(e[+-]\d+)?(?:\xa0(.*))?"
    matched = re.fullmatch(form, text.replace("\N{MINUS SIGN}", "-"))
    assert matched, text
    whole, decimals, power, name = (x or "" for x in matched.groups())
    scale = SCALES.get(name, 0.01 if unit in ("share", "points", "distance") else 1.0)
    scale = 3600.0 if (unit, name) == ("seconds", "h") else scale
    exponent = float(f"1{power}")
    number = float(f"{whole}{decimals}".replace(",", ""))
    step = exponent * 10.0 ** -max(len(decimals) - 1, 0)
    return number * exponent * scale, 0.5001 * step * scale


@pytest.fixture
def report_of(tmp_path_factory):
    """Makes the report of folders; gives the page as `Html` and what report.json holds.

    All numbers of both are held against each other, to the rounding of what is printed.
    """

    def make(*words):
        place = tmp_path_factory.mktemp("report")
        report.write(report.build(report.read(list(map(str, words)))), place)
        page = Html((place / "report.html").read_text())
        written = json.loads((place / "report.json").read_text())
        numbers = written["numbers"]
        assert {key for key, _, _ in page.numbers} == set(numbers)
        for key, value, text in page.numbers:
            assert value == numbers[key]["value"], key
            said, rounding = printed(text, numbers[key]["unit"])
            assert abs(said - value) <= rounding, (key, value, text)
        return page, written

    return make


@pytest.fixture(scope="session")
def run_fresh():
    """`fresh.run`, which has to end well: a function of the words behind `python`."""

    def run(*words, **settings):
        ended = fresh.run(*words, **settings)
        assert ended.returncode == 0, f"exit status {ended.returncode}\n{ended.stderr}"
        return ended

    return run


@pytest.fixture
def twice():
    """A layer of a user's own, registered as `theirs>Twice`, and the source of its module."""
    source = """
import keras

@keras.saving.register_keras_serializable("theirs")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""
    space: dict = {}
    exec(compile(source, "theirs", "exec"), space)
    return space["Twice"], source


@pytest.fixture(scope="session")
def deterministic():
    """Whether operations were deterministic before all tests."""
    return tf_config.is_op_determinism_enabled()


@pytest.fixture(autouse=True)
def global_state(deterministic):
    """Restores the global dtype policy, and operations that are deterministic or not."""
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)
    if not deterministic:
        tf_config.disable_op_determinism()  # a run with --deterministic leaves it on
    # Frozen, else the collector would go through TensorFlow's old graphs again and again.
    gc.collect()
    gc.freeze()
