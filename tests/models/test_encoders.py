from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from models.encoders import (
    WIDTHS,
    DensePatch,
    DensePatchConfiguration,
    Encoder,
    EncoderConfiguration,
    ResNet18Patch,
    ResNet18PatchConfiguration,
    create_encoder,
    encode_per_window,
    extract_windows,
    resnet18_patch,
)
from models.geometry import ScanGeometry

GEOMETRY = ScanGeometry()
PATCH, STRIDE = GEOMETRY.patch_size, GEOMETRY.stride
TOLERANCE = 1e-5  # of the dense scan's promise, in float32

# An encoder that is new in the registry is tested at the small sizes, with its own defaults, until it says more here.
SETTINGS: dict[type, dict[str, Any]] = {DensePatchConfiguration: {"width": 4}}
WIDE: dict[type, dict[str, Any]] = {DensePatchConfiguration: {"width": 32}}  # enough that every pixel finds a live path
SMALL = (PATCH, PATCH + 5)
SIZES: dict[type, tuple[int, ...]] = {DensePatchConfiguration: (131, 97, 64, PATCH)}

REGISTRY = get_args(get_args(EncoderConfiguration)[0])
# Those whose embeddings depend on their windows alone, and which therefore promise that the scan is the run by windows.
INDEPENDENT = [kind for kind in REGISTRY if create_encoder(kind(), GEOMETRY).independent_windows]
names = pytest.mark.parametrize("configuration", REGISTRY, ids=[kind().name for kind in REGISTRY])
independent = pytest.mark.parametrize("configuration", INDEPENDENT, ids=[kind().name for kind in INDEPENDENT])


def with_sizes(kinds: Sequence[type]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("configuration", "size"),
        [pytest.param(kind, size, id=f"{kind().name}-{size}") for kind in kinds for size in SIZES.get(kind, SMALL)],
    )


def build(configuration: type, **settings: Any) -> Encoder:
    """An encoder with random weights, in evaluation mode; small where no setting is given."""
    torch.manual_seed(0)
    return create_encoder(configuration(**(settings or SETTINGS.get(configuration, {}))), GEOMETRY).eval()


def untouched(encoder: Encoder) -> None:
    """Batch norm as it is made: the identity."""


