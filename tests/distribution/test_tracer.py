"""On two replicas the tracer names the layer, the step and the replica, and shows the largest."""

import json

import keras
import numpy as np
import pytest
from helpers import assert_same, images, make, snapshot

import tfmp

pytestmark = pytest.mark.replicas(2)

SIZE, STEPS, BAD = 8, 4, 3
EXAMPLE = SIZE * (BAD - 1) + SIZE // 2 + 1  # one of the second replica's


def optimizer():
    return tfmp.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**10)


def fit(strategy, x, y, weights, *callbacks, change=None, **accelerate):
    model = make(strategy, "mixed_float16", optimizer, change)
    tfmp.accelerate(model, **accelerate)
    model.fit(
        *(x, y), sample_weight=weights, batch_size=SIZE, shuffle=False, verbose=0,
        callbacks=list(callbacks),
    )  # fmt: skip
    return snapshot(model)


@pytest.mark.parametrize(
    ("poison", "layer", "direction", "accelerate"),
    [
        ("image", "conv2d", "forward", {}),
        ("weight", "dense", "backward", {"jit_compile": False, "microbatches": 2}),
    ],
)
def test_the_layer_and_the_replica_are_named(
    strategy, poison, layer, direction, accelerate, tmp_path
):
    x, y = images(SIZE * STEPS)
    weights = np.ones(len(x), np.float32)
    x[SIZE + SIZE // 2] *= 64  # the second replica's in the second step: the largest output
    if poison == "image":
        x[EXAMPLE, 3, 3] = 1e6  # infinite in float16
    else:
        weights[EXAMPLE] = 1e30
    traced = fit(strategy, x, y, weights, tfmp.Tracer(tmp_path, every=1), **accelerate)
    if accelerate:  # one without XLA, which compiles for long
        plain = fit(strategy, x, y, weights, **accelerate)
        assert_same(*(dict(enumerate(found.values())) for found in (plain, traced)))
    trace = json.loads((tmp_path / "precision_trace.json").read_text())
    (found,) = trace["overflows"]
    assert (found["step"], found["replica"]) == (BAD, 1)
    assert found["direction"] == direction and found["layer"].startswith(layer)
    headroom = next(values for path, values in trace["headroom"].items() if "conv2d" in path)
    assert headroom[1] < min(headroom[0], headroom[3]) - 4


def test_batch_statistics_of_all_replicas(strategy, tmp_path):
    """Layers that talk to each other, so without XLA."""
    x, y = images(SIZE * STEPS)
    x[EXAMPLE, 3, 3] = 1e6
    tracer = tfmp.Tracer(tmp_path, every=2)
    fit(
        *(strategy, x, y, np.ones(len(x), np.float32), tracer),
        change=tfmp.distribution.synchronize_batch_norm,
        jit_compile=False,
    )
    trace = json.loads((tmp_path / "precision_trace.json").read_text())
    (found,) = trace["overflows"]
    assert (found["step"], found["replica"]) == (BAD, 1) and found["layer"].startswith("conv2d")
    assert trace["steps"] == [1, 3] and not trace["unseen"]
