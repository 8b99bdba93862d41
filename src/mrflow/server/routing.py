"""Which replica a request goes to, for Ray Serve, which loads this where its proxy is."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import FIFOMixin, RequestRouter


class ShortestQueue(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Sends each request where the fewest are, on whatever node that is.

    Ray Serve's own router keeps to the proxy's node until a replica there has max_ongoing_requests (2.60,
    LocalityMixin): another node would never paint, while the one beside the proxy turns people away.
    """

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Return all replicas in one rank, of which Ray Serve takes the one with the shortest queue."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else it never pauses while all are full
        return [random.sample(candidate_replicas, len(candidate_replicas))]
