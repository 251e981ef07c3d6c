"""Image files to pixels, and pixels to the square input of a scan: the one path that training and serving share.

Pillow reads the header and decodes, because it refuses a truncated file where OpenCV fills the missing part with grey;
OpenCV resizes. Coordinates: 0 is the centre of the first pixel, so an image spans [-0.5, width - 0.5].
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from models.geometry import Box

ACCEPTED_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WebP")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

# Above the 61 megapixels of the largest full-frame sensors; decoded to RGB such an image takes 192 MB.
DEFAULT_MAX_PIXELS = 64_000_000

ResizeMode = Literal["squash", "letterbox"]

# Pillow has a limit of its own for the whole process, a warning and at the double an error; max_pixels takes its place.
Image.MAX_IMAGE_PIXELS = None

# It warns of faults that it reads past. Nobody can act on them, they are no lines of JSON for a service's log, and the
# warnings module remembers each text that a sender makes up.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# First bytes of formats that people send and that are not accepted, to be able to name them.
_FOREIGN_SIGNATURES = (
    (0, b"GIF8", "GIF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"P5\n", "PGM"),
    (0, b"P6\n", "PPM"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
)

_TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_UNKNOWN_RANGE = (
    "the TIFF file holds floating-point, signed or otherwise unusual samples, whose range is unknown; "
    "save it as unsigned 8 or 16 bits, grayscale or RGB"
)

_Array = TypeVar("_Array", bound=NDArray[Any])


class ImageError(ValueError):
    """An image that cannot be taken; the message says why and what is accepted."""


class UnreadableImage(ImageError):
    """Empty, truncated, corrupt, or not an image at all."""


class UnsupportedImage(ImageError):
    """An image, but of a format or pixel type outside ACCEPTED_FORMATS, or of several frames or pages."""


class ImageTooLarge(ImageError):
    """More pixels than the limit; found from the header, before any decoding."""


@dataclass(frozen=True)
class Placement:
    """How an original image lies in the square input of a scan.

    Args:
        original_width: pixels of the original image as displayed.
        original_height: likewise.
        size: side of the square, in pixels.
        mode: "squash" fills the square; "letterbox" keeps the aspect ratio and centres the image.
    """

    original_width: int
    original_height: int
    size: int
    mode: ResizeMode

    @property
    def content(self) -> Box:
        """The part of the square that the image covers; at least one pixel wide and high."""
        if self.mode == "squash":
            return Box(x=0, y=0, width=self.size, height=self.size)
        longest = max(self.original_width, self.original_height)
        width = max(1, round(self.size * self.original_width / longest))
        height = max(1, round(self.size * self.original_height / longest))
        return Box(x=(self.size - width) // 2, y=(self.size - height) // 2, width=width, height=height)

    def crop(self, values: _Array) -> _Array:
        """The part of an array over the square, (size, size, ...), that shows the image; a view."""
        return self.content.crop(values)

    def map_to_original(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring a map over the square to the original image's pixels; what lies in the padding is left out.

        Args:
            values: (size, size) float32.

        Returns:
            (original_height, original_width) float32: bilinear where the original is larger, averaged where smaller.
        """
        if values.shape != (self.size, self.size):
            raise ValueError(f"a map of shape {values.shape} does not lie over a square of {self.size} pixels")
        return _resize(self.crop(values), self.original_width, self.original_height)

    def point_to_original(self, x: float, y: float) -> tuple[float, float]:
        """Position (x, y) in the original of a position in the square, moved to the nearest pixel centre it has."""
        box = self.content
        original_x = (x - box.x + 0.5) * self.original_width / box.width - 0.5
        original_y = (y - box.y + 0.5) * self.original_height / box.height - 0.5
        return min(max(original_x, 0.0), self.original_width - 1.0), min(
            max(original_y, 0.0), self.original_height - 1.0
        )

    def to_original_box(self, box: Box) -> Box:
        """The smallest box of original pixels that covers ``box`` of the square; clipped to the image, never empty."""
        content = self.content
        x, width = _span_to_original(box.x - content.x, box.width, content.width, self.original_width)
        y, height = _span_to_original(box.y - content.y, box.height, content.height, self.original_height)
        return Box(x=x, y=y, width=width, height=height)


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image file.

    16-bit samples lose their low byte, so that the full range 0..65535 becomes 0..255 and never an image's own minimum
    and maximum, which would make two parts incomparable. Grayscale is repeated; transparency is laid on black, because
    the colours under transparent pixels are arbitrary. Colour profiles are not applied.

    Args:
        data: the file's bytes.
        max_pixels: limit on width x height, checked before decoding.

    Returns:
        (H, W, 3) uint8 RGB, after its EXIF orientation.

    Raises:
        UnreadableImage: empty, truncated, corrupt, or not an image.
        UnsupportedImage: another format than ACCEPTED_FORMATS, several frames, or samples without a known range.
        ImageTooLarge: more than ``max_pixels`` pixels.
    """
    samples = _decode(_open(data, max_pixels))
    pixels = (samples >> 8).astype(np.uint8) if samples.dtype == np.uint16 else samples.astype(np.uint8, copy=False)
    return np.repeat(pixels[:, :, np.newaxis], 3, axis=2) if pixels.ndim == 2 else pixels


def read_image(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """``decode_image`` of a file; its errors name the path."""
    data = _read_bytes(path)
    try:
        return decode_image(data, max_pixels=max_pixels)
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from error


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask, such as a defect's or a region of interest: every pixel that is not black is in it.

    Returns:
        (H, W) bool.

    Raises:
        ImageError: as ``decode_image``, and for a JPEG, whose compression makes black around a defect not quite black.
    """
    data = _read_bytes(path)
    try:
        return decode_mask(data)
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from error


