"""What `diagnose` and `fix` promise whatever is found: names, order, a model left as it was."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases.scaling import HalfScaled, two_scales
from keras import layers, ops
from keras.src.ops.operation import Operation

import tfmp
from tfmp import doctor, errors
from tfmp.doctor import subject

HALF = "mixed_float16"
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")


class Masked(layers.Layer):
    """NaN wherever a value is above 0, in float16."""

    def call(self, x):
        return x + ops.cast(x <= 0, x.dtype) * -1e9


class Holder(layers.Layer):
    """Sublayers in a list and in a dict."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Masked(dtype=HALF, name="one"), Masked(dtype=HALF, name="two")]
        self.named = {"three": Masked(dtype=HALF, name="three")}

    def call(self, x):
        for layer in [*self.blocks, *self.named.values()]:
            x = layer(x)
        return x


def nested():
    inputs = keras.Input((5, 4))
    inner = keras.Sequential([keras.Input((5, 4)), Masked(dtype=HALF, name="mask")], name="inner")
    x = Holder(dtype=HALF, name="holder")(inner(inputs))
    lstm = layers.LSTM(3, dtype=HALF, return_sequences=True, name="lstm")
    x = layers.Bidirectional(lstm, dtype=HALF, name="both")(x)
    x = layers.TimeDistributed(layers.Dense(4, dtype=HALF, name="dense"), dtype=HALF, name="each")(
        x
    )
    x = layers.MultiHeadAttention(2, 4, dtype=HALF, name="attention")(x, x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32", name="head")(x))


def unit_norm():
    inputs = keras.Input((64,))
    x = layers.UnitNormalization(dtype=HALF, name="unit")(inputs)
    return keras.Model(inputs, layers.Dense(1, dtype="float32")(x))


def found(model, rule, **kwargs):
    return [x.layer for x in doctor.diagnose(model, **kwargs) if x.rule == rule]


def test_nested_layers_have_paths():
    model = nested()
    assert {x.path for x in subject.parts(model) if not x.hidden} == {
        "inner",
        "inner/mask",
        "holder",
        "holder/one",
        "holder/two",
        "holder/three",
        "both",
        "both/forward_lstm",
        "both/backward_lstm",
        "each",
        "each/dense",
        "attention",
        "head",
    }
    # An LSTM's cell and attention's parts have the name that a user can do something about.
    hidden = {x.path for x in subject.parts(model) if x.hidden}
    assert hidden == {"both/forward_lstm", "both/backward_lstm", "attention"}
    expected = ["inner/mask", "holder/one", "holder/two", "holder/three"]
    assert found(model, "constant_overflow") == expected


def test_findings_come_by_severity_and_their_evidence_is_json():
    with tfmp.policies.scope(HALF):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1001), layers.Softmax()])
    findings = doctor.diagnose(model)
    severities = [x.severity for x in findings]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert {"error", "info"} <= set(severities)
    findings += doctor.diagnose(nested()) + doctor.diagnose(unit_norm())
    json.dumps([dict(x.evidence) for x in findings], allow_nan=False)


def test_a_model_stays_as_it_was():
    with tfmp.policies.scope(HALF):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(8, activity_regularizer="l2", dtype="float32"),
                layers.UnitNormalization(name="unit"),
                layers.BatchNormalization(),
                layers.Dropout(0.5, seed=1),
                layers.Dense(1, dtype="float32"),
            ]
        )
    tfmp.compile(model, "adam", loss="mse")
    before = [np.array(v) for v in model.variables]
    policies = [layer.dtype_policy for layer in model._flatten_layers()]
    entry = Operation.__call__
    assert found(model, "lossy_layer") == ["unit"]
    assert Operation.__call__ is entry
    assert [layer.dtype_policy for layer in model._flatten_layers()] == policies
    for value, variable in zip(before, model.variables, strict=True):
        assert (value == np.array(variable)).all()
    assert not model._losses and not model.layers[0]._losses
    assert np.isfinite(model.evaluate(np.ones((4, 4)), np.ones((4, 1)), verbose=0))


class Untraceable(keras.Model):
    """Looks at values, which only `run_eagerly` allows."""

    def __init__(self):
        super().__init__()
        self.mask = Masked(dtype=HALF, name="mask")
        self.head = layers.Dense(1, dtype="float32", name="head")

    def call(self, x):
        return self.head(self.mask(x * float(np.asarray(x).max())))


