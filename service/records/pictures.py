"""Images and heatmaps of inspections, kept on disk under a rule: which, for how long, and how many bytes.

    <folder>/2026-11-26/<id>.png            the image file as it was sent (or .jpg, .bmp, .tif, .webp)
    <folder>/2026-11-26/<id>.heatmap.png    where it deviates

A path is made of an inspection's id and day alone. Writing is left to a thread; a process that is killed loses what
waits there, and no more than that.
"""

from __future__ import annotations

import logging
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from uuid import UUID

from models.prediction import Verdict
from service.inspection import Inspection
from service.rendering import render_overlay
from service.settings import Settings
from service.telemetry import Telemetry

PICTURES = "pictures"
"""The folder of them, in a folder of records."""

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_HEATMAP = ".heatmap.png"
_TEMPORARY = ".new"
_KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".bmp": "image/bmp", ".tif": "image/tiff", ".webp": "image/webp"}
_SIGNATURES = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"BM", ".bmp"), (b"RIFF", ".webp"))

_PENDING_BYTES = 256 * 2**20  # of what waits to be written, decoded
_PENDING_SHARE = 4  # of the bytes that the service holds, at most one in so many: a slow disk must not refuse images
_SWEEP_EVERY_S = 3600.0
_SWEPT_SHARE = 0.95  # of the bytes allowed, so that not every picture has the folder searched
_STOP_S = 10.0

_log = logging.getLogger("plumbline.records")


@dataclass(frozen=True)
class Picture:
    """A picture that is kept."""

    path: Path
    media_type: str


class Pictures:
    """Keeps images and heatmaps as the settings rule.

    Args:
        folder: its own; made if need be.

    Attributes:
        folder: see there.
    """

    def __init__(self, folder: Path, settings: Settings, telemetry: Telemetry) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._settings = settings
        self._telemetry = telemetry
        self._queue: queue.SimpleQueue[Inspection | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending = 0
        self._bytes = 0
        self._hurry = False
        self._thread = threading.Thread(target=self._loop, name="pictures", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, as far as that goes within seconds, and end the thread."""
        self._queue.put(None)
        self._thread.join(_STOP_S)
        self._hurry = True  # a thread that is still drawing when the process ends would abort it
        self._thread.join(_STOP_S)

    def take(self, inspection: Inspection) -> None:
        """Have the pictures of an inspection written, if the rule keeps them."""
        rule = self._settings.keep_images
        if inspection.shadow_of is not None:  # the pictures are those of the inspection that was answered
            return
        if rule == "none" or (rule == "defective" and inspection.prediction.verdict is Verdict.GOOD):
            return
        size = _size(inspection)
        most = min(_PENDING_BYTES, self._settings.queue_bytes // _PENDING_SHARE)
        with self._lock:
            if self._pending > 0 and self._pending + size > most:
                self._telemetry.pictures.labels("busy").inc()
                return
            self._pending += size
        self._queue.put(inspection)

    def image(self, inspection: UUID, when: datetime) -> Picture | None:
        """The image file of an inspection, where it is kept."""
        return kept_image(self.folder, inspection, when)

    def heatmap(self, inspection: UUID, when: datetime) -> Picture | None:
        """The heatmap of an inspection, where it is kept."""
        path = _path(self.folder, inspection, when, _HEATMAP)
        return Picture(path, "image/png") if path.is_file() else None

    def _loop(self) -> None:
        sweep_at = 0.0
        while True:
            if time.monotonic() >= sweep_at or self._bytes > self._settings.keep_bytes:
                self._guarded(self._sweep)
                sweep_at = time.monotonic() + _SWEEP_EVERY_S
            try:
                inspection = self._queue.get(timeout=max(0.0, sweep_at - time.monotonic()))
            except queue.Empty:
                continue
            if inspection is None:
                return
            if self._hurry:
                self._telemetry.pictures.labels("busy").inc()
                continue
            if not self._guarded(partial(self._keep, inspection)):
                self._telemetry.pictures.labels("failed").inc()
            with self._lock:
                self._pending -= _size(inspection)
            self._telemetry.pictures_bytes.set(self._bytes)
            del inspection  # its image counts as held, and its detector may have been unloaded, while nothing comes

    def _keep(self, inspection: Inspection) -> None:
        data = inspection.submission.data
        if shutil.disk_usage(self.folder).free < self._settings.keep_free_bytes + len(data):
            self._telemetry.pictures.labels("no_space").inc()
            return
        served = inspection.served
        heatmap = render_overlay(
            inspection.image,
            inspection.prediction,
            served.point.pixel_threshold,
            region=served.operation.region_of_interest,
        )
        for content, suffix in ((data, _suffix(data)), (heatmap, _HEATMAP)):
            path = _path(self.folder, inspection.id, inspection.time, suffix)
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(path.name + _TEMPORARY)
            temporary.write_bytes(content)
            temporary.replace(path)
            self._bytes += len(content)
        self._telemetry.pictures.labels("kept").inc()

    def _sweep(self) -> None:
        """Delete what is too old, then the oldest of what is too much, and what a killed process left half written."""
        days = sorted(folder for folder in self.folder.iterdir() if _DAY.fullmatch(folder.name))
        if self._settings.keep_days is not None:
            first = (datetime.now(UTC).date() - timedelta(days=self._settings.keep_days)).isoformat()
            for folder in [day for day in days if day.name < first]:
                shutil.rmtree(folder)
                days.remove(folder)
        kept = [(file, file.stat()) for folder in days for file in folder.iterdir()]
        for file, _ in [entry for entry in kept if entry[0].name.endswith(_TEMPORARY)]:
            file.unlink()
        kept = [entry for entry in kept if not entry[0].name.endswith(_TEMPORARY)]
        self._bytes = sum(status.st_size for _, status in kept)
        if self._bytes > self._settings.keep_bytes:
            kept.sort(key=lambda entry: (entry[0].parent.name, entry[1].st_mtime_ns, entry[0].name))
            # Image and heatmap were written one after the other, and go together.
            for _, pair in groupby(kept, key=lambda entry: entry[0].name.partition(".")[0]):
                if self._bytes <= _SWEPT_SHARE * self._settings.keep_bytes:
                    break
                for file, status in pair:
                    file.unlink()
                    self._bytes -= status.st_size
        for folder in days[:-1]:
            if not any(folder.iterdir()):
                folder.rmdir()
        self._telemetry.pictures_bytes.set(self._bytes)

    def _guarded(self, function: Callable[[], None]) -> bool:
        """Whether it went through; a thread has nobody above it who could hear that it did not."""
        try:
            function()
        except Exception as error:
            _log.error("pictures not kept", extra={"fields": {"reason": f"{type(error).__name__}: {error}"}})
            return False
        return True


def kept_image(folder: Path, inspection: UUID, when: datetime) -> Picture | None:
    """The image file of an inspection in a folder of pictures, where it is kept."""
    for suffix, media_type in _KINDS.items():
        if (path := _path(folder, inspection, when, suffix)).is_file():
            return Picture(path, media_type)
    return None


def _path(folder: Path, inspection: UUID, when: datetime, suffix: str) -> Path:
    return folder / when.astimezone(UTC).date().isoformat() / f"{inspection}{suffix}"


def _size(inspection: Inspection) -> int:
    return len(inspection.submission.data) + inspection.image.nbytes


def _suffix(data: bytes) -> str:
    return next((suffix for signature, suffix in _SIGNATURES if data.startswith(signature)), ".tif")