def decode_mask(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.bool_]:
    """``read_mask`` of a file's bytes."""
    image = _open(data, max_pixels)
    if image.format in ("JPEG", "MPO"):
        raise UnsupportedImage("a mask must be stored without loss; JPEG is not. Save it as PNG")
    return np.asarray(np.atleast_3d(_decode(image)).any(axis=2))


def place_image(image: NDArray[np.uint8], size: int, mode: ResizeMode) -> tuple[NDArray[np.uint8], Placement]:
    """Resize an image into the square input of a scan: area-averaged where it shrinks, bilinear where it grows.

    A letterbox is filled with the image's own reflection: a constant border would put the strongest edge of the picture
    where every image has one, and repeated edge pixels make streaks that look like scratches.

    Args:
        image: (H, W, 3) uint8.
        size: side of the square, in pixels.
        mode: see ``Placement``.

    Returns:
        (size, size, 3) uint8, and where the image lies in it.
    """
    height, width = image.shape[:2]
    placement = Placement(original_width=width, original_height=height, size=size, mode=mode)
    box = placement.content
    resized = _resize(image, box.width, box.height)
    right, bottom = size - box.x - box.width, size - box.y - box.height
    placed = cv2.copyMakeBorder(resized, box.y, bottom, box.x, right, cv2.BORDER_REFLECT)
    return placed.astype(np.uint8, copy=False), placement


