"""``PretrainedPatch``: where its features lie, what it trains, and where its weights come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from models.encoders import PretrainedPatch, PretrainedPatchConfiguration, WeightsError, create_encoder
from models.encoders.pretrained_patch import LEVELS, Backbone, window_weights
from models.geometry import ScanGeometry

GEOMETRY = ScanGeometry()
WEIGHTS = Path(torch.hub.get_dir()) / "checkpoints" / "mobilenet_v2-b0353104.pth"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no {WEIGHTS}; set TORCH_HOME")
every_backbone = pytest.mark.parametrize("backbone", get_args(Backbone))


def make_encoder(backbone: Backbone = "mobilenet_v2", geometry: ScanGeometry = GEOMETRY) -> PretrainedPatch:
    torch.manual_seed(0)
    encoder = create_encoder(PretrainedPatchConfiguration(backbone=backbone), geometry)
    assert isinstance(encoder, PretrainedPatch)
    return encoder.eval()


def random_images(count: int, side: int) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of torch's, and a proxy that is not there; the cache's folder of files."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hub" / "checkpoints"


# --- where the features lie -------------------------------------------------------------------------------------------


def slow_weights(length: int, cells: int, jump: int, geometry: ScanGeometry) -> list[list[float]]:
    """Pixel by pixel: each gives its share to the two outputs it lies between."""
    rows = []
    for window in range(geometry.windows(length)):
        row = [0.0] * cells
        for pixel in range(window * geometry.stride, window * geometry.stride + geometry.patch_size):
            before, share = divmod(pixel / jump, 1)
            row[min(int(before), cells - 1)] += (1 - share) / geometry.patch_size
            row[min(int(before) + 1, cells - 1)] += share / geometry.patch_size
        rows.append(row)
    return rows


@pytest.mark.parametrize("geometry", [GEOMETRY, ScanGeometry(image_size=90, patch_size=17, stride=5)])
@pytest.mark.parametrize("jump", [4, 8, 16])
@pytest.mark.parametrize("length", [32, 57, 90, 256])
def test_window_weights_share_every_pixel_between_its_outputs(length: int, jump: int, geometry: ScanGeometry) -> None:
    cells = math.ceil(length / jump)
    weights = window_weights(length, cells, jump, geometry)
    torch.testing.assert_close(weights, torch.tensor(slow_weights(length, cells, jump, geometry)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))


@pytest.mark.parametrize("jump", [8, 16])
def test_a_map_of_positions_has_its_windows_centres_as_means(jump: int) -> None:
    """No shift: outputs that hold their own position in pixels average to the centre of each window."""
    cells = GEOMETRY.image_size // jump
    positions = torch.arange(cells) * float(jump)
    means = window_weights(GEOMETRY.image_size, cells, jump, GEOMETRY) @ positions
    inside = [
        i for i in range(GEOMETRY.grid_size) if GEOMETRY.window(i, 0).y + GEOMETRY.patch_size - 1 <= positions[-1]
    ]
    assert len(inside) > GEOMETRY.grid_size // 2
    for i in inside:
        assert float(means[i]) == pytest.approx(GEOMETRY.center(i, 0)[0], abs=1e-4)


@every_backbone
def test_an_output_is_centred_where_the_weights_assume_it(backbone: Backbone) -> None:
    """By the gradient of one output with respect to the image, with positive weights: symmetric about its pixel."""
    encoder, side = make_encoder(backbone), 256
    for module in encoder.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.ReLU6):  # whose upper end would cut the gradient off
            module.max_val = math.inf
    image = random_images(1, side).requires_grad_()
    for level, maps in zip(encoder.levels, encoder.backbone(image).values(), strict=True):
        middle = maps.shape[2] // 2
        (gradient,) = torch.autograd.grad(maps[0, :, middle, middle].sum(), image, retain_graph=True)
        mass = gradient[0].abs().sum(dim=(0, 2))  # by row
        centre = float((mass * torch.arange(side)).sum() / mass.sum())
        assert maps.shape[1] == level.channels
        assert side / maps.shape[2] == level.jump
        assert centre == pytest.approx(middle * level.jump, abs=0.6)


@every_backbone
def test_features_are_the_means_of_two_maps_and_embeddings_normalise_each(backbone: Backbone) -> None:
    encoder, images = make_encoder(backbone), random_images(2, 70)
    mean, deviation = (torch.tensor(value)[:, None, None] for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        features, embeddings = encoder.features(images), encoder(images)
        maps = encoder.backbone((images - mean) / deviation)
        parts = []
        for level in LEVELS[backbone]:
            weights = torch.tensor(slow_weights(70, math.ceil(70 / level.jump), level.jump, GEOMETRY))
            parts.append(torch.einsum("bckl,ik,jl->bcij", maps[level.module], weights, weights))
    torch.testing.assert_close(features, torch.cat(parts, dim=1), atol=1e-5, rtol=1e-4)
    expected = torch.cat([F.normalize(part, dim=1) for part in parts], dim=1) / math.sqrt(2)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)
    assert embeddings.shape == (2, encoder.dimension, GEOMETRY.windows(70), GEOMETRY.windows(70))


def test_it_says_that_a_window_is_not_seen_alone() -> None:
    encoder, image = make_encoder(), random_images(1, 96)
    assert not encoder.independent_windows
    changed = image.clone()
    changed[:, :, 40:, :] += 0.5  # outside the first window
    with torch.inference_mode():
        assert not torch.equal(encoder.features(image)[..., 0, 0], encoder.features(changed)[..., 0, 0])


# --- what is trained --------------------------------------------------------------------------------------------------


@every_backbone
def test_only_the_layers_between_the_two_levels_learn(backbone: Backbone) -> None:
    encoder = make_encoder(backbone).train()
    encoder.features(random_images(2, 64)).square().sum().backward()  # type: ignore[no-untyped-call]
    first, second = (level.module for level in encoder.levels)
    learning = {name for name, parameter in encoder.backbone.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(f"{first}.") for name in learning)
    assert any(name.startswith(f"{second}.") for name in learning)
    for name, parameter in encoder.backbone.named_parameters():
        assert (parameter.grad is not None) == (name in learning)
    whole = [name for name, _ in get_model(backbone, weights=None).named_parameters()]
    started, ended = (max(whole.index(n) for n in whole if n.startswith(f"{m}.")) for m in (first, second))
    assert learning == set(whole[started + 1 : ended + 1])


def test_batch_norm_keeps_its_statistics_while_training() -> None:
    encoder = make_encoder().train()
    assert encoder.training
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    trained = encoder.features(random_images(4, 40))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(trained, encoder.eval().features(random_images(4, 40)))


# --- where the weights come from --------------------------------------------------------------------------------------


@needs_weights
def test_initialise_loads_torchvisions_weights() -> None:
    encoder = make_encoder()
    encoder.initialise()
    whole = get_model("mobilenet_v2", weights=get_model_weights("mobilenet_v2")["IMAGENET1K_V1"]).state_dict()
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, whole[name])


@needs_weights
def test_an_artifacts_encoder_needs_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder()
    encoder.initialise()
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no weights here
    again = create_encoder(PretrainedPatchConfiguration(), GEOMETRY).eval()
    again.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    images = random_images(1, 48)
    with torch.inference_mode():
        assert torch.equal(again(images), encoder(images))


@every_backbone
def test_without_a_network_the_error_says_what_to_put_where(backbone: Backbone, no_network: Path) -> None:
    encoder = make_encoder(backbone)
    with pytest.raises(WeightsError) as error:
        encoder.initialise()
    url = get_model_weights(backbone)["IMAGENET1K_V1"].url
    for mention in (url, str(no_network / url.rpartition("/")[2]), "TORCH_HOME", backbone):
        assert mention in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_a_damaged_file_is_named(content: bytes, no_network: Path) -> None:
    no_network.mkdir(parents=True)
    file = no_network / WEIGHTS.name
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged or not the weights of mobilenet_v2") as error:
        make_encoder().initialise()
    assert str(file) in str(error.value)


def test_weights_of_another_network_are_refused(no_network: Path) -> None:
    no_network.mkdir(parents=True)
    torch.save(get_model("resnet18", weights=None).state_dict(), no_network / WEIGHTS.name)
    with pytest.raises(WeightsError, match="damaged or not the weights of mobilenet_v2"):
        make_encoder().initialise()
