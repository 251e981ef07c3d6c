"""Milliseconds an image of Plumbline's default beside anomalib's models, in turns within one run.

make peers-env && python -m benchmarks.peers --json

What is compared, on the CPU, batch 1 at 256 x 256 with the same number of threads: theirs from the normalised float
image to the anomaly map, in inference mode, float32, as anomalib runs them; its resizing and normalising is left out.
Ours with all that belongs to it: ``plumbline_default`` is ``Detector.predict``, from the image array to score, verdict,
regions and heatmap; ``plumbline_default_look`` is ``scan.look`` alone, from the input to score map and heatmap.
Our process keeps memory that it frees (``models.allocator``), as ``plumbline`` does; theirs not.

Each turn of a model is one call that does not count and the median of three that do, so that a model has its own memory
in the caches. Their weights are random: time only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detectors import load_active, prepare
from benchmarks.machine import machine
from models.allocator import keep_freed_memory
from models.detector import Detector
from models.device import set_threads
from models.images import read_image
from models.timing import turns

WORKER = Path(__file__).with_name("peers_worker.py")
PEERS = ("padim_resnet18", "patchcore_resnet18", "efficientad_s", "patchcore_wide_resnet50_2")
REFERENCE = "padim_resnet18"
FIT_IMAGES = 160  # PatchCore keeps a tenth of their patches: a bank of 16,380
CALLS = 3  # that count, of a turn
PAUSE_S = 0.02  # before a turn: threads of the other process that wait for work in a loop go to sleep


def measure(
    detector: Detector,
    images: Sequence[Path],
    python: Path,
    *,
    threads: int,
    rounds: int = 15,
    fit_images: int = FIT_IMAGES,
    peers: Sequence[str] = PEERS,
) -> dict[str, Any]:
    """Time all on the same images.

    Args:
        detector: ours, on the CPU.
        images: files; theirs are fitted on them too, taken again where they are fewer than ``fit_images``.
        python: the interpreter of the environment that has anomalib.
        threads: of either process.
        rounds: turns of each model.
        fit_images: that PaDiM and PatchCore are fitted on.
        peers: which of theirs.

    Returns:
        Medians of milliseconds an image by name, their ratios to ``REFERENCE`` within rounds, and what was compared.
    """
    keep_freed_memory()  # as ``plumbline`` does
    set_threads(threads)
    facts = machine()
    originals = [read_image(path) for path in images]
    inputs = np.stack([detector.place(image)[0] for image in originals])
    ours: dict[str, Callable[[int], object]] = {
        "plumbline_default": lambda number: detector.predict([originals[number % len(originals)]]),
        "plumbline_default_look": lambda number: detector.scan.look(inputs[number % len(inputs), np.newaxis]),
    }
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", inputs)
        order = {"images": f"{folder}/images.npy", "threads": threads, "fit_images": fit_images, "models": list(peers)}
        with _worker(python, order) as (about, ask):
            timings = turns(
                {
                    **{name: _turn(_timed(function)) for name, function in ours.items()},
                    **{name: _turn(partial(ask, name)) for name in peers},
                },
                rounds,
            )
    reference = timings[REFERENCE] if REFERENCE in timings else next(iter(timings.values()))
    return {
        "milliseconds": {name: timing.facts()["milliseconds"] for name, timing in timings.items()},
        f"ratio_to_{REFERENCE}": {name: round(timing.ratio(reference), 3) for name, timing in timings.items()},
        "timings": {name: timing.facts() for name, timing in timings.items()},
        "peers": {**about, "weights": "random: time only", "fit_images": fit_images},
        "plumbline": {
            "category": detector.category,
            "configuration": detector.scan.configuration.model_dump(mode="json"),
            "density": [member.density.facts() for member in detector.scan.members],
        },
        "input": list(inputs.shape[1:]),
        "machine": facts,
    }


def _timed(function: Callable[[int], object]) -> Callable[[int], float]:
    def seconds(number: int) -> float:
        start = time.perf_counter()
        function(number)
        return time.perf_counter() - start

    return seconds


def _turn(seconds: Callable[[int], float]) -> Callable[[], float]:
    """A turn of a model: what tells how long image ``number`` took is asked a few times, for another image each."""
    number = 0

    def turn() -> float:
        nonlocal number
        time.sleep(PAUSE_S)
        number += 1 + CALLS
        return statistics.median([seconds(number + call) for call in range(1 + CALLS)][1:])

    return turn


@contextmanager
def _worker(python: Path, order: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Callable[[str, int], float]]]:
    """The process with their models: what it says of itself, and what asks it how long an image takes."""
    # Ours, on the path by way of a variable, would take the place of theirs.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-P", str(WORKER)]  # -P: benchmarks/http.py is not the http of the standard library
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        source, sink = process.stdout, process.stdin

        def exchange(message: object) -> Any:
            try:
                print(json.dumps(message), file=sink, flush=True)
                line = source.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                raise RuntimeError(f"{python} with anomalib ended with status {process.wait()}; what it said is above")
            return json.loads(line)

        try:
            yield exchange(order), lambda name, number: float(exchange([name, number]))
        finally:
            process.kill()


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--python", type=Path, default=Path(".peers/bin/python"), help="with anomalib: make peers-env")
    parser.add_argument("--models", type=Path, help="a store of one's own, with --category and --images")
    parser.add_argument("--category")
    parser.add_argument("--images", type=Path, help="folder of image files")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-detector"), help="as of plumbline benchmark")
    parser.add_argument("--steps", type=int, default=100, help="as of plumbline benchmark")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--fit-images", type=int, default=FIT_IMAGES)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    options = parser.parse_args()
    own = (options.models, options.category, options.images)
    if any(own) and not all(own):
        parser.error("--models, --category and --images belong together; give all of them, or none")
    if not options.python.exists():
        parser.error(
            f"{options.python} does not exist: make peers-env, or name an interpreter with anomalib (--python)"
        )
    if options.models:
        models, category, images = options.models, options.category, sorted(options.images.rglob("*.png"))
        if not images:
            parser.error(f"{options.images} holds no PNG file; name a folder of images (--images)")
    else:
        models, category, images = prepare(options.folder, options.steps, "cpu")
    detector = load_active(models, category, "cpu")
    result = measure(
        detector,
        images,
        options.python,
        threads=options.threads,
        rounds=options.rounds,
        fit_images=options.fit_images,
        peers=options.peers,
    )
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result["milliseconds"].items():
            print(f"{name:28} {value:8.1f} ms   {result[f'ratio_to_{REFERENCE}'][name]:.2f}")


if __name__ == "__main__":
    main()
