"""The cache of compiled programs: where it lies, what makes it anew, and what can't break it."""

import ctypes
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import time
import types

import keras
import pytest
import tensorflow as tf

from tfmp import compile_cache, hardware, provenance, training
from tfmp.errors import TfmpError
from tfmp.training import loop

# Two layers, one step: prints what the cache did and the step's result to the last bit.
PROGRAM = """
import json
from tfmp import compile_cache
cache = compile_cache.start("true")
import tensorflow as tf
kernel = tf.Variable(tf.random.stateless_normal((16, 16), (1, 2)))

@tf.function(jit_compile=True)
def step(x):
    kernel.assign_add(tf.transpose(x) @ tf.tanh(x @ tf.cast(tf.cast(kernel, tf.float16), x.dtype)))

step(tf.random.stateless_normal((8, 16), (3, 4)))
print(json.dumps([str(cache.folder), len(cache.found), cache.added, kernel.numpy().tolist()]))
"""


def run_program(home):
    """Runs `PROGRAM` with a cache of its own."""
    env = os.environ | {"XDG_CACHE_HOME": str(home), "TF_XLA_FLAGS": ""}
    env["PYTHONPATH"] = str(pathlib.Path(compile_cache.__file__).parents[1])
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert ended.returncode == 0, ended.stderr
    *_, last = ended.stdout.splitlines()
    return json.loads(last)


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A cache folder of the test's own, on a machine without GPUs where nothing has started."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TF_XLA_FLAGS")
    monkeypatch.setattr(hardware, "started", lambda: False)
    monkeypatch.setattr(hardware, "cuda_devices", list)
    return tmp_path


def entry(*lengths):
    """An entry as TensorFlow writes it: three fields with a length, of up to 127 bytes here."""
    fields = zip((0x0A, 0x12, 0x1A), lengths, strict=True)
    return b"".join(bytes([tag, length]) + bytes(length) for tag, length in fields)


def test_the_second_start_compiles_nothing_and_computes_the_same(tmp_path):
    home = tmp_path / 'my "cache" folder'
    folder, found, added, result = run_program(home)
    assert pathlib.Path(folder).parent == home / "tfmp" / "xla"
    assert (found, added) == (0, 1)
    (file,) = pathlib.Path(folder).glob("*.pb")
    written = file.stat().st_mtime_ns
    assert run_program(home) == [folder, 1, 0, result]
    assert file.stat().st_mtime_ns == written
    # A file that lost its end would fail the step; it is compiled anew.
    os.truncate(file, file.stat().st_size - 10)
    assert run_program(home) == [folder, 0, 1, result]


def test_it_is_on_for_gpus_alone_unless_asked_for(home, monkeypatch):
    assert compile_cache.start("auto") is None
    assert compile_cache.start("false") is None
    assert "TF_XLA_FLAGS" not in os.environ and not list(home.iterdir())
    monkeypatch.setattr(hardware, "cuda_devices", lambda: ["Tesla T4 7.5"])
    cache = compile_cache.start("auto")
    assert os.environ["TF_XLA_FLAGS"] == f'{compile_cache.FLAG}="{cache.folder}"'
    assert cache.folder.stat().st_mode & 0o077 == 0
    # A second run in this process has the same one: TensorFlow reads the flag once.
    assert compile_cache.start("auto", deterministic=True) == cache


def test_flags_of_the_user_stay(home, monkeypatch):
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_auto_jit=0")
    compile_cache.start("true")
    assert os.environ["TF_XLA_FLAGS"].startswith(f"--tf_xla_auto_jit=0 {compile_cache.FLAG}=")
    for flags, folder in {
        f"{compile_cache.FLAG}=/mine --x=1": "/mine",
        f"{compile_cache.FLAG}='/my own'": "/my own",
    }.items():
        monkeypatch.setenv("TF_XLA_FLAGS", flags)
        assert str(compile_cache.start("true").folder) == folder
        assert os.environ["TF_XLA_FLAGS"] == flags
    monkeypatch.setenv("TF_XLA_FLAGS", f"{compile_cache.FLAG}=")
    assert compile_cache.start("true") is None


@pytest.mark.parametrize("reason", ["started", "file", "flags", "full"])
def test_without_a_usable_folder_there_is_a_note_and_no_cache(home, monkeypatch, capsys, reason):
    if reason == "started":
        monkeypatch.setattr(hardware, "started", lambda: True)
    elif reason == "file":
        (home / "tfmp").touch()
    elif reason == "flags":
        monkeypatch.setenv("TF_XLA_FLAGS", "flags.txt")
    else:
        monkeypatch.setattr(compile_cache, "FREE_BYTES", 2**62)
    before = os.environ.get("TF_XLA_FLAGS")
    assert compile_cache.start("true") is None
    assert capsys.readouterr().out.startswith("note: this run uses no compile cache: ")
    assert os.environ.get("TF_XLA_FLAGS") == before


def test_this_process_has_started_tensorflow():
    tf.config.list_physical_devices()
    assert hardware.started()


