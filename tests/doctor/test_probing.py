"""Each bad model is damaged on its batch, found and mended; each look-alike passes."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import backward, forward
from cases.probed import normal
from cases.right import CLEAN
from keras import applications

import tfmp
from tfmp import doctor, models, policies
from tfmp.doctor.probe import compare, probe
from tfmp.doctor.rules import RULES
from tfmp.doctor.subject import examine
from tfmp.models import gpt, text_classifier

pytestmark = [
    # numpy says so of every constant that it makes infinite.
    pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning"),
]
BAD = forward.BAD | backward.BAD
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def built(build, policy):
    """(model, inputs, labels) under a policy, its weights the same each time."""
    keras.utils.clear_session()  # names of operations count up
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model, inputs, *labels = build()
    inputs = keras.tree.map_structure(tf.convert_to_tensor, inputs)
    return model, inputs, labels[0] if labels else None


def serious(findings):
    return [(x.rule, x.layer, x.message) for x in findings if x.severity != "info"]


def outputs(model, inputs, labels):
    return [np.float32(model(inputs))]


def loss(model, inputs, labels):
    try:
        return [np.float32(model.compute_loss(y=labels, y_pred=model(inputs, training=True)))]
    except tf.errors.InvalidArgumentError:
        return [np.float32(np.nan)]


def gradients(model, inputs, labels):
    """At the scale that a dynamic loss scale, if there is one, settles on."""
    weights = [v._value for v in model.trainable_variables]
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    for scale in (2.0**15, 2.0**10, 2.0**5, 1.0) if scaled else (1.0,):
        with tf.GradientTape() as tape:
            scalar = model.compute_loss(y=labels, y_pred=model(inputs, training=True)) * scale
        found = [np.float32(g) / scale for g in tape.gradient(scalar, weights)]
        if finite(found):
            break
    return found


def finite(values):
    return all(np.isfinite(x).all() for x in values)


def not_finite(half, full):
    assert finite(full)
    return not finite(half)


def wrong(half, full):
    assert finite(full)
    return any(
        np.linalg.norm(h - f) > 0.03 * np.linalg.norm(f) for h, f in zip(half, full, strict=True)
    )


def lost(half, full):
    return any(
        np.any(f) and np.mean((h == 0) & (f != 0)) > 0.3 for h, f in zip(half, full, strict=True)
    )


def raised(model, inputs, labels):
    try:
        return outputs(model, inputs, labels)
    except Exception:
        return None


def moved(model, inputs, labels):
    before = model.get_weights()
    model.train_on_batch(inputs, labels)
    return [new != old for new, old in zip(model.get_weights(), before, strict=True)]


def weights_after(model, inputs, labels):
    model.train_on_batch(inputs, labels)
    return model.get_weights()


# What is computed in half and in float32, and what tells that half is damaged.
DAMAGE = {
    "outputs not finite": (outputs, not_finite),
    "outputs wrong": (outputs, wrong),
    "loss not finite": (loss, not_finite),
    "gradients not finite": (gradients, not_finite),
    "gradients lost": (gradients, lost),
    "weights stay": (moved, lambda half, full: np.mean(half[0]) < 0.5 < np.mean(full[0])),
    "weights not finite": (weights_after, not_finite),
    "raises": (raised, lambda half, full: half is None and full is not None),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_is_damaged_found_and_mended(name):
    case = BAD[name]
    compute, damaged = DAMAGE[case.damage]
    # Where the code names float16, float32 alone doesn't help.
    by_name = name in ("cast_by_name", "half_within_float32")
    reference, *batch = built(case.mended if by_name else case.build, "float32")
    right = compute(reference, *batch)
    model, *batch = built(case.build, case.policy)
    assert damaged(compute(model, *batch), right)
    model, *batch = built(case.build, case.policy)
    before = model.get_weights()
    findings = doctor.diagnose(model, *batch)
    found = {(x.rule, x.layer): x for x in findings}
    assert (case.rule, case.layer) in found, findings
    assert found[case.rule, case.layer].severity != "info"
    after = model.get_weights() if before else []  # one model could not be built before
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    if case.mended:
        mended, *batch = built(case.mended, "mixed_float16")
        # It may be another function, such as one that is scaled.
        reference, *_ = built(case.mended, "float32")
        right = compute(reference, *batch)
    else:
        mended = doctor.fix(model, findings)
        if batch[1] is not None:
            tfmp.compile(mended, keras.optimizers.SGD(0.01), loss=model.loss)
    assert not damaged(compute(mended, *batch), right)


@pytest.mark.parametrize(("scale", "overflows"), [(2048.0, False), (1e6, True)])
def test_what_a_mask_hides_is_judged_only_where_it_is_not_finite(scale, overflows):
    class Blind(keras.layers.Layer):
        supports_masking = True

        def call(self, inputs, mask=None):
            rounded = (inputs + scale) - scale
            return keras.ops.where(mask[:, :, None], inputs, rounded)

    with policies.scope("mixed_float16"):
        inputs = keras.Input((6,), dtype="int32")
        x = Blind(name="blind")(keras.layers.Embedding(40, 16, mask_zero=True)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(4, dtype="float32")(x))
    ids = np.tile([[3, 4, 5, 0, 0, 0]], (4, 1))
    findings = doctor.diagnose(model, ids)
    found = {x.rule for x in findings if x.severity != "info" and x.layer == "blind"}
    assert "half_overflow" in found if overflows else not found


def test_losses_that_a_layer_adds_are_part_of_its_gradient():
    class Likelihood(keras.layers.Layer):
        def build(self, shape):
            self.dense = keras.layers.Dense(9, name="dense")
            self.dense.build(shape[0])

        def call(self, inputs):
            x, target = inputs
            y = keras.ops.cast(self.dense(x), "float32")
            mean, log_deviation, logits = keras.ops.split(y, 3, -1)
            off = (keras.ops.cast(target, "float32") - mean) / keras.ops.exp(log_deviation)
            each = keras.ops.log_softmax(logits) - keras.ops.square(off) / 2 - log_deviation
            self.add_loss(-keras.ops.mean(keras.ops.logsumexp(each, -1)))
            return mean

    keras.utils.set_random_seed(0)
    with policies.scope("mixed_float16"):
        inputs, target = keras.Input((4,)), keras.Input((1,))
        x = keras.layers.Dense(16, activation="tanh")(inputs)
        model = keras.Model([inputs, target], Likelihood(name="likelihood")([x, target]))
    model.compile(keras.optimizers.Adam(1e-3))
    rng = np.random.default_rng(0)
    x, y = (np.float32(rng.normal(size=(32, size))) for size in (4, 1))
    y[4] = 25.0
    assert not [x for x in doctor.diagnose(model, [x, y]) if x.severity != "info"]


def head(loss, *shape):
    with policies.scope("mixed_float16"):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(shape[-1], name="head")])
    model.compile("sgd", loss)
    return model, np.ones((len(YEARS), 4), np.float32)


YEARS = np.linspace(2020.2, 2021.4, 8, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("labels", "severity"),
    [
        (None, "warning"),  # breaks for some
        (YEARS - 2020, "info"),  # 0.02 % of their spread is rounded off
        (YEARS * 2 - 3500, "warning"),  # 20 %
        (YEARS, "error"),  # 70 %
        (YEARS * 50, "error"),  # infinite
    ],
)
def test_a_half_regression_is_as_bad_as_its_labels_are_rounded(labels, severity):
    model, inputs = head("mse", 1)
    given = () if labels is None else (inputs, labels)
    found = {x.rule: x for x in doctor.diagnose(model, *given)}["half_output"]
    assert (found.severity, found.layer) == (severity, "head")


def test_half_logits_are_information_since_a_crossentropy_barely_notices():
    model, inputs = head(CROSSENTROPY, 10)
    labels = np.arange(8) % 10
    for given in [(), (inputs, labels)]:
        found = {x.rule: x for x in doctor.diagnose(model, *given)}
        assert found["half_output"].severity == "info"
    # What makes it so: the loss's gradient by the logits, of logits of up to 30.
    logits = tf.constant(normal(256, 10) * 10)
    labels = np.arange(256) % 10
    slopes = []
    for given in (logits, tf.cast(tf.cast(logits, "float16"), "float32")):
        with tf.GradientTape() as tape:
            tape.watch(given)
            loss = CROSSENTROPY(labels, given)
        slopes.append(tape.gradient(loss, given).numpy())
    full, half = slopes
    assert np.linalg.norm(half - full) < 0.01 * np.linalg.norm(full)


def test_what_is_zero_and_noticed_by_nothing_is_no_fault():
    with policies.scope("mixed_float16"):
        inputs = keras.Input((4,))
        frozen = keras.layers.Dense(4, trainable=False, kernel_initializer="ones", name="frozen")
        x = keras.layers.Rescaling(1e-9, dtype="float32")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(frozen(x)))
    model.layers[-1].bias.assign([1.0, 2.0])
    model.compile(keras.optimizers.Adam(), "mse")
    found = serious(doctor.diagnose(model, normal(8, 4), np.zeros((8, 2), np.float32)))
    assert not found


def test_every_rule_of_probing_has_a_model_that_breaks():
    modules = ("tfmp.doctor.rules.forward", "tfmp.doctor.rules.backward")
    rules = {name for name, rule in RULES.items() if rule.__module__ in modules}
    assert rules == {case.rule for case in BAD.values()}


def test_a_step_that_builds_its_optimizer_is_run_with_a_scale_of_the_doctors():
    class Twice(keras.Model):
        """Unscales by hand what the optimizer unscales."""

        def train_step(self, data):
            x, y = data
            if not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
            with tf.GradientTape() as tape:
                loss = self.optimizer.scale_loss(tf.reduce_mean((self(x) - y) ** 2))
            gradients = tape.gradient(loss, self.trainable_variables)
            gradients = [g / self.optimizer.dynamic_scale for g in gradients]
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    with policies.scope("mixed_float16"):
        inputs = keras.Input((4,))
        model = Twice(inputs, keras.layers.Dense(1, dtype="float32")(inputs))
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    found = serious(doctor.diagnose(model, normal(8, 4), np.ones((8, 1), np.float32)))
    assert [(rule, layer) for rule, layer, _ in found] == [("gradients_off_scale", None)]


@pytest.mark.parametrize("dtype", [str, object])
def test_a_batch_of_texts(dtype):
    def build():
        texts = keras.Input((), dtype="string")
        x = keras.layers.StringLookup(vocabulary=["one", "two"], name="lookup")(texts)
        x = keras.layers.Embedding(3, 8)(x)
        return keras.Model(texts, keras.layers.Dense(1, dtype="float32")(x)), ()

    model, *_ = built(build, "mixed_float16")
    found = doctor.diagnose(model, np.array(["one", "two", "three"], dtype))
    assert [(x.rule, x.layer) for x in found if x.severity != "info"] == [("xla_off", "lookup")]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", CLEAN)
def test_a_look_alike_gets_no_warning(name, policy):
    model, *batch = built(CLEAN[name], policy)
    found = doctor.diagnose(model, *batch)
    assert not serious(found)
    assert not [x.message for x in found if x.rule == "not_probed"]


def zoo_resnet():
    images = np.uint8(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)))
    model = models.build("resnet_small", classes=10, input_shape=(16, 16, 3), seed=0)
    return model, images, np.arange(4)


def zoo_vit():
    images = np.uint8(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)))
    model = models.build("vit_micro", classes=10, input_shape=(16, 16, 3), seed=0)
    return model, images, np.arange(4)


def zoo_unet():
    images = np.uint8(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)))
    model = models.build("unet_small", classes=3, input_shape=(16, 16, 3), seed=0)
    return model, images, np.int32(images[..., 0] % 3)


def zoo_gpt():
    tokens = np.random.default_rng(0).integers(0, 40, (4, 16))
    return gpt.MODELS["gpt_micro"](vocabulary=40, context=16, dropout=0.1, seed=0), tokens, tokens


def zoo_encoder():
    tokens = np.random.default_rng(0).integers(1, 40, (4, 16)) * (np.arange(16) < 11)
    build = text_classifier.MODELS["encoder_micro"]
    model = build(classes=3, vocabulary=40, length=16, dropout=0.1, seed=0)
    return model, tokens, np.arange(4) % 3


ZOO = (zoo_resnet, zoo_vit, zoo_unet, zoo_gpt, zoo_encoder)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("build", ZOO)
def test_the_zoo_is_clean(build, policy):
    model, inputs, labels = built(build, policy)
    tfmp.compile(model, keras.optimizers.Adam(), loss=CROSSENTROPY)
    assert not serious(doctor.diagnose(model, inputs, labels))


@pytest.mark.slow  # half a minute each on 2 cores; the two lightest of 3 kinds
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "DenseNet121"])
def test_applications_with_a_float32_head_are_clean(name, policy):
    def build():
        make = getattr(applications, name)
        base = make(weights=None, include_top=False, input_shape=(64, 64, 3), pooling="avg")
        head = keras.layers.Dense(8, dtype="float32")(base.output)
        return keras.Model(base.input, head), np.zeros(1)

    model, *_ = built(build, policy)
    tfmp.compile(model, keras.optimizers.Adam(), loss=CROSSENTROPY)
    assert not serious(doctor.diagnose(model, "random"))
    del model
    gc.collect()


def test_a_drawn_batch_says_so_and_is_only_a_warning():
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((8,))
    x = keras.layers.Lambda(lambda x: keras.ops.exp(x * 12) * 1e-4, name="planted")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(x))
    assert not [x for x in doctor.diagnose(model) if x.rule == "half_overflow"]
    (found,) = [x for x in doctor.diagnose(model, "random") if x.rule == "half_overflow"]
    assert (found.layer, found.severity) == ("planted", "warning")
    assert found.evidence["drawn"] and "random inputs" in found.message


def test_headroom_by_hand():
    inputs = keras.Input((2,))
    x = keras.layers.Rescaling(1.0, name="plain", dtype="mixed_float16")(inputs)
    x = keras.layers.Rescaling(16.0, name="times_16", dtype="mixed_float16")(x)
    model = keras.Model(inputs, keras.layers.Activation("linear", dtype="float32")(x))
    found = probe(examine(model), np.float32([[1, 2046.9375]]))
    spans = {x.layer: x for x in found.spans}
    assert spans["plain"].largest == 2047.0
    assert spans["plain"].headroom == pytest.approx(5.0, abs=1e-3)
    assert spans["times_16"].headroom == pytest.approx(1.0, abs=1e-3)
    (info,) = [x for x in doctor.diagnose(model, np.float32([[1, 2047]])) if x.layer == "times_16"]
    assert (info.rule, info.severity) == ("little_headroom", "info")


def test_underflow_by_hand():
    """Gradients of 2^-20 to 2^-30 for the inputs' weights: half of them are below 2^-25."""
    inputs = keras.Input((4,))
    half = keras.layers.Dense(1, use_bias=False, name="half", dtype="mixed_float16")
    x = keras.layers.Activation("linear", dtype="float32")(half(inputs))
    model = keras.Model(inputs, x)
    batch = np.float32([[2**-10, 2**-13, 2**-16, 2**-20]])
    for scaled, expected in ((False, None), (True, 0.0)):
        optimizer = keras.optimizers.SGD()
        optimizer = tfmp.LossScaleOptimizer(optimizer, 2.0**10) if scaled else optimizer
        model.compile(optimizer, lambda y, p: keras.ops.sum(p) * 2**-10)
        (found,) = probe(examine(model), batch, np.zeros((1, 1), np.float32)).underflows
        assert (found.layer, found.unscaled, found.scaled) == ("half", 0.5, expected)


