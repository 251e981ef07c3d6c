"""Image files to pixels; how these are placed in the square of a scan: test_placement."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from models.images import (
    ImageError,
    ImageTooLarge,
    UnreadableImage,
    UnsupportedImage,
    decode_image,
    read_image,
    read_mask,
)

SAMPLE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (18, 24, 3), dtype=np.uint8), (5, 5), 1)
RAMP = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)


def encode(image: NDArray[Any] | Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, name, **options)
    return buffer.getvalue()


def encode_cv2(suffix: str, image: NDArray[Any]) -> bytes:
    _, data = cv2.imencode(suffix, image if image.ndim == 2 else image[:, :, [2, 1, 0, 3][: image.shape[2]]])
    return data.tobytes()


LOSSLESS = {
    "png": encode(SAMPLE, "PNG"),
    "bmp": encode(SAMPLE, "BMP"),
    "tiff": encode(SAMPLE, "TIFF"),
    "tiff lzw": encode(SAMPLE, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encode(SAMPLE, "TIFF", compression="tiff_adobe_deflate"),
    "webp": encode(SAMPLE, "WEBP", lossless=True),
}
LOSSY = {
    "jpeg": encode(SAMPLE, "JPEG", quality=95, subsampling=0),
    "progressive jpeg": encode(SAMPLE, "JPEG", quality=95, subsampling=0, progressive=True),
    "tiff jpeg": encode(SAMPLE, "TIFF", compression="jpeg", quality=95),
    "webp": encode(SAMPLE, "WEBP", quality=100),
}
FILES = LOSSLESS | {f"{name}, lossy": data for name, data in LOSSY.items()}


class TestDecoding:
    @pytest.mark.parametrize("name", LOSSLESS)
    def test_a_lossless_file_gives_its_pixels(self, name: str) -> None:
        decoded = decode_image(LOSSLESS[name])
        assert decoded.dtype == np.uint8
        assert decoded.flags.writeable
        np.testing.assert_array_equal(decoded, SAMPLE)

    @pytest.mark.parametrize("name", LOSSY)
    def test_a_lossy_file_gives_nearly_its_pixels(self, name: str) -> None:
        assert np.abs(decode_image(LOSSY[name]).astype(int) - SAMPLE).mean() < 8

    def test_grayscale_is_repeated(self) -> None:
        for data in (encode(SAMPLE[:, :, 0], "PNG"), encode(SAMPLE[:, :, 0], "TIFF"), encode(SAMPLE[:, :, 0], "BMP")):
            np.testing.assert_array_equal(decode_image(data), np.dstack([SAMPLE[:, :, 0]] * 3))

    def test_sixteen_bits_are_scaled_by_their_full_range_in_every_format_alike(self) -> None:
        gray = (RAMP >> 8).astype(np.uint8)
        files = (
            encode(RAMP, "PNG"),
            encode(RAMP, "TIFF"),
            encode(RAMP, "TIFF", compression="tiff_lzw"),
            encode(65535 - RAMP, "TIFF", tiffinfo={ExifTags.Base.PhotometricInterpretation: 0}),  # 0 is white
        )
        for data in files:
            np.testing.assert_array_equal(decode_image(data), np.dstack([gray] * 3))
        color = np.dstack([RAMP, RAMP.T, RAMP[::-1]])
        opaque = np.dstack([color, np.full_like(RAMP, 65535)])
        for data in (encode_cv2(suffix, image) for suffix in (".png", ".tiff") for image in (color, opaque)):
            np.testing.assert_array_equal(decode_image(data), (color >> 8).astype(np.uint8))

    def test_a_dark_sixteen_bit_image_is_not_stretched(self) -> None:
        assert decode_image(encode(RAMP // 4, "PNG")).max() == 63

    def test_twelve_bit_tiff_is_scaled_by_its_own_range(self) -> None:
        data = tiff(2, 1, bits=12, pixels=bytes([0xFF, 0xF8, 0x00]))  # 4095 and 2048, packed
        np.testing.assert_array_equal(decode_image(data)[0, :, 0], [255, 128])

    def test_transparency_is_laid_on_black(self) -> None:
        half = Image.new("RGBA", (3, 2), (200, 100, 50, 128))
        hidden = Image.new("RGBA", (3, 2), (200, 100, 50, 0))
        for name, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
            np.testing.assert_allclose(decode_image(encode(half, name, **options))[0, 0], [100, 50, 25], atol=1)
            assert decode_image(encode(hidden, name, **options)).max() == 0
        gray = Image.new("LA", (3, 2), (200, 128))
        np.testing.assert_allclose(decode_image(encode(gray, "PNG"))[0, 0], [100, 100, 100], atol=1)

    def test_palette_bilevel_and_cmyk(self) -> None:
        plain = Image.new("RGB", (5, 4), (200, 100, 50))
        for data in (encode(plain.quantize(4), "PNG"), encode(plain.convert("CMYK"), "TIFF")):
            np.testing.assert_array_equal(decode_image(data)[0, 0], [200, 100, 50])
        np.testing.assert_allclose(decode_image(encode(plain.convert("CMYK"), "JPEG"))[0, 0], [200, 100, 50], atol=3)
        assert set(np.unique(decode_image(encode(Image.new("1", (5, 4), 1), "PNG")))) == {255}
        transparent = encode(plain.quantize(4), "PNG", transparency=0)
        assert decode_image(transparent).max() == 0

    @pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WEBP"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, name: str, orientation: int) -> None:
        # What the number says (EXIF 2.3, tag 0x0112): where row 0 and column 0 of the file belong.
        rows_to, columns_to = {
            1: ("top", "left"),
            2: ("top", "right"),
            3: ("bottom", "right"),
            4: ("bottom", "left"),
            5: ("left", "top"),
            6: ("right", "top"),
            7: ("right", "bottom"),
            8: ("left", "bottom"),
        }[orientation]
        stored = np.zeros((16, 24, 3), dtype=np.uint8)
        stored[:8, :8] = 255  # near row 0 and column 0 both
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        decoded = decode_image(encode(stored, name, exif=exif))
        assert decoded.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
        y, x = (slice(-4, None) if side in {rows_to, columns_to} else slice(4) for side in ("bottom", "right"))
        assert decoded[y, x].min() > 200
        assert decoded.mean() < 60

    def test_a_phone_jpeg_with_a_second_picture_behind_it_is_its_first(self) -> None:
        first, second = Image.new("RGB", (9, 7), (200, 100, 50)), Image.new("RGB", (9, 7))
        data = encode(first, "MPO", save_all=True, append_images=[second])
        np.testing.assert_allclose(decode_image(data)[0, 0], [200, 100, 50], atol=3)

    def test_errors_of_a_file_name_it(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.png"
        path.write_bytes(LOSSLESS["png"][:100])
        with pytest.raises(UnreadableImage, match=r"broken\.png"):
            read_image(path)
        with pytest.raises(UnreadableImage, match=r"absent\.png.*No such file"):
            read_image(tmp_path / "absent.png")


class TestRefusals:
    @pytest.mark.parametrize("data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n%x\n"])
    def test_what_is_no_image(self, data: bytes) -> None:
        with pytest.raises(UnreadableImage, match="PNG, JPEG, BMP, TIFF, WebP"):
            decode_image(data)

    @pytest.mark.parametrize(
        ("name", "named"),
        [("GIF", "GIF"), ("ICO", "ICO"), ("PPM", "PPM"), ("JPEG2000", "JPEG 2000"), ("AVIF", "AVIF")],
    )
    def test_foreign_formats_are_named(self, name: str, named: str) -> None:
        with pytest.raises(UnsupportedImage, match=f"{named} images are not accepted"):
            decode_image(encode(SAMPLE, name))

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
    def test_samples_without_a_known_range(self, dtype: type) -> None:
        with pytest.raises(UnsupportedImage, match="range is unknown"):
            decode_image(encode_cv2(".tiff", RAMP.astype(dtype)))

    @pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
    def test_several_frames(self, name: str) -> None:
        other = Image.fromarray(255 - SAMPLE)
        with pytest.raises(UnsupportedImage, match="several frames or pages"):
            decode_image(encode(SAMPLE, name, save_all=True, append_images=[other]))

    @pytest.mark.parametrize("name", FILES)
    def test_no_truncated_file_is_taken(self, name: str) -> None:
        data = FILES[name]
        whole = decode_image(data)
        for length in range(len(data)):
            try:
                decoded = decode_image(data[:length])
            except ImageError:
                continue
            np.testing.assert_array_equal(decoded, whole)  # only bytes that say nothing of the pixels were missing

    def test_truncation_is_called_so(self) -> None:
        with pytest.raises(UnreadableImage, match="truncated"):
            decode_image(LOSSY["jpeg"][:-100])

    @settings(max_examples=300, deadline=None)
    @given(
        name=st.sampled_from(sorted(FILES)),
        changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8),
        header=st.booleans(),
    )
    def test_corrupt_bytes_raise_nothing_but_image_errors(
        self, name: str, changes: list[tuple[int, int]], header: bool
    ) -> None:
        data = bytearray(FILES[name])
        for position, value in changes:
            data[position % (64 if header else len(data))] = value
        try:
            decoded = decode_image(bytes(data), max_pixels=10_000)
        except ImageError:
            return
        assert decoded.ndim == 3
        assert decoded.shape[2] == 3

    def test_an_image_at_the_limit_is_taken_and_one_above_is_not(self) -> None:
        data = LOSSLESS["png"]
        assert decode_image(data, max_pixels=18 * 24).shape == (18, 24, 3)
        with pytest.raises(ImageTooLarge, match=f"24x18 = {18 * 24} pixels; at most {18 * 24 - 1}"):
            decode_image(data, max_pixels=18 * 24 - 1)

    @pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
    @pytest.mark.parametrize("name", ["png", "jpeg", "bmp", "tiff", "webp"])
    def test_a_bomb_is_refused_by_its_header(self, name: str, side: int) -> None:
        # There are no pixels behind these headers: decoding any would say "truncated".
        if name == "webp":
            side = min(side, 16_383)
        with pytest.raises(ImageTooLarge, match=f"{side}x{side}"):
            decode_image(bomb(name, side))

    def test_a_small_tiff_of_one_huge_tile_is_refused(self) -> None:
        with pytest.raises(ImageTooLarge, match="tiles of 60000x60000"):
            decode_image(tiff(8, 8, bits=8, pixels=zlib.compress(bytes(64)), compression=8, tile=60_000))


class TestMasks:
    @pytest.mark.parametrize("value", [1, 255, 65535])
    def test_every_pixel_that_is_not_black_is_defect(self, tmp_path: Path, value: int) -> None:
        defect = np.zeros((9, 7), dtype=np.bool_)
        defect[2:5, 3] = True
        path = tmp_path / "mask.png"
        dtype = np.uint8 if value < 256 else np.uint16
        Image.fromarray((defect * value).astype(dtype)).save(path)
        read = read_mask(path)
        assert read.dtype == np.bool_
        np.testing.assert_array_equal(read, defect)

    def test_labels_in_sixteen_bits_and_colors(self, tmp_path: Path) -> None:
        defect = np.eye(8, dtype=np.bool_)
        sixteen, color = tmp_path / "sixteen.png", tmp_path / "color.bmp"
        Image.fromarray(defect.astype(np.uint16)).save(sixteen)
        Image.fromarray(np.dstack([defect * 0, defect * 0, defect * 3]).astype(np.uint8)).save(color)
        np.testing.assert_array_equal(read_mask(sixteen), defect)
        np.testing.assert_array_equal(read_mask(color), defect)

    def test_jpeg_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "mask.jpg"
        Image.new("L", (8, 8)).save(path)
        with pytest.raises(UnsupportedImage, match=r"mask\.jpg.*Save it as PNG"):
            read_mask(path)


def tiff(width: int, height: int, *, bits: int, pixels: bytes, compression: int = 1, tile: int = 0) -> bytes:
    """A grayscale TIFF as nothing at hand would write it."""
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 277: 1}
    tags |= {322: tile, 323: tile, 324: 8, 325: len(pixels)} if tile else {273: 8, 278: height, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    padded = pixels + bytes(len(pixels) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + directory


def bomb(name: str, side: int) -> bytes:
    """A file whose header claims side x side pixels, and no more."""
    if name == "png":
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + struct.pack(">I", 13)
            + header
            + struct.pack(">I", zlib.crc32(header))
            + bytes([0, 0, 0, 0])
            + b"IDAT"
            + struct.pack(">I", zlib.crc32(b"IDAT"))
        )
    if name == "tiff":
        return tiff(side, side, bits=8, pixels=b"\0")
    small = Image.new("RGB", (8, 8))
    data = bytearray(encode(small, name.upper(), **({"lossless": True} if name == "webp" else {})))
    if name == "jpeg":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", side, side)
    elif name == "bmp":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        start = data.index(b"VP8L") + 9
        bits = int.from_bytes(data[start : start + 4], "little") & ~((1 << 28) - 1)
        data[start : start + 4] = (bits | (side - 1) | ((side - 1) << 14)).to_bytes(4, "little")
    return bytes(data)
