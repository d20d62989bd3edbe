"""A run with what is chosen for a TPU, on two CPUs that the recipe takes for one.

No TPU has run it.
"""

import json

import keras
import pytest
import tensorflow as tf
from programs import tiny

from tfmp import data, distribution, models
from tfmp.models import resnet as resnets
from tfmp.recipes import resnet
from tfmp.training import learner

pytestmark = pytest.mark.replicas(2)


def train(strategy, folder):
    """Results of a run, and the shapes of what a replica's steps got."""
    shapes = set()
    steps = {name: getattr(learner.Learner, name) for name in ("train_step", "test_step")}

    def watched(step):
        def run(self, data):
            shapes.update(tuple(x.shape) for x in tf.nest.flatten(data) if x is not None)
            return step(self, data)

        return run

    config = resnet.Config(
        strategy="tpu", model="tiny", epochs=4, batch_size=128, warmup_epochs=1.0,
        augmentation="none", workdir=str(folder),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for builders in (models.MODELS, resnets.MODELS):
            patch.setitem(builders, "tiny", tiny)
        patch.setattr(distribution, "resolve", lambda name, timeout: strategy)
        patch.setattr(distribution, "is_tpu", lambda other: other is strategy)
        for name, step in steps.items():
            patch.setattr(learner.Learner, name, watched(step))
        resnet.run(config)
    return json.loads((folder / "results.json").read_text()), shapes


def test_it_trains_in_bfloat16_without_a_loss_scale_on_whole_batches_many_steps_a_call(
    strategy, tmp_path
):
    results, shapes = train(strategy, tmp_path / "run")
    assert results["policy"] == "mixed_bfloat16" and "TPU" in results["policy_reason"]
    assert results["compute_dtypes"]["bfloat16"] > 2 and "float16" not in results["compute_dtypes"]
    assert results["loss_scale"] == {"initial": 1.0, "final": 1.0, "skipped_steps": 0}
    assert results["replicas"] == 2
    # 1,295 training images: 10 whole batches of 128.
    assert (results["steps"], results["steps_per_execution"]) == (40, 10)
    assert results["final"]["test_accuracy"] > 0.7
    assert "not timed" in str(results["cost"])
    assert shapes == {(64, 8, 8, 1), (64,)}  # of either replica; validation and test padded
    # Its loss is that of all test images, and not what Keras divides by the number of replicas.
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    of_batches, weights = 0.0, 0.0
    for images, labels, weight in data.load("digits").test(128):
        loss = keras.losses.sparse_categorical_crossentropy(
            labels, model(images, training=False), from_logits=True
        )
        of_batches, weights = of_batches + tf.reduce_sum(loss * weight), weights + sum(weight)
    assert results["final"]["test_loss"] == pytest.approx(float(of_batches / weights), rel=0.1)
