"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mrflow.memory import peak_memory

if TYPE_CHECKING:
    from mrflow.server.ticket import Kind, Ticket

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The numbers of one server, in a registry of their own."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        """Begin at zero."""
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "mrflow_requests", "Requests by route and outcome.", ["route", "status"], registry=registry
        )
        self.waiting = Gauge("mrflow_queue_length", "Pictures that wait.", registry=registry)
        self.wait = Histogram(
            "mrflow_queue_wait_seconds",
            "Time from joining the queue to being taken from it, before each of draft and finish.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "mrflow_stage_seconds", "Time of a stage of one batch.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._batches = Histogram(
            "mrflow_batch_size", "Pictures in one batch.", ["kind"], buckets=_SIZES, registry=registry
        )
        self._images = Counter("mrflow_images", "Pictures made.", ["kind"], registry=registry)
        self._pixels = Counter("mrflow_pixels", "Pixels of the pictures made.", ["kind"], registry=registry)
        peak = Gauge(
            "mrflow_peak_memory_bytes",
            "Highest memory so far: of a CUDA device what torch allocated, of the CPU the whole process's.",
            ["device"],
            registry=registry,
        )
        for device in devices:
            peak.labels(str(device)).set_function(lambda device=device: peak_memory(device) or 0)  # type: ignore[misc]

    def batch_done(self, kind: Kind, tickets: Sequence[Ticket], seconds: Mapping[str, float]) -> None:
        """Note a batch that went well."""
        for stage, value in seconds.items():
            self._stages.labels(stage).observe(value)
        self._batches.labels(kind).observe(len(tickets))
        self._images.labels(kind).inc(len(tickets))
        for ticket in tickets:
            width, height = ticket.size
            share = 1.0 if kind != "draft" else float(ticket.plan.ratio) ** -2
            self._pixels.labels(kind).inc(width * height * share)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