def perturbed(encoder: Encoder) -> None:
    """Give every batch norm statistics and weights of its own, far from the identity."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, std=0.3)


def trained(encoder: Encoder) -> None:
    """A few steps of learning to tell bright windows from dark ones."""
    kind = type(encoder), encoder.dimension
    if kind not in learned:
        train(encoder)
        learned[kind] = encoder.state_dict()
    encoder.load_state_dict(learned[kind])


learned: dict[tuple[type, int], dict[str, Tensor]] = {}  # each is trained once


def train(encoder: Encoder) -> None:
    head = nn.Linear(encoder.dimension, 2)
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.05, momentum=0.9)
    encoder.train()
    for _ in range(2):
        labels = torch.arange(2)
        patches = (torch.rand(2, 3, PATCH, PATCH) + labels[:, None, None, None]) / 2
        loss = F.cross_entropy(head(encoder(patches)[:, :, 0, 0]), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    encoder.eval()


weights = pytest.mark.parametrize("weights", [untouched, perturbed, trained])


def random_images(count: int, height: int, width: int | None = None) -> Tensor:
    return torch.rand(count, 3, height, width or height, generator=torch.Generator().manual_seed(1))


def largest_difference(first: Tensor, second: Tensor) -> float:
    assert first.shape == second.shape
    return float((first - second).abs().max())


# --- what every encoder promises ------------------------------------------------------------------------------------


@names
def test_the_registry_makes_an_encoder_by_its_name(configuration: type) -> None:
    encoder = build(configuration)
    assert isinstance(encoder, Encoder)
    assert encoder.geometry == GEOMETRY
    parsed: Any = TypeAdapter(EncoderConfiguration).validate_json(configuration().model_dump_json())
    assert parsed == configuration()


@with_sizes(REGISTRY)
def test_one_unit_embedding_per_window(configuration: type, size: int) -> None:
    encoder = build(configuration)
    with torch.inference_mode():
        embeddings = encoder(random_images(2, size))
    side = GEOMETRY.windows(size)
    assert embeddings.shape == (2, encoder.dimension, side, side)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, side, side))


@weights
@with_sizes(INDEPENDENT)
def test_the_dense_scan_is_the_run_window_by_window(
    configuration: type, size: int, weights: Callable[[Encoder], None]
) -> None:
    encoder = build(configuration)
    weights(encoder)
    images = random_images(1, size)
    with torch.inference_mode():
        assert largest_difference(encoder(images), encode_per_window(encoder, images)) <= TOLERANCE


@independent
def test_so_it_is_for_a_batch_of_images_that_are_not_square(configuration: type) -> None:
    encoder = build(configuration)
    perturbed(encoder)
    images = random_images(2, PATCH + 2 * STRIDE, PATCH + 7)
    with torch.inference_mode():
        dense = encoder(images)
        assert dense.shape == (2, encoder.dimension, 3, 2)
        assert largest_difference(dense, encode_per_window(encoder, images, batch_size=5)) <= TOLERANCE


@independent
def test_so_it_is_in_the_memory_layout_that_a_detector_uses(configuration: type) -> None:
    encoder = build(configuration)
    perturbed(encoder)
    images = random_images(2, PATCH + 2 * STRIDE)
    with torch.inference_mode():
        per_window = encode_per_window(encoder, images)
        encoder = encoder.to(memory_format=torch.channels_last)
        assert largest_difference(encoder(images.to(memory_format=torch.channels_last)), per_window) <= TOLERANCE


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_so_it_is_for_every_named_size(width: int) -> None:
    encoder = build(DensePatchConfiguration, width=width)
    trained(encoder)
    images = random_images(1, PATCH + 2 * STRIDE + 1)
    with torch.inference_mode():
        assert largest_difference(encoder(images), encode_per_window(encoder, images)) <= TOLERANCE


def test_so_it_is_for_the_papers_image() -> None:
    encoder = build(DensePatchConfiguration)
    perturbed(encoder)
    images = random_images(1, GEOMETRY.image_size)
    with torch.inference_mode():
        dense = encoder(images)
        assert dense.shape == (1, encoder.dimension, GEOMETRY.grid_size, GEOMETRY.grid_size)
        assert largest_difference(dense, encode_per_window(encoder, images)) <= TOLERANCE


@pytest.mark.cuda
@independent
def test_so_it_is_on_cuda(configuration: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    encoder = build(configuration)
    trained(encoder)
    encoder = encoder.to("cuda")
    images = random_images(1, 131).to("cuda")
    with torch.inference_mode():
        dense = encoder(images)
        assert largest_difference(dense, encode_per_window(encoder, images)) <= TOLERANCE
        assert largest_difference(dense.cpu(), encoder.to("cpu")(images.cpu())) <= TOLERANCE


@independent
def test_an_embedding_sees_its_window_and_all_of_it(configuration: type) -> None:
    encoder = build(configuration, **WIDE.get(configuration, {}))
    image = random_images(1, PATCH + STRIDE).requires_grad_()
    (gradient,) = torch.autograd.grad(encoder.features(image)[0, :, 1, 0].square().sum(), image)
    expected = torch.zeros(image.shape[2:], dtype=torch.bool)
    box = GEOMETRY.window(1, 0)
    expected[box.y : box.y + box.height, box.x : box.x + box.width] = True
    assert torch.equal((gradient != 0).any(dim=1)[0], expected)


@independent
def test_a_changed_pixel_changes_exactly_the_windows_over_it(configuration: type) -> None:
    encoder = build(configuration, **WIDE.get(configuration, {}))
    geometry = ScanGeometry(image_size=PATCH + STRIDE + 1)  # 2 x 2 windows; the last row and column are not scanned
    last = geometry.image_size - 1
    pixels = [(0, 0), (STRIDE - 1, STRIDE), (19, 23), (PATCH - 1, PATCH), (last - 1, last - 1), (last, 7)]
    images = random_images(1, geometry.image_size).repeat(1 + len(pixels), 1, 1, 1)
    expected = torch.zeros(len(pixels), geometry.grid_size, geometry.grid_size, dtype=torch.bool)
    for changed, windows, pixel in zip(images[1:], expected, pixels, strict=True):
        changed[:, pixel[0], pixel[1]] += 0.5
        rows, columns = geometry.windows_over(*pixel)
        windows[rows.start : rows.stop, columns.start : columns.stop] = True
    with torch.inference_mode():
        unchanged, *others = (encoder.features(image[None])[0] for image in images)
    assert torch.equal(torch.stack([(other != unchanged).any(dim=0) for other in others]), expected)
    assert expected.sum(dim=(1, 2)).tolist() == [1, 2, 4, 2, 1, 0]


@names
def test_an_image_smaller_than_a_window_is_refused(configuration: type) -> None:
    encoder = build(configuration)
    for height, width in ((PATCH - 1, PATCH), (PATCH, PATCH - 1), (1, 1)):
        with pytest.raises(ValueError, match=f"an edge of {min(height, width)} pixels holds no window of {PATCH}"):
            encoder(torch.zeros(1, 3, height, width))


def test_windows_are_the_slices_that_the_geometry_names() -> None:
    geometry = ScanGeometry(image_size=19, patch_size=6, stride=5)
    images = random_images(2, geometry.image_size)
    windows = extract_windows(images, geometry)
    assert windows.shape == (2, geometry.grid_size, geometry.grid_size, 3, geometry.patch_size, geometry.patch_size)
    assert windows.data_ptr() == images.data_ptr()
    for i in range(geometry.grid_size):
        for j in range(geometry.grid_size):
            box = geometry.window(i, j)
            assert torch.equal(windows[:, i, j], images[:, :, box.y : box.y + box.height, box.x : box.x + box.width])


# --- the two encoders -----------------------------------------------------------------------------------------------


def test_resnet18_patch_is_the_papers_network() -> None:
    encoder = build(ResNet18PatchConfiguration)
    assert isinstance(encoder, ResNet18Patch)
    assert encoder.dimension == 512
    shapes: list[tuple[int, ...]] = []
    backbone = encoder.backbone
    for stage in (backbone.maxpool, backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    given: list[Tensor] = []
    backbone.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    images = random_images(1, PATCH)
    with torch.inference_mode():
        encoder(images)
    assert torch.equal(given[0], images * 2 - 1)
    # The CIFAR stem keeps the full resolution: a 3x3 convolution at stride 1 and no max-pool.
    assert shapes == [
        (64, PATCH, PATCH),
        (64, PATCH, PATCH),
        (128, PATCH // 2, PATCH // 2),
        (256, PATCH // 4, PATCH // 4),
        (512, PATCH // 8, PATCH // 8),
    ]

    def convolution(channels: int, out_channels: int, side: int) -> int:
        return channels * out_channels * side**2 + 2 * out_channels  # with its batch norm

    expected = convolution(3, 64, 3) + 4 * convolution(64, 64, 3)
    for channels, out_channels in ((64, 128), (128, 256), (256, 512)):
        expected += convolution(channels, out_channels, 3) + 3 * convolution(out_channels, out_channels, 3)
        expected += convolution(channels, out_channels, 1)  # the shortcut
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected == 11_168_832


def test_resnet18_patch_bounds_what_it_scans_at_once_and_not_what_batch_norm_learns_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resnet18_patch, "WINDOWS_PER_BATCH", 2)
    encoder, counts = build(ResNet18PatchConfiguration), list[int]()
    assert isinstance(encoder, ResNet18Patch)
    encoder.backbone.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
    with torch.inference_mode():
        encoder.eval().features(random_images(3, PATCH))
        encoder.train().features(random_images(3, PATCH))
    assert counts == [2, 1, 3]


def test_resnet18_patch_takes_any_geometry() -> None:
    geometry = ScanGeometry(image_size=23, patch_size=16, stride=7)
    encoder = ResNet18Patch(geometry).eval()
    perturbed(encoder)
    images = random_images(1, geometry.image_size)
    with torch.inference_mode():
        dense = encoder(images)
        assert dense.shape[2:] == (2, 2)
        assert largest_difference(dense, encode_per_window(encoder, images)) <= TOLERANCE


@pytest.mark.parametrize("width", [1, 3, 16])
def test_dense_patch_has_features_of_eight_times_its_width(width: int) -> None:
    encoder = build(DensePatchConfiguration, width=width)
    assert encoder.feature_dimension == 8 * width
    assert encoder.features(random_images(1, PATCH)).shape == (1, 8 * width, 1, 1)


def test_dense_patch_has_named_sizes() -> None:
    assert {DensePatchConfiguration(width=width).size: width for width in WIDTHS.values()} == WIDTHS
    assert (DensePatchConfiguration().size, DensePatchConfiguration(width=24).size) == ("base", None)


def test_dense_patch_embeds_as_the_paper_does_or_by_every_stage() -> None:
    """The last stage is f / ||f||; the others are means of what the blocks say over the window's positions."""
    last = build(DensePatchConfiguration, width=4, embedding="last")
    stages = build(DensePatchConfiguration, width=4)
    stages.load_state_dict(last.state_dict())
    assert (last.dimension, stages.dimension) == (32, 60)
    assert isinstance(stages, DensePatch)
    patch = random_images(1, PATCH)
    with torch.inference_mode():
        torch.testing.assert_close(last(patch), F.normalize(last.features(patch), dim=1))
        x, means = stages.stem(patch * 2 - 1), []
        for block in stages.blocks:
            x = block(x)
            means.append(x.flatten(2).mean(dim=2))
        expected = torch.cat([F.normalize(means[number], dim=1) for number in (0, 2, 4, 5)], dim=1) / 2
        torch.testing.assert_close(stages(patch)[:, :, 0, 0], expected)


@pytest.mark.parametrize("geometry", [ScanGeometry(patch_size=16), ScanGeometry(stride=8)])
def test_dense_patch_refuses_another_geometry(geometry: ScanGeometry) -> None:
    with pytest.raises(ValueError, match=f"not {geometry.patch_size} at stride {geometry.stride}"):
        DensePatch(geometry)


def test_dense_patch_refuses_a_width_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="width must be positive, not 0"):
        DensePatch(GEOMETRY, width=0)


@pytest.mark.parametrize(
    "configuration",
    [{"name": "resnet19_patch"}, {"name": "dense_patch", "width": 0}, {"name": "resnet18_patch", "width": 8}, {}],
)
def test_a_configuration_that_names_no_encoder_is_refused(configuration: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(EncoderConfiguration).validate_python(configuration)
