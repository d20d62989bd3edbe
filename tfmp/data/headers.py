"""Size and channels of an image file from its first bytes, without decoding it.

Every file of a folder is looked at before training starts, which has to be quick.
"""

import dataclasses
import struct
from typing import BinaryIO


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first bytes say.

    Attributes:
        height: In pixels.
        width: In pixels.
        channels: 1 gray, 2 gray and alpha, 3 color, 4 color and alpha.
        complete: Whether the file ends as its format does. A file that doesn't may still be
            whole, with something after the end.
        size: Of the file, in bytes.
    """

    height: int
    width: int
    channels: int
    complete: bool
    size: int


def read(path: str) -> Header:
    """Reads the header of a PNG, JPEG, BMP or GIF file.

    Raises:
        ValueError: If the file is of none of these formats or ends within its header.
        OSError: If it can't be read.
    """
    with open(path, "rb") as file:
        start = file.read(32)
        size, end = _end(file)
        try:
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                return _png(start, end, size)
            if start.startswith(b"\xff\xd8"):
                return _jpeg(file, end, size)
            if start.startswith((b"GIF87a", b"GIF89a")):
                width, height = struct.unpack_from("<HH", start, 6)
                return Header(height, width, 3, end.endswith(b"\x3b"), size)
            if start.startswith(b"BM"):
                return _bmp(start, size)
        except (struct.error, IndexError):
            raise ValueError("it ends within its header") from None
    raise ValueError("it is empty" if not start else "it is no PNG, JPEG, BMP or GIF image")


def _end(file: BinaryIO) -> tuple[int, bytes]:
    """Size and last bytes."""
    size = file.seek(0, 2)
    file.seek(max(size - 12, 0))
    return size, file.read(12)


def _png(start: bytes, end: bytes, size: int) -> Header:
    width, height = struct.unpack_from(">II", start, 16)
    # By color type: gray, color, palette (decoded to color), gray and alpha, color and alpha.
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(start[25])
    if channels is None:
        raise ValueError(f"its PNG color type {start[25]} doesn't exist")
    return Header(height, width, channels, end[4:8] == b"IEND", size)


def _bmp(start: bytes, size: int) -> Header:
    (expected,) = struct.unpack_from("<I", start, 2)
    width, height, _, bits = struct.unpack_from("<iiHH", start, 18)
    channels = {24: 3, 32: 4}.get(bits)  # of 8, TensorFlow takes places in a palette for grays
    if channels is None:
        raise ValueError(f"it is a BMP of {bits} bits a pixel, where 24 and 32 can be read")
    return Header(abs(height), width, channels, size >= expected, size)


def _jpeg(file: BinaryIO, end: bytes, size: int) -> Header:
    file.seek(2)
    while True:
        marker = file.read(2)
        while marker[1] == 0xFF:
            marker = b"\xff" + file.read(1)
        (length,) = struct.unpack(">H", file.read(2))
        # Frames are C0 to CF, but for the tables C4, C8 and CC, which share the range.
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            _, height, width, components = struct.unpack(">BHHB", file.read(6))
            # Four components are inks, which decode to color.
            complete = end.endswith(b"\xff\xd9")
            return Header(height, width, min(components, 3), complete, size)
        if marker[0] != 0xFF or length < 2:
            raise ValueError("its JPEG segments are damaged")
        file.seek(length - 2, 1)
