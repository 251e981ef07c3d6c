"""What the service tells its operators: Prometheus metrics and a log of JSON lines."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import torch
from opentelemetry import trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, Summary

from service.errors import INTERNAL_ERROR

# From a rejected request, under a millisecond, to a scan window by window on a CPU.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LOOK_S = 0.25

# Does nothing until FastAPI configures the provider, by the standard variables OTEL_*.
_tracer = trace.get_tracer("plumbline")

_IMAGES = (1, 2, 4, 8, 16, 32, 64)

_DIFFERENCES = (-0.5, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5)


# A key does not belong into an address, and yet somebody will put one there.
_KEY = re.compile(r"(plumb_[0-9a-f]{12}_)[0-9a-f]+")


class Telemetry:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests answered.", "method", "route", "status")
        self.verdicts = self._counter("verdicts", "Images scored.", "category", "version", "verdict", "output")
        self.stages = Histogram(
            "plumbline_stage_seconds",
            "Time of the stages of one image: upload, decode, place, queue, score or explain, judge, render, total.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "plumbline_batch_images",
            "Images of a batch, by why it was released: full, its oldest image had waited, the worker was idle, or it "
            "joined others on a CPU that has a thread free.",
            ["reason"],
            buckets=_IMAGES,
            registry=self.registry,
        )
        self.queue_depth = self._gauge("queue_depth", "Images that wait to be decoded or scanned.")
        self.queue_bytes = self._gauge("queue_bytes", "Bytes of uploads and decoded images that are held.")
        self.rejects = self._counter("rejects", "Requests that got a problem instead of an answer.", "reason")
        self.gpu_bytes = self._gauge("gpu_bytes", "Memory of the GPU: allocated by torch, used by all, total.", "kind")
        self.loop_lag = Histogram(
            "plumbline_event_loop_lag_seconds",
            "How late the event loop runs what is due: while it stalls, nothing is answered.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.worker_up = self._gauge("worker_up", "1 where the worker can answer, 0 where it is dead or hangs.")
        self.journal_depth = self._gauge("records_journal_depth", "Records that wait for the database.")
        self.journal_bytes = self._gauge("records_journal_bytes", "Bytes of the journal that records wait in.")
        self.database_up = self._gauge("records_database_up", "1 where the records database takes records, else 0.")
        self.record_failures = self._counter(
            "record_failures", "Records the journal did not take, and failed tries to reach the database.", "at"
        )
        self.model = self._gauge("model_loaded", "1 for each version in memory.", "category", "version")
        self.model_memory = self._gauge("model_memory_bytes", "What a version in memory holds.", "category", "version")
        self.model_failures = self._counter("model_failures", "Versions that could not be loaded.", "category")
        self.model_problem = self._gauge(
            "model_problem", "1 where what the store says of a category is not what is served, else 0.", "category"
        )
        self.model_swaps = self._counter("model_swaps", "Times that another version became active.", "category")
        self.shadow_verdicts = self._counter(
            "shadow_verdicts",
            "Images scored by a shadow too: its verdict, and the one that was answered.",
            "category",
            "version",
            "verdict",
            "answered",
        )
        self.shadow_dropped = self._counter(
            "shadow_dropped", "Images that the shadow did not score, for there was no time.", "category"
        )
        self.shadow_scores = Summary(
            "plumbline_shadow_score_difference",
            "Image score of the shadow minus the one that was answered.",
            ["category", "version"],
            registry=self.registry,
        )
        self.shadow_p_values = Histogram(
            "plumbline_shadow_p_value_difference",
            "P-value of the shadow minus the one that was answered.",
            ["category", "version"],
            buckets=_DIFFERENCES,
            registry=self.registry,
        )
        self.store_up = self._gauge("model_store_up", "1 where the model store can be read, else 0.")
        self.pictures = self._counter(
            "pictures",
            "Inspections whose image and heatmap were to be kept: kept, busy (too many waited), no_space, failed.",
            "outcome",
        )
        self.pictures_bytes = self._gauge("pictures_bytes", "Bytes of the images and heatmaps that are kept.")
        self.published = self._counter(
            "results_published",
            "What became of results: delivered, retried, refused (given up) or lost (no room to wait).",
            "to",
            "outcome",
        )
        self.outbox_depth = self._gauge("results_waiting", "Results that wait to be told.", "to")
        self.mqtt_connected = self._gauge("mqtt_connected", "1 where the MQTT broker is connected, else 0.")
        # Alerted on; Prometheus sees no rise in a counter that appears with its first event.
        self.rejects.labels(INTERNAL_ERROR.slug)
        self.record_failures.labels("journal")

    def observe_stages(self, begun: float, seconds: Mapping[str, float]) -> None:
        """Count the times of the stages of one image, and trace each as a span below that of its request.

        Args:
            begun: when the first began, on the clock of ``time.monotonic``; the spans are laid end to end from there.
            seconds: by stage, in their order; ``total`` is no stage.
        """
        for name, value in seconds.items():
            self.stages.labels(name).observe(value)
        start = time.time_ns() - _nanoseconds(time.monotonic() - begun)
        for name, value in seconds.items():
            if name != "total":
                span = _tracer.start_span(name, start_time=start)
                start += _nanoseconds(value)
                span.end(start)

    def batch(self, images: int, reason: str) -> None:
        """Count a batch."""
        self.batches.labels(reason).observe(images)

    def measure_gpu(self) -> None:
        """Read the GPU's memory, where the service uses one."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            with suppress(RuntimeError):  # of a GPU whose context is spoiled, which the worker's health tells
                free, total = torch.cuda.mem_get_info()
                for kind, count in (("torch", torch.cuda.memory_allocated()), ("used", total - free), ("total", total)):
                    self.gpu_bytes.labels(kind).set(count)

    async def watch_event_loop(self) -> None:
        """Measure, until cancelled, how late the event loop is."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            self.loop_lag.observe(max(0.0, loop.time() - due))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"plumbline_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"plumbline_{name}", text, labels, registry=self.registry)


def _nanoseconds(seconds: float) -> int:
    return round(1e9 * seconds)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; ``extra={"fields": {...}}`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _KEY.sub(r"\1…", json.dumps(line, default=str))


def configure_logging(level: str) -> None:
    """Log as JSON lines to standard error, which leaves standard output to the command line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Who changed what is wanted whatever else is.
    logging.getLogger("plumbline.audit").setLevel(logging.INFO)
    # Its errors are what clients send wrong, which the line of their request says.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    # They log every address that is asked, and that of a webhook may hold a password.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
