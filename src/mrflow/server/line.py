"""The waiting line: first come, first served within a client, turn by turn between clients."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from mrflow.server.tickets import Ticket


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
        """Put tickets that have more to do first of all, in their order: what is begun ends before more begins.

        Otherwise 200 clients at once would all wait for the last draft before the first picture is finished.
        """
        for ticket in reversed(list(tickets)):
            mine = self._clients.pop(ticket.client, deque())
            mine.appendleft(ticket)
            self._clients = {ticket.client: mine, **self._clients}

    def take(self, most: Callable[[Ticket], int], workers: int = 1) -> list[Ticket]:
        """Remove and return tickets that can go through the model together; none if nobody waits.

        The client whose turn it is decides the kind of work with its first ticket; then each client in turn
        adds one that fits, until there are as many as `most` says for that first ticket. workers: how many are
        idle, the one that asks included; few tickets are divided between them.
        """
        if not self._clients:
            return []
        client, tickets = next(iter(self._clients.items()))
        key = tickets[0].key
        fitting = {
            name: deque(ticket for ticket in queue if ticket.key == key) for name, queue in self._clients.items()
        }
        room = min(most(tickets[0]), -(-sum(map(len, fitting.values())) // max(workers, 1)))
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
