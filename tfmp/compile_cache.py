"""Compile once: programs that XLA has compiled are kept on disk for the next start.

TensorFlow does the keeping, told by a flag in TF_XLA_FLAGS. It reads that when it first looks for
devices, so `start` must come before. As seen on 2.21, it writes an entry to a temporary file and
renames it, so that processes can share a folder, and makes the folder anew if it is gone. But a
damaged entry, or a folder that can't be written, fails the training step; so `start` checks first,
and `explain` names what is left. An entry is found by the program, not by the device, the compiler
or whether operations are deterministic: those are in the folder's name.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
import time

import tensorflow as tf

from tfmp import files, hardware, provenance

FLAG = "--tf_xla_persistent_cache_directory"
FLAG_VALUE = re.compile(rf"""{FLAG}=("(?:\\.|[^"])*"|'[^']*'|\S*)""")
# What else decides how a program is compiled.
ENVIRONMENT = ("XLA_FLAGS", "TF_XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "NVIDIA_TF32_OVERRIDE")
MAX_BYTES = 2**30
MAX_UNUSED_SECONDS = 30 * 24 * 3600
# A ResNet-50's programs take 11 MB.
FREE_BYTES = 2**26
DAMAGED = ("Serialized cache key does not", "Serialized HLO does not", "Failed to parse serialized")


@dataclasses.dataclass(frozen=True)
class Cache:
    """A cache in force.

    Attributes:
        folder: Folder of this process's programs.
        found: Names of the programs in it at the start.
    """

    folder: pathlib.Path
    found: frozenset[str]

    @property
    def added(self) -> int:
        """Programs compiled and kept since the start, by this process or one beside it."""
        return len(_programs(self.folder) - self.found)


def start(asked, **settings):
    """Makes XLA keep its programs, for the rest of the process; call it before TensorFlow starts.

    It never fails: without a usable folder it prints a note and there is no cache. A folder that
    the user has set in TF_XLA_FLAGS stays, unchecked; an empty one there means no cache.

    Args:
        asked: "true", "false", or "auto": on a GPU. On CPUs half of the first step remains, and
            TensorFlow complains at length about CPU features for each program that it finds.
        **settings: What else the programs depend on, as JSON can write it.

    Returns:
        A `Cache`, or None if there is none.
    """
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if (folder := _told(flags)) is not None:
        return Cache(pathlib.Path(folder), _programs(folder)) if folder else None
    if asked == "false" or (asked == "auto" and not hardware.cuda_devices()):
        return None
    try:
        if hardware.started():
            raise OSError("TensorFlow had started before")
        if flags and not flags.lstrip().startswith("-"):
            raise OSError("TF_XLA_FLAGS names a file of flags")
        made = _open(settings)
    except (OSError, RuntimeError) as error:
        print(f"note: this run uses no compile cache: {error}.")
        return None
    quoted = re.sub(r'(["\\])', r"\\\1", str(made))
    os.environ["TF_XLA_FLAGS"] = f'{flags} {FLAG}="{quoted}"'.strip()
    return Cache(made, _programs(made))


def explain(message):
    """What to do about TensorFlow's error, one sentence, if it is the cache's; else None.

    Args:
        message: The error's message.
    """
    folder = _told(os.environ.get("TF_XLA_FLAGS", ""))
    signs = (folder, *DAMAGED) if folder else ()
    for line in message.splitlines():
        if any(sign in line for sign in signs):
            return (
                f"The cache of compiled programs in {folder} failed: {line.strip()}. Remove that "
                "folder, or make room, and start again; --compile_cache=false does without."
            )
    return None


def root():
    """The folder of all programs: `tfmp/xla` in the user's cache folder."""
    return files.cache_root() / "xla"


def _told(flags):
    """The folder that TensorFlow's flags name: "" for none, None if they don't say."""
    values = FLAG_VALUE.findall(flags)
    return re.sub(r"\\(.)", r"\1", values[-1].strip("\"'")) if values else None


def _open(settings):
    """Makes this process's folder, drops what is old or damaged, and checks that it has room."""
    folder = root() / _key(settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # another process may be removing the same
        _prune(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)  # what lies there will be run
    lock = _lock(folder, fcntl.LOCK_SH)
    os.utime(lock)  # says when the folder was last used; never closed: it is used until the end
    for file in folder.glob("*.pb"):
        if not _intact(file):
            file.unlink(missing_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, FREE_BYTES)
    return folder


def _key(settings):
    """Name of the folder for programs that this process can run."""
    build = tf.sysconfig.get_build_info()
    facts = settings | provenance.libraries()
    facts |= {name: os.environ.get(name) for name in ENVIRONMENT}
    facts |= {name: build.get(name) for name in ("cuda_version", "cudnn_version")}
    facts["tensorflow"] = tf.version.GIT_VERSION
    facts["gpus"] = sorted(set(hardware.cuda_devices()))
    facts["cpu"] = hardware.cpu_features()
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"tensorflow-{tf.__version__}-{digest[:16]}"


def _prune(base):
    """Removes the folders unused for long, and the longest unused until the rest is small enough.

    A folder that a running process uses stays.
    """
    folders = sorted((_last_use(path), path) for path in base.iterdir() if path.is_dir())
    total = sum(_bytes(path) for _, path in folders)
    for used, path in folders:
        if total <= MAX_BYTES and time.time() - used < MAX_UNUSED_SECONDS:
            continue
        try:
            lock = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        total -= _bytes(path)
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _lock(folder, how):
    """Opens and locks a folder's lock file; the lock lasts as long as the file is open."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, how)
    except OSError:
        os.close(lock)
        raise
    return lock


def _last_use(folder):
    file = folder / "lock"
    return (file if file.exists() else folder).stat().st_mtime


def _bytes(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def _programs(folder):
    try:
        return frozenset(name for name in os.listdir(folder) if name.endswith(".pb"))
    except OSError:  # not made yet, or removed
        return frozenset()


def _intact(file):
    """Whether an entry is whole: a protobuf of key, program and executable, up to the last byte.

    A file can lose its end when the machine stops before the disk has it.
    """
    try:
        with open(file, "rb") as entry:
            size, fields = os.fstat(entry.fileno()).st_size, []
            while tag := entry.read(1):
                length = shift = 0
                while shift < 64:  # a varint: 7 bits a byte, the lowest first
                    (byte,) = entry.read(1)
                    length, shift = length | (byte & 127) << shift, shift + 7
                    if byte < 128:
                        break
                fields.append(tag[0])
                if entry.seek(length, os.SEEK_CUR) > size:
                    return False
    except (OSError, ValueError):
        return False
    return sorted(fields) == [0x0A, 0x12, 0x1A]  # fields 1 to 3, each bytes with a length
