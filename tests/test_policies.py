"""Policies: names, scopes, maps, and changing a built model's precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfmp import policies
from tfmp.errors import UserError
from tfmp.hardware import Device
from tfmp.policies import change, scope, set_policy, with_float32
from tfmp.policies.temporary import under

MIXED = ("mixed_float16", "mixed_bfloat16")
HALF = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16", "float32": "float32"}


def gpu(name, *capability):
    return Device("gpu", name, 1, capability or None)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (gpu("Tesla K80", 3, 7), "float32"),
        (gpu("Tesla P100", 6, 0), "float32"),
        (gpu("Tesla V100", 7, 0), "mixed_float16"),
        (gpu("Tesla T4", 7, 5), "mixed_float16"),
        (gpu("A100", 8, 0), "mixed_float16"),
        (gpu("H100", 9, 0), "mixed_float16"),
        (gpu("B200", 10, 0), "mixed_float16"),
        (gpu("another maker's"), "float32"),
        (Device("tpu", "TPU", 8), "mixed_bfloat16"),
        (Device("cpu", "Xeon", 1), "float32"),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_auto_goes_by_the_device(device, expected):
    resolved = policies.resolve("auto", device)
    assert resolved.name == expected
    assert device.name in resolved.reason
    for name in ("mixed_float16", "mixed_bfloat16", "float32"):
        assert policies.resolve(name, device).name == name


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_variables_are_refused(name):
    for refuses in (policies.resolve, policies.set_global, keras.DTypePolicy):
        if refuses is keras.DTypePolicy:
            with pytest.raises(ValueError, match=f"Use 'mixed_{name}'"), scope(refuses(name)):
                pass
        else:
            with pytest.raises(ValueError, match=f"variables are half too.*'mixed_{name}'"):
                refuses(name)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"mixed_float16, .*auto\. Received: 'half'"):
        policies.resolve("half")
    with pytest.raises(ValueError, match="Received: 16"), scope(16):
        pass


def test_set_global():
    assert policies.set_global("mixed_bfloat16").name == "mixed_bfloat16"
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


@pytest.mark.parametrize(
    "policy", ["mixed_float16", keras.DTypePolicy("mixed_bfloat16"), with_float32("a", "float32")]
)
def test_scope_restores_also_after_an_exception(policy):
    keras.config.set_dtype_policy("mixed_bfloat16")
    former = keras.config.dtype_policy()
    with scope(policy) as inside:
        assert keras.config.dtype_policy() is inside
        with scope("float32"):
            assert keras.config.dtype_policy().name == "float32"
        assert keras.config.dtype_policy() is inside
    assert keras.config.dtype_policy() is former
    with pytest.raises(RuntimeError), scope(policy):
        raise RuntimeError
    assert keras.config.dtype_policy() is former


# Models of every kind: each function builds one under the global policy.


def functional():
    x = inputs = keras.Input((8, 8, 3), name="images")
    x = layers.Rescaling(1 / 255, dtype="float32", name="normalize")(x)
    x = layers.Conv2D(4, 3, use_bias=False, name="stem_conv")(x)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = x + layers.ReLU(name="relu")(x)
    x = layers.Lambda(lambda y: tf.nn.relu6(y), name="lambda")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(3, dtype="float32", name="head")(x), name="functional")


def sequential():
    model = keras.Sequential(
        [
            layers.Flatten(name="flatten"),
            layers.Dense(4, activation="relu", name="hidden"),
            layers.Dense(3, dtype="float32", name="head"),
        ]
    )
    model.build((None, 8, 8, 3))  # gives it an input of its first layer's compute dtype
    return model


def nested():
    inner_inputs = keras.Input((8, 8, 3))
    inner = keras.Model(inner_inputs, layers.Conv2D(4, 3, name="conv")(inner_inputs), name="inner")
    x = inputs = keras.Input((8, 8, 3))
    x = inner(x) + inner(x)  # shared
    x = keras.Sequential([layers.Dense(5, name="deep"), layers.ReLU()], name="block")(x)
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, dtype="float32", name="head")(x))


def composite():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Reshape((8, 24))(x)
    x = layers.MultiHeadAttention(2, 4, dropout=0.1, name="attention")(x, x)
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True, name="gru"), name="rnn")(x)
    part_inputs = keras.Input((8,))
    part = keras.Model(part_inputs, layers.Dense(4, name="part_dense")(part_inputs), name="part")
    x = layers.TimeDistributed(part, name="each")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, dtype="float32", name="head")(x))


class Subclassed(keras.Model):
    """A model that only its own code describes."""

    def __init__(self, width):
        super().__init__()
        self.body = [layers.Flatten(), layers.Dense(width, name="hidden")]
        self.head = layers.Dense(3, dtype="float32", name="head")

    def call(self, x):
        for layer in self.body:
            x = layer(x)
        return self.head(x)


def subclassed():
    model = Subclassed(4)
    model(images()[:1])
    return model


KINDS = {f.__name__: f for f in (functional, sequential, nested, composite, subclassed)}


def images():
    return np.random.default_rng(0).uniform(0, 255, (6, 8, 8, 3)).astype("float32")


def computing(model):
    """The compute dtypes of all layers but the pinned ones, the models' own among them."""
    return {x.compute_dtype for x in [model, *change.sublayers(model)]} - {"float32"}


