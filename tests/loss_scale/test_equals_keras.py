"""Without overflow it is Keras' own LossScaleOptimizer, bit for bit; and it is one on disk."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmp

KERAS_OWN = keras.optimizers.LossScaleOptimizer

INNER = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.5),
    "nadam": lambda: keras.optimizers.Nadam(0.01, clipnorm=0.5),
    "lamb": lambda: keras.optimizers.Lamb(
        keras.optimizers.schedules.CosineDecay(0.1, 10), weight_decay=0.1
    ),
    "averages": lambda: keras.optimizers.Adam(
        0.01, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "accumulation": lambda: keras.optimizers.SGD(
        0.1, momentum=0.9, gradient_accumulation_steps=2, clipvalue=0.2
    ),
}


def trained(optimizer, way):
    """Weights and state after five steps; the scale grows on the way."""
    rng = np.random.default_rng(0)
    table, kernel, bias = variables = [
        keras.Variable(rng.normal(size=shape).astype("float32")) for shape in ((5, 3), (3, 2), (2,))
    ]
    optimizer.build(variables)

    @way
    def step(ids, labels):
        with tf.GradientTape() as tape:
            outputs = tf.matmul(tf.gather(table.value, ids), kernel.value) + bias.value
            loss = optimizer.scale_loss(tf.reduce_mean((outputs - labels) ** 2))
        gradients = tape.gradient(loss, [v.value for v in variables])
        assert isinstance(gradients[0], tf.IndexedSlices)
        optimizer.apply(gradients, variables)

    for _ in range(5):
        ids, labels = rng.integers(5, size=4), rng.normal(size=(4, 2))
        step(tf.constant(ids), tf.constant(labels, tf.float32))
    # Keras' own class doesn't list Nadam's product.
    product = [v for k, v in vars(optimizer.inner_optimizer).items() if k == "_u_product"]
    return {v.path: v.numpy() for v in [*variables, *optimizer.variables, *product]}


@pytest.mark.parametrize("inner", INNER)
def test_without_overflow_it_equals_keras_bit_for_bit(inner, way):
    ours, stock = (
        list(trained(kind(INNER[inner](), dynamic_growth_steps=2), way).items())
        for kind in (tfmp.LossScaleOptimizer, KERAS_OWN)
    )
    counters = tfmp.loss_scale.optimizer.COUNTERS
    ours = [(path, value) for path, value in ours if path.split("/")[-1] not in counters]
    for (path, value), (_, expected) in zip(ours, stock, strict=True):
        np.testing.assert_array_equal(value, expected, err_msg=path)
    scale = next(value for path, value in ours if path.endswith("dynamic_scale"))
    assert scale == 2.0**17


def test_keras_own_tests_of_the_class_pass(run_fresh):
    code = (
        "import json, unittest, tfmp\n"
        "from keras.src.optimizers import loss_scale_optimizer_test as suite\n"
        "suite.LossScaleOptimizer = tfmp.LossScaleOptimizer\n"
        "tests = unittest.defaultTestLoader.loadTestsFromModule(suite)\n"
        "ended = unittest.TextTestRunner().run(tests)\n"
        "print(json.dumps([ended.testsRun - len(ended.skipped), ended.wasSuccessful()]))\n"
    )
    ended = run_fresh("-c", code)
    ran, passed = json.loads(ended.stdout.splitlines()[-1])
    assert passed, ended.stderr
    assert ran > 20


ARGUMENTS = [
    {},
    {"initial_scale": 8.0, "dynamic_growth_steps": 7, "name": "named"},
    {"min_scale": 2.0, "max_scale": 2.0**20, "hysteresis": 3},
    {"growth_factor": 4.0, "backoff_factor": 0.25},
    {"static_scale": 0.5},
    {"static_scale": 2.0**30},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_configs_survive_a_round_trip(arguments):
    optimizer = tfmp.LossScaleOptimizer(
        keras.optimizers.AdamW(0.5, global_clipnorm=2.0), **arguments
    )
    text = json.dumps(keras.saving.serialize_keras_object(optimizer))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(again) is tfmp.LossScaleOptimizer
    assert again.get_config() == optimizer.get_config()
    for name, value in arguments.items():
        assert getattr(again, name) == value
    assert again.inner_optimizer.global_clipnorm == 2.0
    assert float(again.scale_loss(tf.constant(1.0))) == again.initial_scale


def test_a_default_config_loads_in_keras_own_class():
    config = tfmp.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=8.0).get_config()
    again = KERAS_OWN.from_config(config)
    assert type(again) is KERAS_OWN
    assert again.initial_scale == 8.0


RESUME = """
import sys, keras, numpy as np
import tfmp.loss_scale
model = keras.saving.load_model(sys.argv[1])
assert type(model.optimizer) is tfmp.LossScaleOptimizer, model.optimizer
np.savez(sys.argv[2], *[v.numpy() for v in [*model.variables, *model.optimizer.variables]])
"""


def test_a_fresh_process_loads_all_of_its_state(tmp_path, run_fresh):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = tfmp.LossScaleOptimizer(keras.optimizers.Adam(0.1), hysteresis=3, initial_scale=64)
    model.compile(optimizer, "mse")
    images = np.ones((6, 2), "float32")
    images[[1, 3, 4]] = np.inf
    model.fit(images, np.zeros(6), batch_size=1, shuffle=False, verbose=0)
    state = {v.name: v.numpy() for v in optimizer.variables}
    wanted = dict(skipped_steps=3, consecutive_skips=0, last_overflow_step=5, hysteresis_left=0)
    assert {name: int(state[name]) for name in wanted} == wanted
    assert state["dynamic_scale"] == 32
    model.save(tmp_path / "model.keras")
    run_fresh("-c", RESUME, tmp_path / "model.keras", tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz") as arrays:
        loaded = [arrays[name] for name in arrays.files]
    variables = [*model.variables, *optimizer.variables]
    for variable, value in zip(variables, loaded, strict=True):
        np.testing.assert_array_equal(value, variable.numpy(), err_msg=variable.path)
