"""The waiting line: first come, first served within a client, turn by turn between clients."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from mrflow.server.ticket import Ticket


class Line:
    """Tickets that wait. Not thread-safe: the scheduler holds its lock around each call."""

    def __init__(self) -> None:
        """Begin empty."""
        self._clients: dict[str, deque[Ticket]] = {}  # in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for tickets in self._clients.values() for ticket in tickets)

    def of(self, client: str) -> int:
        """Return how many tickets of this client wait."""
        return len(self._clients.get(client, ()))

    def join(self, tickets: Iterable[Ticket]) -> None:
        """Put tickets at the end of their clients' lines."""
        for ticket in tickets:
            self._clients.setdefault(ticket.client, deque()).append(ticket)

    def rejoin(self, tickets: Iterable[Ticket]) -> None:
        """Put tickets that have more to do at the front of their clients' lines, in their order."""
        for ticket in reversed(list(tickets)):
            self._clients.setdefault(ticket.client, deque()).appendleft(ticket)

    def take(self, most: Callable[[Ticket], int]) -> list[Ticket]:
        """Remove and return tickets that can go through the model together; none if nobody waits.

        The client whose turn it is decides the kind of work with its first ticket; then each client in turn
        adds one that fits, until there are as many as `most` says for that first ticket.
        """
        if not self._clients:
            return []
        client, tickets = next(iter(self._clients.items()))
        key, room = tickets[0].key, most(tickets[0])
        fitting = {
            name: deque(islice((ticket for ticket in queue if ticket.key == key), room))
            for name, queue in self._clients.items()
        }
        taken: list[Ticket] = []
        while len(taken) < room and any(fitting.values()):
            for queue in fitting.values():
                if queue and len(taken) < room:
                    taken.append(queue.popleft())
        self._clients[client] = self._clients.pop(client)  # its next turn comes after everybody else's
        self.remove(taken)
        return taken

    def remove(self, tickets: Iterable[Ticket]) -> None:
        """Remove these tickets wherever they stand; those that do not wait are ignored."""
        leaving = set(map(id, tickets))
        for client, queue in list(self._clients.items()):
            left = deque(ticket for ticket in queue if id(ticket) not in leaving)
            if left:
                self._clients[client] = left
            else:
                del self._clients[client]