def place_mask(mask: NDArray[np.bool_], size: int, mode: ResizeMode) -> NDArray[np.bool_]:
    """Resize a mask as ``place_image`` does its image, by the nearest pixel; the padding is no defect.

    A defect (8-connected area) too thin to be met by any sample keeps every pixel that it touches, so none disappears.

    Args:
        mask: (H, W) bool.

    Returns:
        (size, size) bool.
    """
    height, width = mask.shape
    placement = Placement(original_width=width, original_height=height, size=size, mode=mode)
    box = placement.content
    rows = (2 * np.arange(box.height) + 1) * height // (2 * box.height)
    columns = (2 * np.arange(box.width) + 1) * width // (2 * box.width)
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    sampled = labels[np.ix_(rows, columns)]
    content = sampled > 0
    lost = np.ones(count, dtype=np.bool_)
    lost[0] = False
    lost[sampled] = False
    if lost.any():
        y, x = np.nonzero(lost[labels])
        content[y * box.height // height, x * box.width // width] = True
    placed = np.zeros((size, size), dtype=np.bool_)
    placement.crop(placed)[...] = content
    return placed


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header alone and refuse what must not be decoded."""
    if not data:
        raise UnreadableImage(f"the file is empty; accepted are {', '.join(ACCEPTED_FORMATS)} images")
    try:
        image = Image.open(io.BytesIO(data), formats=[name.upper() for name in ACCEPTED_FORMATS])
        width, height = image.size
        # A small TIFF may consist of one huge compressed tile, which would be decoded whole.
        tile_width, tile_height = (_tiff_tag(image, tag, 0) for tag in ("TileWidth", "TileLength"))
        several_frames = _has_several_frames(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers let nearly any exception out on a corrupt header.
        raise _refusal(data) from error
    if width < 1 or height < 1:
        raise UnreadableImage(f"the image is {width}x{height} pixels: there is nothing in it")
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the image is {width}x{height} = {width * height} pixels; at most {max_pixels} are accepted. "
            "Scale it down or raise the limit"
        )
    if tile_width * tile_height > max_pixels:
        raise ImageTooLarge(
            f"the TIFF has tiles of {tile_width}x{tile_height} pixels; at most {max_pixels} are accepted"
        )
    if several_frames:
        raise UnsupportedImage(
            f"the {image.format} file holds several frames or pages; send each as an image of its own"
        )
    return image


def _refusal(data: bytes) -> ImageError:
    accepted = ", ".join(ACCEPTED_FORMATS)
    for offset, signature, name in _FOREIGN_SIGNATURES:
        if data.startswith(signature, offset):
            return UnsupportedImage(f"{name} images are not accepted; convert to one of {accepted}")
    if data.startswith(_TIFF_SIGNATURES):
        try:
            TiffImagePlugin.TiffImageFile(io.BytesIO(data))  # Image.open hides the reason
        except Exception as error:
            if "unknown pixel mode" in str(error):
                return UnsupportedImage(_UNKNOWN_RANGE)
    return UnreadableImage(f"not an image, or a corrupt one; accepted are {accepted}")


def _has_several_frames(image: Image.Image) -> bool:
    if image.format == "MPO":
        return False  # a JPEG with a preview or gain map behind it, as phones write them: the first frame is the image
    if image.format == "TIFF":
        try:
            image.seek(1)  # counting the pages would read every one, and a file can claim millions
        except EOFError:
            return False
        return True
    return int(getattr(image, "n_frames", 1)) > 1


def _decode(image: Image.Image) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode to (H, W) or (H, W, 3); uint16 over its full range where Pillow keeps the file's 16 (or 12) bits."""
    try:
        bits = _tiff_tag(image, "BitsPerSample", 16)
        zero_is_white = _tiff_tag(image, "PhotometricInterpretation", 1) == 0
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            samples = np.array(upright, dtype=np.uint16)
            samples <<= 16 - bits
            return ~samples if zero_is_white else samples
        if upright.mode in ("I", "F"):
            raise UnsupportedImage(_UNKNOWN_RANGE)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            black = Image.new("RGB", upright.size)
            black.paste(upright, mask=upright.getchannel("A"))
            return np.array(black)
        return np.array(upright.convert("L" if upright.mode in ("1", "L") else "RGB"))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # as in _open
        raise UnreadableImage(f"the {image.format} file is truncated or corrupt ({error})") from error


def _tiff_tag(image: Image.Image, name: str, default: int) -> int:
    """The first value of a TIFF tag, and ``default`` for every other format."""
    value = getattr(image, "tag_v2", {}).get(ExifTags.Base[name].value, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _resize(image: _Array, width: int, height: int) -> _Array:
    """Average along an axis that shrinks, then interpolate along one that grows.

    In one call OpenCV would interpolate along both as soon as one grows, and skip most rows of a tall narrow image.
    """
    smaller = (min(image.shape[1], width), min(image.shape[0], height))
    shrunk = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def _span_to_original(start: int, length: int, content: int, original: int) -> tuple[int, int]:
    first = min(max(math.floor(start * original / content), 0), original - 1)
    last = min(max(math.ceil((start + length) * original / content), first + 1), original)
    return first, last - first
