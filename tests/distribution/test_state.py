"""What differs between replicas, dropout's masks and examples, and what must not: all state."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import NONE, assert_replicas_agree, build, images, make, snapshot
from programs import train

import tfmp
from tfmp import distribution

pytestmark = pytest.mark.replicas(2)
WIDTH = 256


def linear(layer):
    """A model of weights that begin at 0 and whose gradients are the mean output of a layer."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((WIDTH,)), layer, keras.layers.Dense(1, "linear", False, "zeros")]
    )


def mean_output(labels, outputs):
    return -keras.ops.mean(outputs, axis=-1)


def layer_outputs(strategy, layer, x, **accelerate):
    """The mean output of a layer over all examples of each of four steps: [4, WIDTH]."""
    model = make(
        strategy,
        optimizer=lambda: keras.optimizers.SGD(1.0),
        model=lambda: linear(layer()),
        loss=mean_output,
        weighted_metrics=[],
    )
    tfmp.accelerate(model, **{"jit_compile": False} | accelerate)
    outputs = []
    for _ in range(4):
        before = model.trainable_variables[0].numpy()
        model.fit(x, x[:, :1], batch_size=len(x), verbose=0)
        outputs.append((model.trainable_variables[0].numpy() - before)[:, 0])
        assert_replicas_agree(model)
    return np.array(outputs)


def dropout():
    return keras.layers.Dropout(0.5)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_each_replica_draws_its_own_dropout_mask_at_each_step(strategy, jit_compile):
    ones = np.ones((2, WIDTH), np.float32)  # an example for each replica; kept ones become 2
    kept = layer_outputs(strategy, dropout, ones, jit_compile=jit_compile)
    assert set(np.unique(kept)) == {0, 1, 2}
    # One replica of two keeps a number: for equal masks never, for independent ones at a half.
    share = (kept == 1).mean(-1)
    assert (abs(share - 0.5) < 0.2).all(), share
    assert len(np.unique(kept, axis=0)) == 4, "two steps drew the same masks"


def test_each_microbatch_of_each_replica_draws_its_own_dropout_mask(strategy):
    ones = np.ones((4, WIDTH), np.float32)
    kept = layer_outputs(strategy, dropout, ones, microbatches=2)
    assert set(np.unique(kept)) == {0, 0.5, 1, 1.5, 2}
    odd = (kept % 1 == 0.5).mean(-1)  # one or three masks of four
    assert (abs(odd - 0.5) < 0.2).all(), odd


class AddReplica(keras.layers.Layer):
    """Adds one plus the replica's index."""

    def call(self, inputs):
        return inputs + 1.0 + distribution.replica_index()


def test_a_layer_can_tell_on_which_replica_it_runs(strategy):
    zeros = np.zeros((2, WIDTH), np.float32)
    assert (layer_outputs(strategy, AddReplica, zeros, jit_compile=True) == 1.5).all()
    assert (layer_outputs(NONE, AddReplica, zeros, jit_compile=True) == 1).all()
    assert distribution.replica_index() == 0
    with strategy.scope():
        assert distribution.replica_index() == 0
        indices = strategy.run(lambda: tf.constant(distribution.replica_index()))
    assert [int(x) for x in strategy.experimental_local_results(indices)] == [0, 1]


@pytest.mark.parametrize(("count", "jit_compile"), [(6, True), (5, False)])  # 5: 3 and 2 examples
def test_moving_statistics_are_the_mean_of_the_replicas(strategy, count, jit_compile):
    def normalization():
        keras.utils.set_random_seed(0)
        layers = keras.layers
        return keras.Sequential(
            [keras.Input((8, 8, 1)), layers.BatchNormalization(momentum=0.9), layers.Flatten()]
        )

    x, y = images(count)
    model = make(strategy, model=normalization)
    tfmp.accelerate(model, jit_compile=jit_compile).fit(
        x, y, batch_size=6, verbose=0, shuffle=False
    )
    parts = x[:3], x[3:]
    shares = [len(part) / count for part in parts]
    mean, variance = (
        sum(share * moment(part) for share, part in zip(shares, parts, strict=True))
        for moment in (np.mean, np.var)
    )
    assert parts[0].mean() != pytest.approx(parts[1].mean(), rel=1e-3)
    layer = model.layers[0]
    for copy in distribution.copies(strategy, layer.moving_mean):
        np.testing.assert_allclose(copy.numpy(), [0.1 * mean], rtol=1e-5)
    for copy in distribution.copies(strategy, layer.moving_variance):
        np.testing.assert_allclose(copy.numpy(), [0.9 + 0.1 * variance], rtol=1e-5)


def test_all_state_stays_equal_on_all_replicas(strategy):
    """Also where of the last batch of an epoch a replica gets nothing."""
    model = tfmp.accelerate(make(strategy, "mixed_float16"), jit_compile=False)
    before = snapshot(model)
    x, y = images(25)
    for _ in range(2):
        model.fit(x, y, batch_size=8, verbose=0, validation_data=(x, y))
        assert_replicas_agree(model)
    after = snapshot(model)
    for kind in ("moving_mean", "moving_variance", "seed_generator_state", "kernel", "gamma"):
        (name, *_) = (name for name in after if name.endswith(kind))
        assert (before[name][0] != after[name][0]).any(), kind


def without_dropout():
    return build(dropout=0)  # a .keras file doesn't hold the state of random seeds


def momentum_and_average():
    return keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.9)


def test_saved_and_loaded_in_a_fresh_process_it_goes_on_to_the_bit(strategy, run_program, tmp_path):
    model = make(strategy, "mixed_float16", momentum_and_average, model=without_dropout)
    train(tfmp.accelerate(model, jit_compile=False), tmp_path / "half.npz")
    model.save(tmp_path / "model.keras")
    ended = run_program("go_on", tmp_path / "model.keras", tmp_path / "part.npz")
    assert ended.returncode == 0, ended
    train(model, tmp_path / "whole.npz")
    half, whole, part = (np.load(tmp_path / f"{n}.npz") for n in ("half", "whole", "part"))
    assert whole.files == part.files
    for index, name in enumerate(whole.files):
        np.testing.assert_array_equal(whole[name], part[name], err_msg=f"variable {index}")
    assert any((half[name] != whole[name]).any() for name in whole.files)
