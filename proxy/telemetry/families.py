"""Every metric Weir has: name, type, labels, what it says, and what to do when it rises.

`docs/operating.md` is written from this table, and a series of a name that is not here is refused.

Where a value lives: `cells` are 64-bit cells of the mapped counter file, written by the process whose column it is and
summed by the keeper; `keeper` values are worked out by the keeper at each scrape.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Type = Literal["counter", "gauge", "histogram"]
Home = Literal["cells", "keeper"]


class Family(NamedTuple):
    """One metric: `labels` in the order in which `Counters.series` takes their values."""

    name: str
    type: Type
    labels: tuple[str, ...]
    help: str
    advice: str
    home: Home = "cells"


# Upper bounds of the time histograms in microseconds, for first bytes (milliseconds) and whole streams (minutes) alike.
BUCKETS_US = (
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
)
HISTOGRAM_CELLS = len(BUCKETS_US) + 2  # one above the last bound, and the sum in microseconds
OTHER = "other"  # the label of everything beyond the bounds on label values
OVERFLOW = "weir_metrics_overflow_total"

_JOURNEY = (
    Family(
        OVERFLOW,
        "counter",
        (),
        "Counts that found no room for a series of their own.",
        "The number of series is at its bound: fewer tenants or models should be named, or labels differ too much.",
    ),
    Family(
        "weir_requests_total",
        "counter",
        ("endpoint", "status", "termination"),
        "Calls that were opened and have ended, by the status the client saw and by how they ended.",
        "A rise of termination upstream_error or timeout is the upstream's; of crash, a worker died (see its log).",
    ),
    Family(
        "weir_refusals_total",
        "counter",
        ("reason",),
        "Requests refused before anything was sent upstream.",
        "invalid_api_key: a client with an old key or somebody guessing. rate_limit_exceeded: a tenant at its level. "
        "journal_full or limits_full: see the journal and arena metrics at once.",
    ),
    Family(
        "weir_tokens_total",
        "counter",
        ("tenant", "model", "kind"),
        "Tokens by kind: prompt, cached (part of prompt), completion, reasoning and audio (parts of completion).",
        "A sudden rise for one tenant is worth a question before it is worth an invoice.",
    ),
    Family(
        "weir_cost_nanodollars_total",
        "counter",
        ("tenant", "model"),
        "Cost in integer nano-dollars, of priced calls only.",
        "As tokens. Divide by 1e9 for dollars.",
    ),
    Family(
        "weir_unpriced_calls_total",
        "counter",
        ("model",),
        "Calls of a model that has no price.",
        "Give the model a price in config/prices.yaml; an unknown price is never counted as zero.",
    ),
    Family(
        "weir_tenant_requests_total",
        "counter",
        ("tenant",),
        "Calls that have ended, by tenant.",
        "Shows who makes the load.",
    ),
    Family(
        "weir_upstream_requests_total",
        "counter",
        ("upstream", "model", "status"),
        "Calls that were sent upstream, by the status the client was answered.",
        "A rise of 5xx or 429: the upstream fails or holds Weir back; look at its own status page and quota.",
    ),
    Family(
        "weir_first_byte_seconds",
        "histogram",
        ("upstream", "model"),
        "From a request's arrival to the first byte of the answer's body.",
        "Compare with weir_loop_lag_seconds: if the lag is small, the upstream is slow.",
    ),
    Family(
        "weir_request_seconds",
        "histogram",
        ("upstream", "model"),
        "From a request's arrival to its end.",
        "Long streams are normal; a rise without longer answers is the upstream or a slow client.",
    ),
    Family(
        "weir_relayed_bytes_total",
        "counter",
        (),
        "Bytes of answer bodies written to clients.",
        "Shows the network load.",
    ),
    Family(
        "weir_frames_total",
        "counter",
        (),
        "Frames (server-sent events) written to clients.",
        "Shows the streaming load.",
    ),
    Family(
        "weir_upstream_connections",
        "gauge",
        ("upstream",),
        "Open connections to the upstream, idle ones included.",
        "At max_connections, calls wait: raise it, or add workers.",
    ),
    Family(
        "weir_upstream_connects_total",
        "counter",
        ("upstream",),
        "Connections made to the upstream.",
        "A rise as steep as the calls' means the upstream does not keep connections alive.",
    ),
    Family(
        "weir_log_lines_dropped_total",
        "counter",
        (),
        "Request log lines dropped because nobody read standard output fast enough.",
        "The reader of Weir's standard output is stuck or slow. Usage rows are not affected.",
    ),
)

_KEEPER = (
    Family(
        "weir_shipped_records_total",
        "counter",
        (),
        "Journal records sent to the Redis stream, repeats included.",
        "Rising much faster than weir_persisted_records_total: the stream was lost and is being sent again.",
    ),
    Family(
        "weir_persisted_records_total",
        "counter",
        (),
        "Journal records the database has, as the keeper learned it: persisted by itself or by a flusher.",
        "Its rate is the flush rate. If it stands still while calls end, the database or the flusher is away.",
    ),
    Family(
        "weir_double_records_total",
        "counter",
        (),
        "Records that the database already had, met while the keeper persisted.",
        "Normal after a keeper's death. A steady rise means that positions are not being kept.",
    ),
    Family(
        "weir_record_conflicts_total",
        "counter",
        (),
        "Records whose key the database holds with different content.",
        "An alarm: never normal. Run `weir usage verify` and keep the journal directory.",
    ),
    Family(
        "weir_quarantined_records_total",
        "counter",
        (),
        "Records that could not be read and went to the quarantine table.",
        "An alarm: damage, or a record of a newer version of Weir.",
    ),
    Family(
        "weir_journal_damage_total",
        "counter",
        (),
        "Damaged places met in the middle of journal segments.",
        "An alarm: the disk or the file system lost or changed data. The other records go on.",
    ),
    Family(
        "weir_recoveries_total",
        "counter",
        (),
        "Journals of dead workers that were recovered.",
        "One for each worker that died without draining: see its log lines.",
    ),
    Family(
        "weir_recovered_calls_total",
        "counter",
        (),
        "Calls of dead workers that were closed by recovery, termination crash.",
        "As weir_recoveries_total.",
    ),
    Family(
        "weir_resends_total",
        "counter",
        (),
        "Times that records were sent again because the Redis stream had lost them.",
        "Redis came back without its data, or was flushed: give it persistence to save the work. Nothing is lost.",
    ),
    Family(
        "weir_ship_failures_total",
        "counter",
        ("step",),
        "Attempts of the keeper to ship or persist that failed and will be repeated.",
        "Redis or the database is away: see weir_redis_up, weir_database_up and the keeper's log.",
    ),
    Family(
        "weir_reloads_total",
        "counter",
        ("result",),
        "Policy reloads, result ok or failed. After a failed one the old policy stays.",
        "failed: run `weir check`; the keeper's log has every problem.",
    ),
    Family(
        "weir_expired_rows_total",
        "counter",
        (),
        "Usage rows removed by retention.",
        "Normal with retention_days set.",
    ),
    Family(
        "weir_reclaimed_cells_total",
        "counter",
        (),
        "Idle limit cells given back to the arena.",
        "Normal.",
    ),
    Family(
        "weir_worker_restarts_total",
        "counter",
        ("part", "cause"),
        "Parts started anew by the supervisor: exit (died), heartbeat (killed as stuck), start (never got ready).",
        "exit: read the part's last log lines. heartbeat: the event loop was blocked, or the process was stopped.",
    ),
    Family(
        "weir_rolling_restarts_total",
        "counter",
        ("result",),
        "Rolling restarts: begun, and of these ok or failed.",
        "failed: a replacement did not get ready, and the old worker went on.",
    ),
    Family(
        "weir_journal_bytes",
        "gauge",
        (),
        "Journal on disk that the database does not have yet, in bytes of segment files.",
        "Redis, the flusher or the database is away or too slow. At journal.max_bytes new calls are refused.",
        "keeper",
    ),
    Family(
        "weir_journal_room_ratio",
        "gauge",
        (),
        "Share of journal.max_bytes that is left, from 1 (empty) to 0 (calls are refused).",
        "Below 0.5: find out why nothing is persisted. Below 0.1: calls will be refused soon.",
        "keeper",
    ),
    Family(
        "weir_journal_oldest_seconds",
        "gauge",
        (),
        "Age of the oldest record that the database does not have yet.",
        "A few seconds is normal. More: as weir_journal_bytes.",
        "keeper",
    ),
    Family(
        "weir_journal_epochs",
        "gauge",
        ("state",),
        "Worker lives with a journal directory: alive, dead (not yet recovered), recovered (not yet all persisted).",
        "dead above 0 for more than seconds: the keeper cannot recover; its log says why.",
        "keeper",
    ),
    Family(
        "weir_epoch_bytes",
        "gauge",
        ("epoch",),
        "Journal on disk of one worker life.",
        "Shows which worker's journal does not get away.",
        "keeper",
    ),
    Family(
        "weir_epoch_unpersisted_records",
        "gauge",
        ("epoch",),
        "Synced records of one worker life that the database does not have yet.",
        "As weir_epoch_bytes.",
        "keeper",
    ),
    Family(
        "weir_stream_lag_entries",
        "gauge",
        (),
        "Entries in the Redis stream: waiting for a flusher, or for its acknowledgement.",
        "Start more flushers, or look at the database.",
        "keeper",
    ),
    Family(
        "weir_redis_up",
        "gauge",
        (),
        "1 when the last Redis call of the keeper worked, 0 when it failed. Absent when no Redis is configured.",
        "0: /readyz says degraded. Calls go on; the journal grows.",
        "keeper",
    ),
    Family(
        "weir_database_up",
        "gauge",
        (),
        "1 when the last database call of the keeper worked, 0 when it failed.",
        "0: known keys go on being served from memory; the journal grows.",
        "keeper",
    ),
    Family(
        "weir_policy_generation",
        "gauge",
        (),
        "How often a policy snapshot has been published. Rises by one for each good reload.",
        "Workers that stay behind it show in weir_worker_policy_generation.",
        "keeper",
    ),
    Family(
        "weir_worker_policy_generation",
        "gauge",
        ("column",),
        "The policy generation this worker life serves.",
        "Behind weir_policy_generation for seconds: that worker is stuck.",
        "keeper",
    ),
    Family(
        "weir_worker_state",
        "gauge",
        ("column", "place"),
        "1 starting, 2 serving, 3 draining.",
        "3 for long: streams that run up to drain_seconds.",
        "keeper",
    ),
    Family(
        "weir_worker_heartbeat_age_seconds",
        "gauge",
        ("column",),
        "Time since the worker's last heartbeat.",
        "At 5 s the supervisor kills and replaces it.",
        "keeper",
    ),
    Family(
        "weir_loop_lag_seconds",
        "gauge",
        ("column",),
        "How late the worker's event loop woke up last.",
        "Above 0.05: the worker is short of CPU. Add workers or cores.",
        "keeper",
    ),
    Family(
        "weir_open_calls",
        "gauge",
        ("column",),
        "Calls in flight.",
        "At the number of slots, calls are refused with journal_full.",
        "keeper",
    ),
    Family(
        "weir_connections",
        "gauge",
        ("column",),
        "Open client connections.",
        "Near its bound, new connections wait.",
        "keeper",
    ),
    Family(
        "weir_streams",
        "gauge",
        ("column",),
        "Streamed answers in flight.",
        "Shows how long a drain may take.",
        "keeper",
    ),
    Family(
        "weir_arena_cells",
        "gauge",
        ("kind", "state"),
        "Limit cells, kind rate or count, state used or free.",
        "free near 0: calls are refused with limits_full. There are too many limited keys for one data directory.",
        "keeper",
    ),
    Family(
        "weir_series",
        "gauge",
        (),
        "Metric series in use.",
        "At its bound, new ones are summed as `other`.",
        "keeper",
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in (*_JOURNEY, *_KEEPER)}
