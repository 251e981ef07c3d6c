"""The whole path on a synthetic product: synthesise, train, evaluate, serve, score a good and a defective part."""

from __future__ import annotations

import argparse
import json
import shutil
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from cli.errors import UsageError
from cli.options import add_common, positive_integer
from cli.progress import count_bar, say, training_bar

PRODUCT = "fabric"
DEFECT = "scratch"
SEED = 0
TRAIN_IMAGES, TEST_GOOD_IMAGES, TEST_DEFECTS = 120, 20, 8
WIDTH, STEPS = 16, 1100  # a small encoder and a short run: the demonstration is to take 3 minutes on 2 cores

MARKER = ".plumbline-demo"  # lies in a folder that a demonstration made, and may make again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--no-serve", action="store_true", help="end after the two parts are scored")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for all it makes (default: %(default)s)")
    parser.add_argument("--product", default=PRODUCT, help="what to synthesise (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="of the service (default: %(default)s)")
    parser.add_argument("--steps", type=positive_integer, default=STEPS, help="of training (default: %(default)s)")
    add_common(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the demonstration; what an earlier one left in ``--out`` is replaced."""
    from models.configuration import DetectorConfiguration
    from models.device import resolve_device, set_threads
    from models.encoders import DensePatchConfiguration
    from models.store import ModelStore
    from service.server import check_address, serving
    from service.settings import load_settings
    from training.data import open_dataset
    from training.evaluation import evaluate
    from training.fit import FitConfiguration, fit
    from training.synthetic import defects_of, generate
    from training.trainer import TrainingConfiguration

    started = time.monotonic()
    set_threads(options.threads)
    # All that can be refused is, before minutes of work and before an earlier demonstration is deleted.
    product = options.product
    defects_of(product)  # raises where it is none
    device = resolve_device(options.device)
    out: Path = options.out
    data, models, report = out / "data", out / "models", out / "report"
    if out.exists() and not (out / MARKER).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} holds what no demonstration made; name a new or an empty folder (--out)")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    models.mkdir(exist_ok=True)
    settings = load_settings(models=models, port=options.port, device=options.device, records="none")
    check_address(settings)
    for folder in (data, models, report, out / "run"):
        shutil.rmtree(folder, ignore_errors=True)
    models.mkdir()
    say(f"a synthetic product, {product}: {TRAIN_IMAGES} good parts to learn from")
    generate(
        data, product, seed=SEED, train=TRAIN_IMAGES, test_good=TEST_GOOD_IMAGES, test_defects=TEST_DEFECTS
    )  # fmt: skip
    dataset = open_dataset(data, product)
    configuration = FitConfiguration(
        detector=DetectorConfiguration(encoder=DensePatchConfiguration(width=WIDTH)),
        training=TrainingConfiguration(steps=options.steps, seed=SEED),
    )
    with training_bar() as bar:
        detector, _ = fit(
            dataset, configuration, device=device, folder=out / "run", stage=say, report=bar, count=bar.count
        )
    ModelStore(models).publish(product, detector.save)
    with count_bar() as count:
        metrics = evaluate(detector, dataset, report, progress=count)
    print(f"image AUROC {metrics['image_auroc']:.3f}, pixel AUROC {metrics['pixel_auroc']:.3f}: {report}/metrics.json")

    # Of the test images, the one in the middle of each folder.
    parts = {"good": data / product / "test" / "good", "defective": data / product / "test" / DEFECT}
    verdicts: dict[str, str] = {}
    heatmap = out / "heatmap.png"
    with serving(settings) as url:
        for name, folder in parts.items():
            images = sorted(folder.iterdir())
            image = images[len(images) // 2]
            answer = json.loads(_post(f"{url}/v1/categories/{product}/score", image))
            verdicts[name] = answer["verdict"]
            print(f"POST /v1/categories/{product}/score, a {name} part: {answer['verdict']}, "
                  f"score {answer['image_score']:.3f}, threshold {answer['threshold']:.3f}")  # fmt: skip
        heatmap.write_bytes(_post(f"{url}/v1/categories/{product}/heatmap", image))
        print(f"heatmap of the defective part: {heatmap}")
        print(f"interactive documentation: {url}/docs")
        result = {
            "verdicts": verdicts,
            "heatmap": str(heatmap),
            "seconds": time.monotonic() - started,
            **{name: metrics[name] for name in ("image_auroc", "pixel_auroc", "aupro_30", "image_ap", "pixel_ap")},
        }
        if not options.no_serve:
            say(f"serving at {url}; Ctrl-C ends it")
            _wait_for_interrupt()
    return result


def _post(url: str, image: Path) -> bytes:
    request = urllib.request.Request(url, image.read_bytes(), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        body: bytes = answer.read()
    return body


def _wait_for_interrupt() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("stopped")
