"""Two optimizers in one step: each scales, skips and counts by itself."""

import keras
import numpy as np
import pytest

from tfmp import loss_scale, policies
from tfmp.metrics.frechet import frechet_distance
from tfmp.models import dcgan
from tfmp.training import compile_learner, gan, judge

SHAPE = (8, 8, 1)
TOO_LARGE = 2.0**24  # a scale that overflows float16, at least at first


@pytest.fixture(scope="module")
def judged(digits):
    images, labels = next(digits.train(1000, seed=0).as_numpy_iterator())
    return judge.build(images, labels, 10)


@pytest.fixture(scope="module")
def make(judged):
    """A function of the first scales of generator and discriminator."""

    def made(scale=1024.0, other=1024.0, policy="mixed_float16", jit_compile=False):
        with policies.scope(policy):
            model = dcgan.generator(image_shape=SHAPE, latent=8, width=8, seed=0)
            discriminator = dcgan.discriminator(image_shape=SHAPE, width=8, seed=0)
        generators, discriminators = (
            loss_scale.wrap(keras.optimizers.Adam(1e-3, beta_1=0.5), initial_scale=x)
            for x in (scale, other)
        )
        learner = gan.GanLearner(model, discriminator, discriminators, judged)
        compile_learner(learner, generators, jit_compile=jit_compile)
        return learner

    return made


def fit(learner, digits, steps):
    data = digits.train(32, seed=0)
    return learner.fit(data, steps_per_epoch=steps, verbose=0, shuffle=False).history


def weights(model):
    return [v.numpy() for v in model.trainable_variables]


def changed(before, model):
    return [not np.array_equal(a, b) for a, b in zip(before, weights(model), strict=True)]


@pytest.mark.parametrize("present", [[0, 1, 2, 4, 5, 6, 7, 8], [3, 8], [4]])
def test_a_judge_knows_the_classes_that_its_images_have_and_no_other(digits, present):
    images, labels = next(digits.train(1000, seed=0).as_numpy_iterator())
    chosen = np.isin(labels, present)
    images, labels = images[chosen], labels[chosen]
    _, probabilities = judge.build(images, labels, 10).predict(images, verbose=0)
    assert probabilities.shape == (len(images), 10)
    assert not np.delete(probabilities, present, axis=1).any()
    assert np.mean(probabilities.argmax(-1) == labels) > 0.9


@pytest.mark.parametrize(
    ("overflows", "jit_compile"), [("generator", False), ("discriminator", True)]
)
def test_an_overflow_in_one_leaves_the_other_alone(make, digits, overflows, jit_compile):
    if overflows == "generator":
        learner = make(TOO_LARGE, 1024.0, jit_compile=jit_compile)
        bad, good = learner.optimizer, learner.discriminator_optimizer
        networks = learner.model, learner.discriminator
    else:
        learner = make(1024.0, TOO_LARGE, jit_compile=jit_compile)
        bad, good = learner.discriminator_optimizer, learner.optimizer
        networks = learner.discriminator, learner.model
    before = [weights(network) for network in networks]
    statistics = [v.numpy() for v in networks[1].non_trainable_variables if "moving" in v.path]
    fit(learner, digits, 1)
    assert bad.skipped_steps.numpy() == bad.consecutive_skips.numpy() == 1
    assert bad.iterations.numpy() == 0 and bad.dynamic_scale.numpy() == TOO_LARGE / 2
    assert good.skipped_steps.numpy() == 0 and good.dynamic_scale.numpy() == 1024
    assert good.iterations.numpy() == good.step_counter.numpy() == int(learner.step) == 1
    assert not any(changed(before[0], networks[0])) and all(changed(before[1], networks[1]))
    after = [v.numpy() for v in networks[1].non_trainable_variables if "moving" in v.path]
    assert statistics and all(map(np.array_equal, statistics, after))


def test_two_good_steps_are_two_updates_of_each(make, digits):
    learner = make(policy="float32")
    before = weights(learner.model), weights(learner.discriminator)
    history = fit(learner, digits, 2)
    assert set(history) == {"loss", "discriminator_loss"} and np.isfinite(history["loss"]).all()
    assert all(changed(before[0], learner.model))
    assert all(changed(before[1], learner.discriminator))
    assert learner.optimizer.iterations.numpy() == 2
    assert learner.discriminator_optimizer.iterations.numpy() == 2
    assert len(learner.optimizer.inner_optimizer._trainable_variables) == len(before[0])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_evaluation_is_the_same_each_time_and_leaves_the_padding_out(
    make, digits, judged, jit_compile
):
    learner = make(policy="float32", jit_compile=jit_compile)
    batches = digits.validation(50)  # 142 images
    logs = learner.evaluate(batches, return_dict=True, verbose=0)
    assert logs == learner.evaluate(batches, return_dict=True, verbose=0)
    assert set(logs) == {"frechet", "confidence", "classes", "judge_accuracy"}
    real, known, made = [], [], []
    for images, labels, there in batches.as_numpy_iterator():
        noise = learner.noise(50, [-1, sum(map(len, real))])
        real.append(images[there > 0])
        known.append(labels[there > 0])
        made.append(learner.model(noise, training=False).numpy()[there > 0])
    assert sum(map(len, real)) == 142
    (features, found), (generated, probabilities) = (
        [x.numpy() for x in judged(np.concatenate(part))] for part in (real, made)
    )
    assert logs["frechet"] == pytest.approx(frechet_distance(features, generated), rel=1e-3)
    assert logs["confidence"] == pytest.approx(probabilities.max(-1).mean(), rel=1e-4)
    mean = probabilities.mean(0).astype(np.float64)
    entropy = -np.sum(mean * np.log(mean))
    assert logs["classes"] == pytest.approx(np.exp(entropy), rel=1e-3)
    right = np.mean(found.argmax(-1) == np.concatenate(known))
    assert logs["judge_accuracy"] == pytest.approx(right) and right > 0.8


def test_the_judge_tells_real_images_from_noise(digits, judged):
    images, labels, _ = next(digits.test(360).as_numpy_iterator())
    features, probabilities = (x.numpy() for x in judged(images))
    assert (probabilities.argmax(-1) == labels).mean() > 0.85
    others, _, _ = next(digits.validation(142).as_numpy_iterator())
    noise = np.random.default_rng(0).uniform(0, 255, images.shape)
    near, far = (frechet_distance(features, judged(x)[0].numpy()) for x in (others, noise))
    assert near < 1 < 10 < far
    assert not judged.trainable_variables
