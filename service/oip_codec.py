"""Open Inference Protocol v2 on the wire: bytes to images, results to bytes; JSON and the binary extension."""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr, ValidationError

from service.errors import IMAGE_TOO_LARGE, INVALID_REQUEST, UPLOAD_TOO_LARGE, ProblemError, faults, quote
from service.inspection import Label
from service.rendering import encode_png

INPUT = "image"
BYTES, UINT8, FP32 = "BYTES", "UINT8", "FP32"
MAX_IMAGES = 64  # of one request, which holds all their results until the last is scored
HEADER_LENGTH = "Inference-Header-Content-Length"

# Parsed JSON takes many times its text. Images belong in the binary extension, which needs no parsing.
MAX_JSON_BYTES = 16 * 2**20

# Lossless, and as fast as PNG gets: pixels become a file because a file is what is scored, hashed and kept.
_PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1)
_LONGEST_SIDE = 65_535  # encoders of PNG take no more than a million
_MOST_FAULTS = 3

Tensor = NDArray[np.float32] | list[bytes]
"""An output over all images: an FP32 array, or the elements of one BYTES dimension."""

_Name = Annotated[StrictStr, Field(max_length=256)]


class _InputParameters(BaseModel):
    binary_data_size: Annotated[StrictInt, Field(ge=0)] | None = None
    shared_memory_region: Any = None


class _Input(BaseModel):
    name: _Name
    shape: list[Annotated[StrictInt, Field(ge=0, lt=2**31)]] = Field(max_length=8)
    datatype: _Name
    parameters: _InputParameters = _InputParameters()
    data: Any = None


class _OutputParameters(BaseModel):
    binary_data: StrictBool | None = None
    classification: Any = None
    shared_memory_region: Any = None


class _Output(BaseModel):
    name: _Name
    parameters: _OutputParameters = _OutputParameters()


class _RequestParameters(BaseModel):
    binary_data_output: StrictBool = False
    part: Label | None = None
    lot: Label | None = None


class _Request(BaseModel):
    id: _Name | None = None
    parameters: _RequestParameters = _RequestParameters()
    inputs: list[_Input]
    outputs: list[_Output] | None = None


@dataclass(frozen=True)
class InferRequest:
    """What was asked.

    Attributes:
        id: to be echoed.
        images: encoded image files, or (H, W, 3) RGB arrays, uint8 or float32 in [0, 1].
        outputs: which are wanted, and whether each in binary.
        part: the sender's id of the part, for the record of every image.
        lot: likewise of the lot.
    """

    id: str | None
    images: tuple[bytes | NDArray[Any], ...]
    outputs: Mapping[str, bool]
    part: str | None
    lot: str | None