def test_a_model_that_can_not_be_traced_is_looked_at_in_parts():
    model = Untraceable()
    assert found(model, "not_traced") == [None]  # not built: nothing can be said
    model(np.ones((1, 4)))
    assert found(model, "constant_overflow") == ["mask"]
    assert found(model, "not_traced") == [None]


def test_inputs_build_a_model():
    model = Untraceable()
    assert found(model, "constant_overflow", inputs=np.ones((1, 4))) == ["mask"]
    assert model.built


class TwoInputs(keras.Model):
    """Floats and integers."""

    def __init__(self):
        super().__init__(dtype=HALF)
        self.table = layers.Embedding(5000, 4, dtype=HALF, name="table")
        self.head = layers.Dense(1, dtype="float32", name="head")

    def call(self, inputs):
        x = self.table(inputs["ids"]) + inputs["x"][:, None, :]
        return self.head(tf.reduce_mean(x, 1) + 1e6)


def test_a_batch_says_the_dtypes():
    model = TwoInputs()
    batch = {"ids": np.ones((2, 3), "int32"), "x": np.ones((2, 4), "float32")}
    assert found(model, "constant_overflow", inputs=batch) == [None]
    assert found(model, "rounded_ids", inputs=batch) == []


def test_optimizers_have_the_names_of_the_attributes_that_hold_them():
    model = Untraceable()
    model.compile("sgd")
    model.first, model.others = keras.optimizers.SGD(), {"a": keras.optimizers.SGD()}
    names = [name for name, _ in subject.examine(model).optimizers]
    assert names == ["optimizer", "first", "others['a']"]


def test_an_optimizer_of_a_loop_of_ones_own():
    with tfmp.policies.scope(HALF):
        model = keras.Sequential(
            [keras.Input((4,)), layers.Dense(4), layers.Dense(1, dtype="float32")]
        )
    assert found(model, "no_loss_scale", optimizer=keras.optimizers.SGD()) == [None]
    assert not found(model, "no_loss_scale", optimizer=tfmp.wrap("sgd"))
    assert not found(model, "no_loss_scale", optimizer="sgd")  # as compile takes it


def test_fix_changes_the_layers_that_findings_name_and_no_other():
    model = nested()
    fixed = doctor.fix(model, doctor.diagnose(model))
    assert fixed is not model
    held = [x for x in subject.parts(fixed) if not x.hidden and x.path != "inner"]
    dtypes = {x.path: x.layer.compute_dtype for x in held}
    assert {path for path, dtype in dtypes.items() if dtype == "float32"} == {
        "inner/mask",
        "holder/one",
        "holder/two",
        "holder/three",
        "head",
    }
    for a, b in zip(model.get_weights(), fixed.get_weights(), strict=True):
        assert (a == b).all()
    assert not found(fixed, "constant_overflow")
    assert doctor.fix(model, []) is model


def test_fix_refuses_findings_of_another_model():
    other = doctor.Finding("lossy_layer", "warning", "x", "", {}, ("x",))
    with pytest.raises(errors.UserError, match="findings of this model"):
        doctor.fix(nested(), [other])
    with pytest.raises(errors.UserError, match="Expected a Keras model"):
        doctor.diagnose(layers.Dense(1))


def test_class_ids_that_are_half_already():
    """float16 has no odd integer above 2048: the model learns the class beside."""

    def learned(dtype):
        inputs = keras.Input((1,))
        model = keras.Model(inputs, keras.layers.Dense(3000, name="last")(inputs))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
        x, y = np.zeros((1, 1)), np.array([2501], dtype)
        model.fit(x, y, verbose=0)
        rules = {(f.rule, f.severity) for f in doctor.diagnose(model, x, y)}
        return int(np.argmax(model.get_layer("last").bias.numpy())), rules

    found = "half_labels", "error"
    chosen, rules = learned("float16")
    assert chosen == 2500 and found in rules
    chosen, rules = learned("int32")
    assert chosen == 2501 and found not in rules


def test_the_optimizer_that_compile_got_does_not_hide_a_second_one():
    model = two_scales(HalfScaled)
    x = np.ones((8, 1), "float32")
    for optimizer in (model.g_optimizer, [model.g_optimizer, model.d_optimizer], None):
        found = doctor.diagnose(model, x, optimizer=optimizer)
        assert [f.evidence["optimizers"] for f in found if f.rule == "unscaled_loss"] == [
            ["d_optimizer"]
        ]
