"""Corrupted images on disk: a folder for a set of images, a file for a corruption and severity.

A file is numpy's own format (`np.load(file, mmap_mode="r")` reads it), images in their order, with
the SHA-256 of all that behind it, in 64 hexadecimal digits. It gets its name when it is whole, so
that whatever ends the program, what has a name is done. `made_with.json` beside the files says
what they are.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import pathlib
import re

import numpy as np

from tfmp import files
from tfmp.data.base import DataError

# Another one makes all sets anew.
FORMAT = 1
DIGEST_BYTES = 64


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of a set of images.

    Attributes:
        path: Where they are, or will be.
        facts: What they depend on.
        shape: Of each file's array: [examples, height, width, channels].
    """

    path: pathlib.Path
    facts: dict
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        """What a file begins with."""
        stream = io.BytesIO()
        described = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, described)
        return stream.getvalue()

    @property
    def file_bytes(self) -> int:
        """Size of a file."""
        return len(self.header) + int(np.prod(self.shape)) + DIGEST_BYTES

    def file(self, name, severity) -> pathlib.Path:
        """Path of a corruption's images."""
        return self.path / f"{name}-{severity}.npy"

    def origin(self, name, severity) -> dict:
        """What a file was made with.

        Raises:
            DataError: `made_with.json` doesn't say.
        """
        file = self.file(name, severity)
        found = self._origins().get(file.name)
        if found is None:
            raise DataError(
                f"Expected {self.path / 'made_with.json'} to say what {file.name} was made with. "
                f"Received: nothing on it. Remove {self.path}, and it is made anew."
            )
        return found

    def _origins(self):
        """By the names of the files; none where the file that says so is not there or damaged."""
        try:
            made = json.loads((self.path / "made_with.json").read_text())["made"]
            return {name: one["with"] for one in made for name in one["files"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def add_origin(self, origin, wanted):
        """Writes down what files are about to be made with; those of before keep theirs.

        Args:
            origin: A dict that JSON can write.
            wanted: The files' pairs of corruption and severity.
        """
        new = dict.fromkeys((self.file(*pair).name for pair in wanted), origin)
        made: list[dict] = []
        for name, one in (self._origins() | new).items():
            if not made or made[-1]["with"] != one:
                made.append({"with": one, "files": []})
            made[-1]["files"].append(name)
        files.write_json(self.path / "made_with.json", self.facts | {"made": made})

    def missing(self, wanted) -> list:
        """The pairs of corruption and severity that have no file yet.

        Raises:
            DataError: The folder can't be looked into.
        """
        try:
            return [pair for pair in wanted if not self.file(*pair).exists()]
        except OSError as error:
            raise DataError(
                f"Can't use {self.path}: {error}. Choose another --cache_dir."
            ) from None

    def check(self, name, severity) -> str:
        """The SHA-256 of a file's array, in hexadecimal.

        Raises:
            DataError: The file is not as it was written, or can't be read.
        """
        file = self.file(name, severity)
        try:
            with open(file, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                begins = stream.read(len(self.header)) == self.header
                stream.seek(0)
                digest = _digest(stream, self.file_bytes - DIGEST_BYTES)
                written = stream.read(DIGEST_BYTES)
        except OSError as error:
            raise DataError(f"Can't read {file}: {error}.") from None
        if size == self.file_bytes and begins and written == digest.encode():
            return digest
        what = f"{size:,} of {self.file_bytes:,} bytes"
        if size == self.file_bytes:
            what = "as many bytes with another SHA-256"
        raise DataError(
            f"Expected {file} as it was written. Received: {what}: the file is damaged. Remove "
            "it, and it is made anew."
        )


def folder(images, name, library, seed, cache_dir=None) -> Folder:
    """The folder for a set of images; nothing is made.

    Args:
        images: [examples, height, width, channels] uint8.
        name: The data set's name.
        library: What corrupts, with its version.
        seed: Of what is drawn.
        cache_dir: Folder of all sets; None: `tfmp/corrupted` in the user's cache folder.
    """
    facts = {
        "format": FORMAT,
        "data": name,
        "shape": list(images.shape),
        "images_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
        "library": library,
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    root = pathlib.Path(cache_dir).expanduser() if cache_dir else files.cache_root() / "corrupted"
    short = re.sub(r"[^\w.-]+", "_", name)[-40:]
    return Folder(root / f"{short}-{digest[:16]}", facts, images.shape)


@contextlib.contextmanager
def locked(path):
    """Makes a folder, and keeps other processes from writing to it.

    Raises:
        OSError: It can't be made or locked.
    """
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process makes {path}: waiting for it ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def begin(folder, name, severity) -> pathlib.Path:
    """An unnamed file as long as it will be, with its header; the images are to be written.

    Raises:
        OSError: The disk is full, or can't be written.
    """
    file = folder.file(name, severity)
    partial = file.with_name(file.name + ".partial")
    with open(partial, "wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, folder.file_bytes)
        stream.write(folder.header)
    return partial


def finish(folder, partial, name, severity):
    """Adds the SHA-256 to a file whose images are written, and gives it its name.

    Raises:
        OSError: The disk is full, or can't be written.
    """
    with open(partial, "r+b") as stream:
        digest = _digest(stream, folder.file_bytes - DIGEST_BYTES)
        stream.write(digest.encode())
    partial.replace(folder.file(name, severity))


def _digest(stream, size):
    """Of the next so many bytes."""
    found, chunk = hashlib.sha256(), 2**20
    for start in range(0, size, chunk):
        found.update(stream.read(min(chunk, size - start)))
    return found.hexdigest()
