"""Image files as a hostile or broken sender has them: number n of a seed is always the same file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.service.support import MAX_PIXELS, bomb

Random = np.random.Generator
Mutation = Callable[[Random, bytes], bytes]

_SIZE = (96, 72)
_LIMIT_SIDE = int(MAX_PIXELS**0.5)
_MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBPVP8 ", b"GIF89a")
_EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\1\0\0", b"\xff\xff\xff\x7f")


def mutated(seed: int, number: int) -> tuple[str, bytes]:
    """File ``number`` of the corpus ``seed``, and how it was made: a seed file of every accepted kind, and others, with
    one to three things done to it."""
    random = np.random.default_rng((seed, number))
    files = seeds()
    name = list(files)[number % len(files)]
    data, steps = files[name], [name]
    for _ in range(random.integers(0, 4)):
        step = list(_MUTATIONS)[random.integers(len(_MUTATIONS))]
        data = _MUTATIONS[step](random, data)
        steps.append(step)
    return " + ".join(steps), data


@cache
def seeds() -> dict[str, bytes]:
    """Files of every accepted format in most of its forms, of formats that are not accepted, and bombs."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (_SIZE[1], _SIZE[0], 3), dtype=np.uint8)
    gradient = np.linspace(0, 255, _SIZE[0])[None, :, None].repeat(_SIZE[1], 0).repeat(3, 2)
    rgb = Image.fromarray(((noise.astype(np.float64) + 3 * gradient) / 4).astype(np.uint8))
    gray16 = Image.fromarray(random.integers(0, 65536, (_SIZE[1], _SIZE[0]), dtype=np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    forms: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (rgb, "PNG", {}),
        "png gray": (rgb.convert("L"), "PNG", {}),
        "png 16 bits": (gray16, "PNG", {}),
        "png palette": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "png alpha": (rgb.convert("RGBA"), "PNG", {}),
        "png 1 bit": (rgb.convert("1"), "PNG", {}),
        "png animated": (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "jpeg": (rgb, "JPEG", {"quality": 70}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True, "exif": turned.tobytes()}),
        "jpeg gray": (rgb.convert("L"), "JPEG", {}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "bmp": (rgb, "BMP", {}),
        "bmp palette": (rgb.convert("P"), "BMP", {}),
        "bmp 1 bit": (rgb.convert("1"), "BMP", {}),
        "tiff": (rgb, "TIFF", {}),
        "tiff 16 bits": (gray16, "TIFF", {}),
        "tiff float": (gray16.convert("F"), "TIFF", {}),
        "tiff lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff packbits": (rgb.convert("L"), "TIFF", {"compression": "packbits"}),
        "tiff fax": (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff cmyk": (rgb.convert("CMYK"), "TIFF", {}),
        "tiff pages": (rgb, "TIFF", {"save_all": True, "append_images": [rgb, rgb]}),
        "webp": (rgb, "WEBP", {}),
        "webp lossless": (rgb, "WEBP", {"lossless": True}),
        "webp alpha": (rgb.convert("RGBA"), "WEBP", {}),
        "webp animated": (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "gif": (rgb.convert("P"), "GIF", {}),
        "jpeg 2000": (rgb, "JPEG2000", {}),
        "ppm": (rgb, "PPM", {}),
    }
    files = {name: _encoded(*form) for name, form in forms.items()}
    largest = Image.new("RGB", (_LIMIT_SIDE, _LIMIT_SIDE), (9, 99, 199))
    return files | {
        "largest png": _encoded(largest, "PNG"),
        "largest tiff": _encoded(largest, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tall": _encoded(Image.new("L", (1, MAX_PIXELS // 100)), "PNG"),
        "bomb of pixels": bomb(60_000, 60_000),
        "bomb within the limit": bomb(_LIMIT_SIDE, _LIMIT_SIDE),
        "bomb of text": _with_chunk(files["png"], b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 30_000_000, 9)),
        "bomb of colour profile": _with_chunk(files["png"], b"iCCP", b"k\0\0" + zlib.compress(b"\0" * 30_000_000, 9)),
        "bomb of a tile": _tiff_tile(60_000),
        "nothing": b"",
        "text": b"hello, this is no image",
    }


def _encoded(image: Image.Image, kind: str, options: dict[str, Any] | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **(options or {}))
    return buffer.getvalue()


def _with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    header = 8 + 12 + 13
    body = kind + content
    return png[:header] + struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body)) + png[header:]


def _tiff_tile(side: int) -> bytes:
    """A TIFF of 16x16 pixels that is one deflated tile of ``side`` x ``side``."""
    pixels = zlib.compress(b"\0" * 1000)
    tags = [
        (256, 4, 16),
        (257, 4, 16),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (277, 3, 1),
        (322, 4, side),
        (323, 4, side),
        (324, 4, 8),
        (325, 4, len(pixels)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def _truncate(random: Random, data: bytes) -> bytes:
    return data[: random.integers(len(data) + 1)]


def _flip_bits(random: Random, data: bytes) -> bytes:
    """Anywhere, or in the first 100 bytes, where headers are."""
    changed = _array(data)
    if changed.size:
        reach = changed.size if random.random() < 0.5 else min(changed.size, 100)
        where = random.integers(0, reach, random.integers(1, 17))
        changed[where] ^= 1 << random.integers(0, 8, where.size, dtype=np.uint8)
    return changed.tobytes()


def _overwrite(random: Random, data: bytes) -> bytes:
    """A run of random bytes."""
    changed = _array(data)
    start, length = random.integers(changed.size + 1), random.integers(1, 64)
    run = changed[start : start + length]
    run[:] = random.integers(0, 256, run.size)
    return changed.tobytes()


def _extreme(random: Random, data: bytes) -> bytes:
    """A length, size or offset in the first 200 bytes that is 0 or huge."""
    start = random.integers(min(len(data), 200) + 1)
    return data[:start] + _EXTREMES[random.integers(len(_EXTREMES))] + data[start + 4 :]


def _cut(random: Random, data: bytes) -> bytes:
    """A piece out of the middle."""
    first, last = sorted(random.integers(0, len(data) + 1, 2))
    return data[:first] + data[last:]


def _repeat(random: Random, data: bytes) -> bytes:
    """A piece twice."""
    first, last = sorted(random.integers(0, len(data) + 1, 2))
    return data[:last] + data[first:]


def _splice(random: Random, data: bytes) -> bytes:
    """The end of another file."""
    other = list(seeds().values())[random.integers(len(seeds()))]
    return _truncate(random, data) + other[random.integers(len(other) + 1) :]


def _wrong_header(random: Random, data: bytes) -> bytes:
    """The first bytes of another format."""
    magic = _MAGICS[random.integers(len(_MAGICS))]
    return magic + data[len(magic) :]


def _prefix(random: Random, data: bytes) -> bytes:
    return random.bytes(int(random.integers(1, 20))) + data


def _suffix(random: Random, data: bytes) -> bytes:
    return data + random.bytes(int(random.integers(1, 2000)))


def _array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).copy()


_MUTATIONS: dict[str, Mutation] = {
    "truncated": _truncate,
    "bits flipped": _flip_bits,
    "run overwritten": _overwrite,
    "extreme number": _extreme,
    "piece cut out": _cut,
    "piece repeated": _repeat,
    "spliced": _splice,
    "wrong header": _wrong_header,
    "prefix": _prefix,
    "suffix": _suffix,
}