def decompress(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Undo a request's Content-Encoding, never making more than ``max_bytes``.

    Raises:
        ProblemError: too large, or not what the coding says.
    """
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS + (16 if coding == "gzip" else 0))
    try:
        content = decoder.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise _invalid(f"the body is not {coding} data ({error})") from error
    if len(content) > max_bytes:
        raise ProblemError(
            UPLOAD_TOO_LARGE, f"the body is larger than the {max_bytes} bytes that are accepted, once decompressed"
        )
    if not decoder.eof or decoder.unused_data:
        raise _invalid(f"the {coding} body {'has bytes behind its end' if decoder.eof else 'is cut off'}")
    return content


def parse(body: bytes, header_length: str | None, known_outputs: Sequence[str], max_pixels: int) -> InferRequest:
    """Read an inference request.

    Args:
        body: as sent, decompressed.
        header_length: the header ``HEADER_LENGTH``; None where all of the body is JSON.
        known_outputs: the outputs that may be asked for, all of them where the request names none.
        max_pixels: limit on an image that comes as pixels.

    Raises:
        ProblemError: the request is not valid.
    """
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    request = _read_json(body[:length])
    binary = memoryview(body)[length:]
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = ", ".join(quote(tensor.name) for tensor in request.inputs[:_MOST_FAULTS]) or "none"
        raise _invalid(f"the inputs are {names}; send exactly one, {INPUT!r}")
    tensor = request.inputs[0]
    if tensor.parameters.shared_memory_region is not None:
        raise _invalid("shared memory is not supported; send the tensor in the request")
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise _invalid(f"input {INPUT!r} needs either data or parameters.binary_data_size")
    if len(binary) != (size or 0):
        raise _invalid(f"{len(binary)} bytes follow the JSON, where {size or 0} are announced")
    return InferRequest(
        id=request.id,
        images=_images(tensor, None if size is None else binary, max_pixels),
        outputs=_wanted(request, known_outputs),
        part=request.parameters.part,
        lot=request.parameters.lot,
    )


def as_file(image: NDArray[Any]) -> bytes:
    """The pixels of an image of a request as a PNG file."""
    pixels = np.rint(image * 255).astype(np.uint8) if image.dtype == np.float32 else image
    return encode_png(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _PNG_OPTIONS)


def size(image: bytes | NDArray[Any]) -> int:
    """Bytes that an image of a request takes until it is its turn."""
    return len(image) if isinstance(image, bytes) else image.nbytes


def render(head: Mapping[str, Any], tensors: Mapping[str, Tensor], wanted: Mapping[str, bool]) -> tuple[bytes, int]:
    """Write an inference response.

    Args:
        head: model_name, model_version, and id where there is one.
        tensors: every output.
        wanted: which to write, and whether in binary.

    Returns:
        The body, and the length of its JSON: the whole body's where nothing is in binary.
    """
    outputs, blocks = [], []
    for name, binary in wanted.items():
        tensor = tensors[name]
        shape, datatype = ([len(tensor)], BYTES) if isinstance(tensor, list) else (list(tensor.shape), FP32)
        output: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
        if binary:
            blocks.append(_binary(tensor))
            output["parameters"] = {"binary_data_size": len(blocks[-1])}
        elif isinstance(tensor, list):
            output["data"] = [element.decode() for element in tensor]
        else:
            output["data"] = tensor.ravel().tolist()
        outputs.append(output)
    text = json.dumps({**head, "outputs": outputs}, allow_nan=False).encode()
    return b"".join((text, *blocks)), len(text)


def _invalid(detail: str) -> ProblemError:
    return ProblemError(INVALID_REQUEST, detail)


def _header_length(text: str, body_length: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= body_length):
        raise _invalid(f"{HEADER_LENGTH} is {quote(text)}; accepted is at most the body's length, {body_length}")
    return int(text)


def _read_json(text: bytes) -> _Request:
    if len(text) > MAX_JSON_BYTES:
        raise ProblemError(
            UPLOAD_TOO_LARGE,
            f"the JSON has {len(text)} bytes, at most {MAX_JSON_BYTES} are accepted; "
            f"send the tensor by the binary extension ({HEADER_LENGTH})",
        )
    try:
        return _Request.model_validate(json.loads(text))
    except ValidationError as error:
        raise _invalid(faults(error, _MOST_FAULTS)) from error
    except (ValueError, RecursionError) as error:
        raise _invalid(f"the body's JSON cannot be read: {error}") from error


def _wanted(request: _Request, known: Sequence[str]) -> dict[str, bool]:
    in_binary = request.parameters.binary_data_output
    if not request.outputs:
        return dict.fromkeys(known, in_binary)
    wanted: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in known:
            raise _invalid(f"there is no output {quote(output.name)}; there is {', '.join(known)}")
        if output.name in wanted:
            raise _invalid(f"output {output.name!r} is asked for twice")
        if output.parameters.classification is not None or output.parameters.shared_memory_region is not None:
            raise _invalid("neither classification nor shared memory is supported for outputs")
        asked = output.parameters.binary_data
        wanted[output.name] = in_binary if asked is None else asked
    return wanted


def _images(tensor: _Input, binary: memoryview | None, max_pixels: int) -> tuple[bytes | NDArray[Any], ...]:
    shape = tensor.shape
    if tensor.datatype == BYTES:
        if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
            raise _invalid(f"{BYTES} input {INPUT!r} has shape {shape}; accepted are [n] and [n, 1]")
        _check_count(shape[0])
        files = _base64_files(tensor.data) if binary is None else _binary_files(binary)
        if len(files) != shape[0]:
            raise _invalid(f"input {INPUT!r} has {len(files)} elements, where its shape {shape} says {shape[0]}")
        return tuple(files)
    if tensor.datatype not in (UINT8, FP32):
        raise _invalid(
            f"input {INPUT!r} has datatype {quote(tensor.datatype)}; accepted are {BYTES}, {UINT8} and {FP32}"
        )
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise _invalid(f"{tensor.datatype} input {INPUT!r} has shape {shape}; accepted is [n, height, width, 3]")
    _check_count(shape[0])
    if max(shape[1:3]) > _LONGEST_SIDE:
        raise _invalid(f"images of {shape[2]}x{shape[1]} pixels are sent; a side has at most {_LONGEST_SIDE}")
    if shape[1] * shape[2] > max_pixels:
        raise ProblemError(
            IMAGE_TOO_LARGE,
            f"images of {shape[2]}x{shape[1]} pixels; at most {max_pixels} pixels are accepted",
        )
    values = _json_numbers(tensor) if binary is None else _binary_numbers(tensor, binary)
    return tuple(values.reshape(shape))


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_IMAGES:
        raise _invalid(f"input {INPUT!r} holds {count} images; accepted are 1 to {MAX_IMAGES} in a request")


def _binary_files(binary: memoryview) -> list[bytes]:
    """Elements of a BYTES tensor: each a length of four bytes, little-endian, and as many bytes."""
    files: list[bytes] = []
    offset = 0
    while offset < len(binary):
        if len(files) == MAX_IMAGES or offset + 4 > len(binary):
            raise _invalid(f"input {INPUT!r}: the binary data do not end where its last element does")
        (length,) = struct.unpack_from("<I", binary, offset)
        offset += 4
        if offset + length > len(binary):
            raise _invalid(
                f"input {INPUT!r}: element {len(files)} says {length} bytes, {len(binary) - offset} are left"
            )
        files.append(bytes(binary[offset : offset + length]))
        offset += length
    return files


def _base64_files(data: Any) -> list[bytes]:
    elements = data if isinstance(data, list) else [data]
    elements = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in elements[: MAX_IMAGES + 1]]
    try:
        return [base64.b64decode(element, validate=True) for element in elements]
    except (TypeError, ValueError) as error:
        raise _invalid(
            f"input {INPUT!r}: in JSON each element is the base64 text of an image file ({error})"
        ) from error


def _binary_numbers(tensor: _Input, binary: memoryview) -> NDArray[Any]:
    dtype = np.dtype("<f4" if tensor.datatype == FP32 else np.uint8)
    expected = math.prod(tensor.shape) * dtype.itemsize
    if len(binary) != expected:
        raise _invalid(
            f"input {INPUT!r} has {len(binary)} bytes, where {tensor.datatype} of shape {tensor.shape} has {expected}"
        )
    values = np.frombuffer(binary, dtype)
    if tensor.datatype == FP32:
        _check_range(values, 1, "finite numbers in [0, 1]")
    return values


def _json_numbers(tensor: _Input) -> NDArray[Any]:
    try:
        given = np.array(tensor.data)
        if given.dtype.kind in "USb":  # numpy would read texts, and truths, as numbers
            raise TypeError("texts or truths")
        values = given.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise _invalid(f"input {INPUT!r}: data are not an array of numbers ({error})") from error
    if values.size != math.prod(tensor.shape):
        raise _invalid(f"input {INPUT!r} has {values.size} numbers, which do not fill its shape {tensor.shape}")
    if values.ndim != 1 and values.shape != tuple(tensor.shape):  # rows for columns
        raise _invalid(
            f"input {INPUT!r} is nested as {list(values.shape)}, where its shape is {tensor.shape}; send it flat or as "
            "its shape says"
        )
    if tensor.datatype == FP32:
        _check_range(values, 1, "finite numbers in [0, 1]")
        return values.astype(np.float32)
    _check_range(values, 255, "whole numbers from 0 to 255")
    whole = values.astype(np.uint8)
    if (whole != values).any():
        raise _invalid(f"input {INPUT!r}: {UINT8} takes whole numbers from 0 to 255")
    return whole


def _check_range(values: NDArray[Any], highest: int, accepted: str) -> None:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= highest):  # neither holds of NaN
        raise _invalid(f"input {INPUT!r} has values from {low:g} to {high:g}; {accepted} are accepted")


def _binary(tensor: Tensor) -> bytes:
    if isinstance(tensor, list):
        return b"".join(struct.pack("<I", len(element)) + element for element in tensor)
    return tensor.astype("<f4", copy=False).tobytes()