def test_a_model_that_no_precision_runs_is_said_to_be_unprobed():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    found = doctor.diagnose(model, np.zeros((3, 5), np.float32))
    assert [x.severity for x in found if x.rule == "not_probed"] == ["info"]


def test_what_is_patched_is_put_back():
    call, operation = keras.Layer.__call__, keras.Operation.__call__
    model, *batch = built(BAD["mixed_constants"].build, "mixed_float16")
    doctor.diagnose(model, *batch)
    assert (keras.Layer.__call__, keras.Operation.__call__) == (call, operation)
    assert not tf.config.functions_run_eagerly()
    assert model.head.dtype_policy.name == "float32"
    assert model.inner.dtype_policy.name == "mixed_float16"


@pytest.mark.slow  # 12 s of processor time
def test_resnet50_takes_less_than_half_a_minute():
    import time

    keras.config.set_dtype_policy("mixed_float16")
    model = models.build("resnet50", classes=10, input_shape=(64, 64, 3), stem="imagenet", seed=0)
    tfmp.compile(model, keras.optimizers.Adam(), loss=CROSSENTROPY)
    images = np.uint8(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)))
    start = time.process_time()
    assert not serious(doctor.diagnose(model, images, np.arange(2)))
    assert time.process_time() - start < 30


def test_a_gradient_that_jumps_for_rounded_inputs_is_no_departure():
    """A ReLU that opens changes the gradients of all that it sums, by as much as they are."""
    rng = np.random.default_rng(0)
    full = rng.normal(size=4096).astype("float32")
    half = full * (1 + 1e-4)
    half[:8] *= -1

    def move(jumping):
        def moved(roundings):
            values = full * (1 + 1e-4 * roundings)
            values[100 : 100 + (4 if jumping and roundings > 1 else 0)] *= -1
            return values

        return moved

    assert compare.compare(half, full, move(True), "float16", forward=False) is None
    found = compare.compare(half, full, move(False), "float16", forward=False)
    assert found.kind == "departure" and found.error > 0.05
