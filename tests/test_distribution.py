"""Which strategy a name stands for, and what is said of GPUs and batches that don't fit."""

import types

import pytest
import tensorflow as tf

from tfmp import distribution, errors


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes TensorFlow list GPUs, and returns what MirroredStrategy is asked for.

    Its arguments are the kinds of the cards; `logical` is the number of devices on each.
    """
    asked = types.SimpleNamespace(devices=None, cross_device_ops=None)

    def mirrored(devices, cross_device_ops=None):
        asked.devices, asked.cross_device_ops = devices, cross_device_ops
        return asked

    def make(*kinds, logical=1):
        cards = [types.SimpleNamespace(name=f"card {kind}", kind=kind) for kind in kinds]
        found = [types.SimpleNamespace(name=f"GPU:{i}") for i in range(len(cards) * logical)]
        cpus = tf.config.list_logical_devices("CPU")
        monkeypatch.setattr(
            tf.config, "list_logical_devices", lambda kind: found if kind == "GPU" else cpus
        )
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: cards)
        monkeypatch.setattr(
            tf.config.experimental,
            "get_device_details",
            lambda card: {"device_name": card.kind} if card.kind else {},
        )
        monkeypatch.setattr(tf.distribute, "MirroredStrategy", mirrored)
        return asked

    return make


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("none", []),
        ("none", ["H100"]),
        ("none", ["H100", "A100"]),
        ("auto", []),
        ("auto", ["H100"]),
    ],
)
def test_none_and_auto_on_one_device_are_no_strategy(gpus, name, kinds):
    asked = gpus(*kinds)
    assert distribution.resolve(name) is tf.distribute.get_strategy()
    assert asked.devices is None


@pytest.mark.parametrize("name", ["auto", "mirrored"])
def test_several_gpus_of_a_kind_are_mirrored(gpus, name):
    asked = gpus("H100", "H100")
    assert distribution.resolve(name) is asked
    assert asked.devices == ["GPU:0", "GPU:1"]
    assert asked.cross_device_ops is None  # NCCL


def test_replicas_that_share_a_card_do_without_nccl(gpus):
    asked = gpus("H100", logical=2)
    assert distribution.resolve("auto") is asked
    assert asked.devices == ["GPU:0", "GPU:1"]
    assert isinstance(asked.cross_device_ops, tf.distribute.HierarchicalCopyAllReduce)


def test_mirrored_without_gpus_takes_all_logical_cpus(gpus):
    asked = gpus()
    distribution.resolve("mirrored")
    assert asked.devices == [cpu.name for cpu in tf.config.list_logical_devices("CPU")]
    assert len(asked.devices) == 2


@pytest.mark.parametrize("name", ["auto", "mirrored"])
def test_gpus_of_different_kinds_are_named_and_refused(gpus, name):
    gpus("NVIDIA H100", "NVIDIA A100")
    with pytest.raises(errors.UserError, match="Received: NVIDIA H100, NVIDIA A100") as error:
        distribution.resolve(name)
    assert "CUDA_VISIBLE_DEVICES" in str(error.value)
    assert "--strategy=none" in str(error.value)


def test_gpus_that_tell_no_name_are_taken_as_equal(gpus):
    asked = gpus(None, None)
    assert distribution.resolve("auto") is asked


@pytest.mark.parametrize("name", ["", "Mirrored", "multiworker", None])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(
        errors.UserError, match="out of auto, none, mirrored, multi_worker"
    ) as error:
        distribution.resolve(name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("batch_size", "replicas", "parts"), [(1, 1, 1), (8, 2, 1), (8, 2, 4), (12, 3, 2)]
)
def test_a_batch_that_divides_is_taken(batch_size, replicas, parts):
    assert distribution.check_batch_size(batch_size, replicas, parts) is None


@pytest.mark.parametrize(
    ("batch_size", "replicas", "parts", "said"),
    [
        (63, 2, 1, "that 2 replicas can share evenly. Received: 63. Take 62 or 64."),
        (
            63,
            2,
            4,
            "that 2 replicas in 4 parts each can share evenly. Received: 63. Take 56 or 64.",
        ),
        (3, 4, 1, "that 4 replicas can share evenly. Received: 3. Take 4."),
        (7, 1, 2, "that 1 replicas in 2 parts each can share evenly. Received: 7. Take 6 or 8."),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_next_ones(
    batch_size, replicas, parts, said
):
    with pytest.raises(errors.UserError) as error:
        distribution.check_batch_size(batch_size, replicas, parts)
    assert str(error.value) == f"Expected a batch size {said}"


def test_without_a_strategy_there_is_one_replica_of_no_device_in_particular():
    strategy = tf.distribute.get_strategy()
    assert distribution.devices(strategy) == ("",)
    assert distribution.replica_index() == 0


class Mirrored(tf.distribute.MirroredStrategy):
    """Of GPUs that are not there."""

    def __init__(self, own_reduction=False):
        ops = object()
        self.stub = types.SimpleNamespace(
            _collective_ops=ops, _cross_device_ops=object() if own_reduction else ops
        )

    @property
    def extended(self):
        return self.stub


class Workers(tf.distribute.MultiWorkerMirroredStrategy):
    """Of two GPUs in each process that are not there."""

    def __init__(self, communication):
        options = tf.distribute.experimental.CommunicationOptions(implementation=communication)
        self.stub = types.SimpleNamespace(_communication_options=options)

    @property
    def extended(self):
        return self.stub


COMMUNICATION = tf.distribute.experimental.CommunicationImplementation


@pytest.mark.parametrize(
    ("strategy", "kind", "logical", "expected"),
    [
        (Workers(COMMUNICATION.NCCL), "GPU", 4, True),  # of two workers
        (Workers(COMMUNICATION.AUTO), "GPU", 4, True),
        (Workers(COMMUNICATION.NCCL), "CPU", 0, False),
        (Workers(COMMUNICATION.RING), "GPU", 4, False),
        (Mirrored(), "GPU", 2, True),
        (Mirrored(), "CPU", 2, False),
        (Mirrored(), "GPU", 4, False),  # two on a card: NCCL refuses
        (Mirrored(own_reduction=True), "GPU", 2, False),
        (types.SimpleNamespace(), "GPU", 2, False),
    ],
)
def test_where_xla_adds_up_over_replicas(monkeypatch, strategy, kind, logical, expected):
    names = [f"/job:localhost/replica:0/task:0/device:{kind}:{i}" for i in range(2)]
    monkeypatch.setattr(distribution, "devices", lambda strategy: names)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["GPU"] * logical)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU"] * 2)
    assert distribution.sums_within_xla(strategy) == expected