def test_what_decides_how_a_program_is_compiled_is_in_the_folder_name(home, monkeypatch):
    names = [compile_cache._key({}), compile_cache._key({"deterministic": True})]
    for target, name, value in [
        (hardware, "cuda_devices", lambda: ["Tesla T4 7.5"]),
        (hardware, "cpu_features", lambda: "another CPU: sse2"),
        (tf.version, "GIT_VERSION", "another"),
        (tf.sysconfig, "get_build_info", lambda: {"cuda_version": "99"}),
        (tf.sysconfig, "get_build_info", lambda: {"cudnn_version": "99"}),
        (provenance, "libraries", lambda: {"nvidia-cublas-cu12": "99"}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value)
            names.append(compile_cache._key({}))
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
        names.append(compile_cache._key({}))
    assert len(set(names)) == len(names)
    assert compile_cache._key({}) == names[0]


def test_a_run_tells_what_entries_do_not_know_of(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(compile_cache, "start", lambda *words, **names: told.append((words, names)))
    training.start("x", training.TrainingConfig(tf32=False, workdir=str(tmp_path / "run")))
    assert told == [(("auto",), {"deterministic": False, "tf32": False})]


def test_damaged_entries_are_removed_and_whole_ones_stay(home):
    folder = compile_cache._open({})
    whole = entry(3, 100, 20)
    files = {"whole": whole, "empty": b"", "short": whole[:-1], "long": whole + b"\0"}
    files |= {"head": whole[:1], "text": b"no protobuf", "zeros": bytes(100)}
    for name, content in files.items():
        (folder / f"{name}.pb").write_bytes(content)
    assert compile_cache._open({}) == folder
    assert [path.name for path in folder.glob("*.pb")] == ["whole.pb"]


def make_folder(base, name, size=0, days=0.0):
    (base / name).mkdir(parents=True)
    (base / name / "program.pb").write_bytes(bytes(size))
    (base / name / "lock").touch()
    used = time.time() - days * 24 * 3600
    os.utime(base / name / "lock", (used, used))
    return base / name


def test_folders_unused_for_a_month_go_and_those_in_use_stay(tmp_path):
    old, used, new = (make_folder(tmp_path, *x) for x in [("a", 9, 31), ("b", 9, 31), ("c", 9, 29)])
    with open(used / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        compile_cache._prune(tmp_path)
    assert not old.exists() and used.exists() and new.exists()


def test_the_longest_unused_go_until_the_rest_is_small_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 1000)
    for name, days in {"new": 1, "middle": 2, "oldest": 3}.items():
        make_folder(tmp_path, name, 500, days)
    compile_cache._prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "middle"}


def test_a_used_folder_is_locked_and_young(home):
    folder = compile_cache._open({})
    os.utime(folder / "lock", (0, 0))
    compile_cache._prune(folder.parent)
    assert folder.exists()
    compile_cache._open({})
    assert (folder / "lock").stat().st_mtime > time.time() - 60


def test_a_folder_removed_meanwhile_counts_nothing(home):
    cache = compile_cache.start("true")
    (cache.folder / "x.pb").write_bytes(entry(1, 1, 1))
    assert cache.added == 1
    for path in cache.folder.iterdir():
        path.unlink()
    cache.folder.rmdir()
    assert cache.added == 0


@pytest.mark.parametrize(
    "kind, message",
    [
        (
            tf.errors.ResourceExhaustedError,
            "Graph error:\nFOLDER/x.pb.tmp; No space left",
        ),
        (tf.errors.InvalidArgumentError, "Serialized HLO does not match.\nGraph node"),
    ],
)
def test_a_failing_cache_is_named(home, kind, message):
    cache = compile_cache.start("true")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    message = message.replace("FOLDER", str(cache.folder))
    with (
        pytest.raises(TfmpError, match="--compile_cache=false") as raised,
        loop.naming_errors(training.TrainingConfig(), model),
    ):
        raise kind(None, None, message)
    assert str(cache.folder) in str(raised.value) and "Graph" not in str(raised.value)
    assert compile_cache.explain("OOM when allocating") is None


def test_cuda_devices_are_asked_from_the_driver(monkeypatch):
    """The driver is played: each function gets what ctypes passes and returns CUDA's 0."""

    def count(pointer):
        pointer._obj.value = 2
        return 0

    def name(buffer, size, device):
        buffer.value = b"NVIDIA H100"
        return 0

    def attribute(pointer, which, device):
        pointer._obj.value = {75: 9, 76: 0}[which]
        return 0

    driver = types.SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDeviceGetCount=count,
        cuDeviceGet=lambda pointer, index: 0,
        cuDeviceGetName=name,
        cuDeviceGetAttribute=attribute,
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda file: driver)
    assert hardware.cuda_devices() == ["NVIDIA H100 9.0"] * 2
    driver.cuInit = lambda flags: 100  # CUDA_ERROR_NO_DEVICE
    assert hardware.cuda_devices() == []