@pytest.mark.parametrize("policy", MIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_gives_the_same_bits(kind, policy):
    keras.utils.set_random_seed(1)
    model = KINDS[kind]()
    before = model.predict(images(), verbose=0)
    weights = [w.copy() for w in model.get_weights()]
    mixed = set_policy(model, policy)
    assert computing(mixed) == {HALF[policy]}
    after = mixed.predict(images(), verbose=0)
    # Only the new precision can tell them apart.
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(before, after, rtol=0.1, atol=0.05 * np.abs(before).max())
    back = set_policy(mixed, "float32")
    assert computing(back) == set()
    np.testing.assert_array_equal(back.predict(images(), verbose=0), before)
    for a, b in zip(weights, back.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_the_authors_pins_stay(kind):
    with scope("mixed_float16"):
        model = KINDS[kind]()
    pinned = {x.name for x in change.sublayers(model) if x.compute_dtype == "float32"}
    assert "head" in pinned
    for policy in ("mixed_bfloat16", "float32", "mixed_float16"):
        model = set_policy(model, policy)
        layers_now = change.sublayers(model)
        assert {x.compute_dtype for x in layers_now if x.name not in pinned} == {HALF[policy]}
        assert {x.compute_dtype for x in layers_now if x.name in pinned} == {"float32"}
        assert model.dtype_policy.name == policy


@pytest.mark.parametrize("kind", ["functional", "sequential", "nested", "composite"])
def test_nothing_symbolic_stays_half(kind):
    with scope("mixed_float16"):
        model = KINDS[kind]()
    model.predict(images(), verbose=0)
    back = set_policy(model, "float32")
    for part in [back, *change.sublayers(back)]:
        if isinstance(part, keras.Model):
            assert {t.dtype for t in [*part.inputs, *part.outputs]} == {"float32"}
    assert not policies.uses_float16(back)
    # The given model is as it was.
    assert model.dtype_policy.name == "mixed_float16"
    assert policies.uses_float16(model) and policies.policy_of(model) == "mixed_float16"


def test_a_float32_model_keeps_outputs_and_raw_inputs_float32():
    x = inputs = keras.Input((3,))
    x = layers.Normalization(mean=[1.0] * 3, variance=[2.0] * 3, name="scaled")(x)
    x = layers.Dense(4, name="hidden")(x)
    last = keras.Sequential([layers.Dense(4, name="inner"), layers.Dense(2, name="logits")])
    model = set_policy(keras.Model(inputs, last(x)), "mixed_float16")
    dtypes = {x.name: x.compute_dtype for x in change.sublayers(model)}
    assert dtypes["scaled"] == dtypes["logits"] == "float32"
    assert dtypes["hidden"] == dtypes["inner"] == "float16"
    assert model.output.dtype == "float32"
    assert model.predict(np.ones((2, 3)), verbose=0).dtype == np.float32


def test_adapted_statistics_regain_float32():
    data = np.random.default_rng(0).normal(1000, 3, (64, 4)).astype("float32")
    with scope("mixed_float16"):
        inputs = keras.Input((4,))
        layer = layers.Normalization(name="scaled")
        layer.adapt(data)
        model = keras.Model(inputs, layers.Dense(2, dtype="float32")(layer(inputs)))
    back = set_policy(model, with_float32("scaled", "float32"))
    expected = (data - data.mean(0)) / data.std(0)
    np.testing.assert_allclose(back.get_layer("scaled")(data), expected, atol=1e-3)


def test_a_compiled_model_wants_a_new_compile():
    model = functional()
    model.compile("sgd", "mse")
    model.fit(images(), np.zeros((6, 3)), verbose=0)
    mixed = set_policy(model, "mixed_float16")
    assert model.compiled
    assert not mixed.compiled
    with pytest.raises(ValueError, match="compile"):
        mixed.fit(images(), np.zeros((6, 3)), verbose=0)
    mixed.compile("sgd", "mse")
    assert isinstance(mixed.optimizer, keras.optimizers.LossScaleOptimizer)
    mixed.fit(images(), np.zeros((6, 3)), verbose=0)


def test_a_subclassed_model_trains_in_the_new_precision():
    model = subclassed()
    model.compile("sgd", "mse")
    model.fit(images(), np.zeros((6, 3)), verbose=0)
    assert set_policy(model, "mixed_float16") is model
    with pytest.raises(ValueError, match="compile"):
        model.fit(images(), np.zeros((6, 3)), verbose=0)
    model.compile("sgd", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.fit(images(), np.zeros((6, 3)), verbose=0)


def test_seed_states_and_trainable_flags_are_copied():
    model = functional()
    model.get_layer("stem_bn").trainable = False
    dropout = model.get_layer("dropout")
    dropout(np.ones((2, 4)), training=True)  # moves its seed on
    copied = set_policy(model, "mixed_float16")
    assert not copied.get_layer("stem_bn").trainable
    assert copied.get_layer("stem_conv").trainable
    state = copied.get_layer("dropout").seed_generator.state
    np.testing.assert_array_equal(state, dropout.seed_generator.state)


def test_a_map_reaches_layers_and_their_sublayers():
    model = set_policy(composite(), with_float32(["attention", "e.ch"], "mixed_float16"))
    dtypes = {x.name: x.compute_dtype for x in change.sublayers(model)}
    for name in ("attention", "query", "each", "part_dense", "head"):
        assert dtypes[name] == "float32"
    # Keras numbers the names of the attention's own softmax and dropout.
    assert {d for n, d in dtypes.items() if n.startswith(("softmax", "dropout"))} == {"float32"}
    assert dtypes["forward_gru"] == dtypes["rnn"] == "float16"
    model.compile("sgd", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_a_map_without_a_match_names_near_layers():
    with pytest.raises(ValueError, match=r"'stem_convv' \(near: stem_conv"):
        set_policy(functional(), with_float32(["head", "stem_convv"], "mixed_float16"))
    with pytest.raises(ValueError, match="names or regular expressions"):
        with_float32(["stem_("], "mixed_float16")


def test_a_map_is_not_changed_by_its_use():
    policy_map = with_float32("stem_.*", "mixed_float16")
    with scope(policy_map):
        model = functional()
    set_policy(model, "float32")
    set_policy(model, policy_map)
    assert list(policy_map) == ["stem_.*"]


def test_map_file_round_trip(tmp_path):
    file = tmp_path / "policy.json"
    policies.save(with_float32(["stem_conv", "stage1_.*"], "mixed_bfloat16"), file)
    loaded = policies.load(file)
    assert loaded.default_policy.name == "mixed_bfloat16"
    assert {p: loaded[p].name for p in loaded} == {"stem_conv": "float32", "stage1_.*": "float32"}
    with pytest.raises(ValueError, match="float32 for every entry"):
        other = {"a": keras.DTypePolicy("mixed_float16")}
        policies.save(keras.dtype_policies.DTypePolicyMap("float32", other), file)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"policy": "float32"}', '{"policy": 1, "float32": []}',
             '{"policy": "float32", "float32": "head"}', '{"policy": "float32", "float32": [1]}',
             "[" * 100_000]
)  # fmt: skip
def test_a_malformed_map_file_is_refused(tmp_path, text):
    file = tmp_path / "policy.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"policy\.json: expected JSON such as"):
        policies.load(file)


@pytest.mark.parametrize("kind", KINDS)
def test_uses_float16(kind):
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        with scope(policy):
            model = KINDS[kind]()
        assert policies.uses_float16(model) == (policy == "mixed_float16")
        assert policies.policy_of(model) == policy
    model = KINDS[kind]()
    change.sublayers(model)[-1].dtype_policy = "mixed_float16"
    assert policies.uses_float16(model) and policies.policy_of(model) == "mixed_float16"


def test_what_cannot_be_changed_is_refused():
    with pytest.raises(ValueError, match="expected a built model"):
        set_policy(keras.Sequential([layers.Dense(2)]), "mixed_float16")
    inputs = keras.Input((2,))
    half = keras.Model(inputs, layers.Dense(2, dtype="float16", name="half")(inputs))
    with pytest.raises(ValueError, match="'half' with policy 'float16'"):
        set_policy(half, "mixed_float16")
    with pytest.raises(ValueError, match="'mixed_float16'"):
        set_policy(functional(), "float16")


def test_a_layer_shared_by_composite_layers_is_refused():
    dense = layers.Dense(4)
    x = inputs = keras.Input((3, 4))
    x = layers.TimeDistributed(dense, name="each")(x)
    model = keras.Model(inputs, dense(x))
    with pytest.raises(ValueError, match="shared"):
        set_policy(model, "mixed_float16")


def test_integer_and_string_layers_stay():
    inputs = {"word": keras.Input((1,), dtype="string", name="word"),
              "count": keras.Input((1,), dtype="int32", name="count")}  # fmt: skip
    x = layers.StringLookup(vocabulary=["a", "b"], name="lookup")(inputs["word"])
    x = layers.Flatten()(layers.Embedding(3, 4, name="embedding")(x))
    x = layers.Concatenate()([x, layers.CategoryEncoding(5)(inputs["count"])])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    data = {"word": tf.constant([["a"], ["c"]]), "count": tf.constant([[1], [4]])}
    before = model(data)
    mixed = set_policy(model, "mixed_float16")
    assert mixed.get_layer("lookup").dtype == "string"
    assert mixed.get_layer("embedding").compute_dtype == "float16"
    np.testing.assert_array_equal(set_policy(mixed, "float32")(data), before)


def test_a_train_step_of_its_own_survives():
    class Trainer(keras.Model):
        def train_step(self, data):
            return {"mine": 1.0}

    inputs = keras.Input((2,))
    model = set_policy(Trainer(inputs, layers.Dense(2)(inputs)), "mixed_float16")
    assert type(model) is Trainer
    model.compile("sgd", "mse")
    assert model.fit(np.ones((2, 2)), np.ones((2, 2)), verbose=0).history == {"mine": [1.0]}


def test_a_layer_without_a_config_is_named():
    class Odd(layers.Layer):
        def __init__(self, function):
            super().__init__(name="odd")
            self.function = function

        def call(self, x):
            return self.function(x)

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Odd(lambda x: x)(inputs))
    with pytest.raises(ValueError, match=r"'odd' \(Odd\).*get_config"):
        set_policy(model, "mixed_float16")


def test_under_a_policy_for_a_while():
    """As `set_policy` makes it, on the model itself; what its author pinned stays."""
    with policies.scope("mixed_float16"):
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(3, name="one"),
                keras.layers.Dense(3, name="two"),
                keras.layers.Dense(1, dtype="float32", name="head"),
            ]
        )
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    for policy in (policies.with_float32("two", "mixed_float16"), "float32", "mixed_bfloat16"):
        copy = policies.set_policy(model, policy)
        before = model(x)
        with under(model, policy):
            inside = [layer.compute_dtype for layer in model.layers]
            assert inside == [layer.compute_dtype for layer in copy.layers]
            np.testing.assert_array_equal(model(x), copy(x))
            assert model.predict(x, verbose=0).tolist() == copy.predict(x, verbose=0).tolist()
        dtypes = [layer.compute_dtype for layer in model.layers]
        assert dtypes == ["float16", "float16", "float32"]
        np.testing.assert_array_equal(model(x), before)
        assert model.compiled
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    with pytest.raises(UserError, match="Expected a built model"), under(unbuilt, "float32"):
        pass
