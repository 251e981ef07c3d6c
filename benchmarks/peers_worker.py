"""anomalib's models in an environment of their own: fitted once, then timed an image at a time when told to.

Run by ``benchmarks.peers`` with the interpreter of that environment; imports nothing of ours. Lines of JSON: the first
that it reads says what to do, and it answers with facts; each further one names a model and an image, and it answers
with the seconds that ``model(image)`` took.

Their weights come from hubs that a machine at a line does not reach, so they are random: what is measured is time, and
what a model finds is noise.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np
import torch
from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import Tensor, nn

CORESET = 0.1  # anomalib's default share of the patches
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as ImageNet's networks take an image
BATCH = 8  # images that are fitted at once


def padim(batches: Callable[[], Iterator[Tensor]]) -> tuple[nn.Module, dict[str, Any]]:
    """PaDiM at its defaults: ResNet-18, three layers, 100 features a patch."""
    model = PadimModel(backbone="resnet18", layers=["layer1", "layer2", "layer3"], pre_trained=False).train()
    model.feature_extractor.eval()
    for batch in batches():
        model(batch)
    model.fit()
    return model, {}


def patchcore(backbone: str, batches: Callable[[], Iterator[Tensor]]) -> tuple[nn.Module, dict[str, Any]]:
    """PatchCore at its defaults, but with a coreset drawn at random: the greedy one takes long and is as large."""
    model = PatchcoreModel(backbone=backbone, layers=["layer2", "layer3"], pre_trained=False).train()
    model.feature_extractor.eval()
    kept = []
    for batch in batches():
        embeddings = model(batch)
        kept.append(embeddings[torch.randperm(len(embeddings))[: round(CORESET * len(embeddings))]])
        model.embedding_store.clear()
    model.memory_bank = torch.cat(kept)
    return model, {"bank": list(model.memory_bank.shape)}


def efficient_ad() -> tuple[nn.Module, dict[str, Any]]:
    """EfficientAD-S at its defaults; its training moves weights and needs ImageNet, and costs no image any time."""
    model = EfficientAdModel(model_size="small")
    for name, value in (("mean", 0.0), ("std", 1.0)):
        model.mean_std[name].data.fill_(value)
    for name, value in (("qa_st", 0.0), ("qb_st", 1.0), ("qa_ae", 0.0), ("qb_ae", 1.0)):
        model.quantiles[name].data.fill_(value)
    return model, {}


def main() -> None:
    """Serve until standard input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    order = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(order["threads"])
    images = torch.from_numpy(np.load(order["images"])).permute(0, 3, 1, 2).float() / 255  # (N, 3, S, S)
    normalised = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    count = order["fit_images"]

    def batches() -> Iterator[Tensor]:
        for start in range(0, count, BATCH):
            yield normalised[torch.arange(start, min(start + BATCH, count)) % len(normalised)]

    makers: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
        "padim_resnet18": lambda: padim(batches),
        "patchcore_resnet18": lambda: patchcore("resnet18", batches),
        "efficientad_s": efficient_ad,
        "patchcore_wide_resnet50_2": lambda: patchcore("wide_resnet50_2", batches),
    }
    with torch.inference_mode():
        made = {name: makers[name]() for name in order["models"]}
        models = {name: model.eval() for name, (model, _) in made.items()}
        facts: dict[str, Any] = {"anomalib": metadata.version("anomalib"), "torch": torch.__version__}
        facts |= {"threads": torch.get_num_threads(), "models": {name: what for name, (_, what) in made.items()}}
        print(json.dumps(facts), file=answers, flush=True)
        for line in sys.stdin:
            name, number = json.loads(line)
            image = (images if name == "efficientad_s" else normalised)[number % len(images)][None].contiguous()
            start = time.perf_counter()
            found = models[name](image)
            seconds = time.perf_counter() - start
            assert found.anomaly_map.shape[-2:] == image.shape[-2:]
            print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main()
