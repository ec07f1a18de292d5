"""The keeper's port: /metrics, /healthz and /readyz of the whole host."""

from __future__ import annotations

import json
from collections.abc import Callable

from aiohttp import web

from proxy import board, bounds, clock
from proxy.board import Board
from proxy.keeping.epochs import Epochs
from proxy.keeping.health import living, readiness
from proxy.keeping.keys import KeyWatch
from proxy.telemetry.exposition import Gauges, Page, render
from proxy.telemetry.metrics import Counters


class Port:
    """Answers from memory alone: no scrape waits for a database or for Redis."""

    def __init__(
        self, words: Board, counters: Counters, epochs: Epochs, keys: KeyWatch, journal_bytes_max: int
    ) -> None:
        self._board = words
        self._counters = counters
        self._epochs = epochs
        self._keys = keys
        self._journal_bytes_max = journal_bytes_max
        self._runner: web.ServerRunner | None = None

    async def open(self, host: str, port: int) -> int:
        """Begins to listen; returns the port. Raises OSError when it cannot be had."""
        server = web.Server(self._answer, access_log=None)
        self._runner = web.ServerRunner(server)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, shutdown_timeout=1.0)
        try:
            await site.start()
        except BaseException:
            await self.close()
            raise
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        answers: dict[str, Callable[[web.BaseRequest], web.Response]] = {
            "/metrics": self._metrics,
            "/healthz": lambda _: web.json_response({"status": "ok"}),
            "/readyz": self._ready,
        }
        answer = answers.get(request.path)
        if answer is None:
            return web.json_response({"error": f"known here: {', '.join(answers)}"}, status=404)
        if request.method not in ("GET", "HEAD"):
            return web.json_response({"error": "only GET"}, status=405, headers={"Allow": "GET, HEAD"})
        return answer(request)

    def _metrics(self, request: web.BaseRequest) -> web.Response:
        rows = living(self._board, clock.now_ns())
        page = Page(self._counters, self._gauges(), [row.column for row in rows])
        body, content_type = render(page, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _ready(self, _: web.BaseRequest) -> web.Response:
        found = readiness(self._board, clock.now_ns())
        body = {"status": found.word, "reasons": list(found.reasons)}
        return web.Response(text=json.dumps(body) + "\n", status=found.status, content_type="application/json")

    def _gauges(self) -> Gauges:
        arena = self._board.arena
        now_ns, now_us = clock.now_ns(), clock.wall_us()
        rows = living(self._board, now_ns)
        used_rate, rate, used_count, count = arena.usage()
        states = self._epochs.states.values()
        journal_bytes = sum(state.info.bytes for state in states)
        gauges: dict[str, dict[tuple[str, ...], float]] = {
            "weir_journal_bytes": {(): journal_bytes},
            "weir_journal_room_ratio": {
                (): room_ratio(journal_bytes, self._journal_bytes_max, self._epochs.disk_free_bytes)
            },
            "weir_journal_oldest_seconds": {(): max((state.age_us(now_us) for state in states), default=0) / 1e6},
            "weir_journal_epochs": {
                ("alive",): sum(state.info.alive for state in states),
                ("dead",): sum(not state.info.alive and not state.info.recovered for state in states),
                ("recovered",): sum(not state.info.alive and state.info.recovered for state in states),
            },
            "weir_epoch_bytes": {(state.info.path.name,): state.info.bytes for state in states},
            "weir_epoch_unpersisted_records": {(state.info.path.name,): state.waiting for state in states},
            "weir_policy_generation": {(): arena.word(board.POLICY_GENERATION)},
            "weir_worker_policy_generation": {(str(row.column),): row.policy_generation for row in rows},
            "weir_worker_state": {(str(row.column), str(row.place)): row.state for row in rows},
            "weir_worker_heartbeat_age_seconds": {
                (str(row.column),): max(now_ns - row.heartbeat_ns, 0) / 1e9 for row in rows
            },
            "weir_loop_lag_seconds": {(str(row.column),): row.loop_lag_us / 1e6 for row in rows},
            "weir_open_calls": {(str(row.column),): row.open_slots for row in rows},
            "weir_connections": {(str(row.column),): row.connections for row in rows},
            "weir_streams": {(str(row.column),): row.streams for row in rows},
            "weir_arena_cells": {
                ("rate", "used"): used_rate,
                ("rate", "free"): rate - used_rate,
                ("count", "used"): used_count,
                ("count", "free"): count - used_count,
            },
            "weir_keys_age_seconds": {(): max(now_ns - (arena.word(board.KEYS_FRESH_NS) or now_ns), 0) / 1e9},
            "weir_keys_stale": {(): board.keys_stale(arena, now_ns)},
            "weir_series": {(): sum(1 for _ in self._counters.each())},
        }
        if self._keys.ending is not None:
            gauges["weir_keys_ending_soon"] = {(): self._keys.ending}
        if self._keys.joined is not None:
            gauges["weir_keys_channel_up"] = {(): self._keys.joined}
        stream = self._epochs.stream
        if stream is not None:
            gauges["weir_stream_lag_entries"] = {(): stream.entries}
        for name, word in (("weir_redis_up", board.REDIS_STATE), ("weir_database_up", board.DATABASE_STATE)):
            state = arena.word(word)
            if state != board.NOT_CONFIGURED or word == board.DATABASE_STATE:
                gauges[name] = {(): state == board.OK}
        return gauges


def room_ratio(journal_bytes: int, bytes_max: int, disk_free_bytes: int) -> float:
    """How much of its maximum the journal can still grow by, from 1 to 0: a full disk ends it sooner."""
    return max(0, min(bytes_max - journal_bytes, disk_free_bytes)) / bytes_max


assert bounds.COLUMNS <= 999  # column labels stay short and sort as people expect
