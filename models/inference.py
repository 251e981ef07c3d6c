"""How a version computes its embeddings: in which precision, and by what. Part of it, for it moves scores a little.

Bank, calibration and scores of a version are computed by one plan, so its thresholds are right for it. What the plan
sets is the encoder's convolutions; embeddings are normalised in float32, and density and heatmap keep to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.device import computes_bfloat16
from models.encoders import Encoder

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Engine = Literal["torch", "compile", "cuda_graph"]

BATCHES = (1, 2, 4, 8, 16, 32)  # that kernels are recorded for; others are filled up, or cut
COMPILED_FOR = (1, 2, 3)  # images; from the second size on torch.compile makes code for any number

Embed = Callable[[Tensor], Tensor]
"""(B, 3, H, W) in [0, 1] on the device -> (B, D, h, w) unit-norm float32."""


class InferenceError(RuntimeError):
    """This machine cannot run a plan; the message says what it lacks and what to do."""


class InferencePlan(BaseModel):
    """How embeddings are computed.

    Attributes:
        precision: of the convolutions; ``auto``, which no fitted detector has, is half precision where the device
            computes in it: bfloat16 on a CPU, float16 on a GPU.
        engine: ``torch`` as it is; ``compile``, by torch.compile, which needs a compiler; ``cuda_graph``, on a GPU,
            whose kernels are recorded once for each size of batch and then launched together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision = "auto"
    engine: Engine = "torch"

    def resolved(self, device: torch.device) -> InferencePlan:
        """Without ``auto``, as it is best on a device."""
        return self if self.precision != "auto" else self.model_copy(update={"precision": _native(device)})

    @property
    def name(self) -> str:
        """In two words: ``bfloat16 torch``."""
        return f"{self.precision} {self.engine}"


FLOAT32 = InferencePlan(precision="float32")
"""How every version was computed before versions had a plan."""


def network_of(encoder: Encoder, plan: InferencePlan) -> Encoder:
    """A copy of an encoder that computes in a plan's precision, its batch norms folded.

    Args:
        encoder: on the device; it stays as it is, and the copy has its weights as they are now.
        plan: resolved.
    """
    return folded(encoder).to(getattr(torch, plan.precision)).to(memory_format=torch.channels_last)


def embedder(network: Encoder, plan: InferencePlan, device: torch.device) -> Embed:
    """What runs a network by a plan's engine.

    Args:
        network: as ``network_of`` makes it.
        plan: resolved.
        device: where the network is.

    Raises:
        InferenceError: the engine does not work here.
    """
    match plan.engine:
        case "torch":
            return network.embeddings
        case "compile":
            return _compiled(network, device)
        case "cuda_graph":
            if device.type != "cuda":
                raise InferenceError(
                    f"its plan, {plan.name}, needs a CUDA GPU, and it is to run on {device}; make a version with a "
                    "plan for this machine: plumbline tune"
                )
            return InBatches(CudaGraphs(network.embeddings))


def folded(encoder: Encoder) -> Encoder:
    """A copy for inference alone: its batch norms are part of the convolutions before them, no gradients."""
    made = copy.deepcopy(encoder).eval().requires_grad_(False)
    for parent in list(made.modules()):
        # In all networks here a batch norm is declared after the convolution whose output it takes.
        for (name, first), (other, second) in pairwise(list(parent.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(first, second))
                setattr(parent, other, nn.Identity())
    return made


class InBatches:
    """Runs what knows batches of the sizes ``BATCHES`` only: other batches are filled up with blank images, or cut.

    Args:
        embed: which never sees another size of batch.
    """

    def __init__(self, embed: Embed) -> None:
        self._embed = embed

    def __call__(self, pixels: Tensor) -> Tensor:
        """As ``Embed``, of any number of images."""
        parts = [self._filled(part) for part in torch.split(pixels, BATCHES[-1])]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _filled(self, pixels: Tensor) -> Tensor:
        count = len(pixels)
        size = next(size for size in BATCHES if size >= count)
        if size > count:
            pixels = torch.cat([pixels, pixels.new_zeros(size - count, *pixels.shape[1:])])
        return self._embed(pixels.contiguous(memory_format=torch.channels_last))[:count]


class CudaGraphs:
    """Records the kernels of a function once for each shape of its argument, and launches them together from then on.

    The thread that calls it first is the one that may go on calling it.
    """

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """As ``Embed``."""
        if pixels.shape not in self._recorded:
            self._recorded[pixels.shape] = self._record(pixels)
        graph, given, made = self._recorded[pixels.shape]
        given.copy_(pixels)
        graph.replay()
        return made.clone()  # the next replay writes over it

    def _record(self, pixels: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given = pixels.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # a first run chooses kernels and allocates, which may not be recorded
            for _ in range(3):
                self._embed(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = self._embed(given)
        return graph, given, made


def _compiled(network: Encoder, device: torch.device) -> Embed:
    """``torch.compile``, tried now, so that what is missing shows at once; it takes a minute or two."""
    run = torch.compile(network.embeddings)
    side = network.geometry.image_size
    try:
        with torch.inference_mode():
            for count in COMPILED_FOR:
                blank = torch.zeros(count, 3, side, side, device=device)
                run(blank.contiguous(memory_format=torch.channels_last))
    except Exception as error:  # whatever a compiler may say
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InferenceError(
            "its plan has the engine compile, and torch.compile does not work here: install a C++ compiler (g++), or "
            f"make a version with another plan: plumbline tune ({first})"
        ) from error
    return run


def _native(device: torch.device) -> Precision:
    if device.type == "cuda":
        return "float16"
    return "bfloat16" if computes_bfloat16(device) else "float32"
