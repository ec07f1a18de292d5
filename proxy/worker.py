"""One worker: an event loop, the journey, nothing else. The supervisor starts it and tells it to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable

from proxy import board, bounds
from proxy.clock import now_ns
from proxy.front import Front
from proxy.house import House
from proxy.places import context_of
from proxy.policy.snapshot import Policy
from proxy.settings import Settings

log = logging.getLogger("weir.worker")


class Worker:
    """The life of a worker: serve, beat, drain. `read_policy` returns the snapshot in the data directory."""

    def __init__(
        self,
        house: House,
        front: Front,
        settings: Settings,
        listener: socket.socket,
        lifeline: int,
        place: int,
        read_policy: Callable[[], Policy],
    ) -> None:
        self._house = house
        self._front = front
        self._settings = settings
        self._listener = listener
        self._lifeline = lifeline
        self._place = place
        self._read_policy = read_policy
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Serves until told to end, then drains: streams finish, the journal is synced, the epoch is finished."""
        loop = self._house.loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        for number in (signal.SIGHUP, signal.SIGUSR2):
            loop.add_signal_handler(number, int)  # for the supervisor and the keeper; a group signal must not kill us
        loop.add_reader(self._lifeline, self._end)
        server = await loop.create_server(
            self._front, sock=self._listener, backlog=4096, ssl=tls_context(self._settings)
        )
        self._say(board.STATE, board.SERVING)
        beside = [asyncio.create_task(work) for work in (self._beat(), self._renew_keys(), self._end_revoked())]
        try:
            await self._ending.wait()
            self._say(board.STATE, board.DRAINING_WORKER)
            await self._drain(server)
        finally:
            for task in beside:
                task.cancel()
            loop.remove_reader(self._lifeline)

    def _end(self) -> None:
        if self._ending.is_set():
            self._hurry.set()
        self._ending.set()
        # A closed lifeline stays readable: it would wake the loop for ever.
        self._house.loop.remove_reader(self._lifeline)

    async def _drain(self, server: asyncio.Server) -> None:
        """Stops accepting, lets streams finish for `drain_seconds`, then ends what is left without a clean ending."""
        self._front.draining = True
        # What is queued on this place's socket is taken by the replacement that shares it, or by us until we close.
        await asyncio.sleep(bounds.HANDOVER_SECONDS)
        server.close()
        # What the loop accepted in that very instant still becomes a connection of ours.
        await asyncio.sleep(bounds.HANDOVER_SECONDS)
        self._front.drain()
        deadline_ns = now_ns() + int(self._settings.drain_seconds * 1e9)
        while self._front.doors and now_ns() < deadline_ns and not self._hurry.is_set():
            await asyncio.sleep(0.02)
        await self._front.close()
        while self._house.sweeper.running() or self._front.requests:
            await asyncio.sleep(0.01)
        self._house.close()

    async def _beat(self) -> None:
        """Says that this worker lives and what it is at, and takes a new policy when there is one."""
        arena = self._house.arena
        refused = 0  # the generation that could not be taken: said once, and not with each heartbeat
        while True:
            self._say(board.HEARTBEAT_NS, now_ns())
            self._say(board.OPEN_SLOTS, self._house.epoch.writer.open_slots)
            self._say(board.CONNECTIONS, len(self._front.doors))
            self._say(board.STREAMS, self._house.sweeper.running())
            self._say(board.LOOP_LAG_US, self._house.sweeper.lag_us())
            self._house.count_connections()
            self._say(board.COLUMN_KEYS_GENERATION, self._house.keys.renewed)
            generation = arena.word(board.POLICY_GENERATION)
            if generation != arena.column_word(arena.column, board.COLUMN_POLICY_GENERATION):
                try:
                    self._house.adopt(self._read_policy())
                except Exception:
                    # The keeper judged it before; whatever has gone wrong since, the policy in use stays in use.
                    if generation != refused:
                        log.exception("the new policy could not be taken; the old one stays, and it is tried again")
                    refused = generation
                else:
                    self._say(board.COLUMN_POLICY_GENERATION, generation)
                    await self._house.running.adopt(self._house.policy)
            await asyncio.sleep(bounds.HEARTBEAT_SECONDS / 5)

    async def _renew_keys(self) -> None:
        """After a change of keys, asks the database about those known here before their callers have to wait for it."""
        while True:
            await self._house.keys.renew()
            if self._house.tokens is not None:
                await self._house.tokens.renew()
            await asyncio.sleep(bounds.KEYS_RENEW_SECONDS)

    async def _end_revoked(self) -> None:
        """After a change of keys, ends the calls that run by one that has ended; apart, so that nothing delays it."""
        while True:
            await self._house.running.look(self._house.policy)
            await asyncio.sleep(bounds.KEYS_RENEW_SECONDS)

    def _say(self, word: int, value: int) -> None:
        arena = self._house.arena
        arena.set_column_word(arena.column, word, value)

    def announce(self, generation: int) -> None:
        """The first entry on the board: who this is, before it serves."""
        epoch = self._house.epoch
        board.Board(epoch.arena).start(
            epoch.column, pid=os.getpid(), place=self._place, epoch=epoch.epoch, now_ns=now_ns()
        )
        self._say(board.COLUMN_POLICY_GENERATION, generation)


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS for the listener, when the policy names certificate and key. Raises OSError or ssl.SSLError for bad files."""
    return context_of(settings.listen.tls)
