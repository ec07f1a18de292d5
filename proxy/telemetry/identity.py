"""The metrics of identity providers. `issuer` is the name an issuer has in the policy. See `families`."""

from __future__ import annotations

from proxy.telemetry.family import Family

IDENTITY = (
    Family(
        "weir_issuer_refreshes_total",
        "counter",
        ("issuer", "result"),
        "Fetches of an issuer's keys by the workers, result ok or failed.",
        "failed: the issuer is away or answers something else; the workers' log says what. The last good keys serve "
        "for stale_seconds.",
    ),
    Family(
        "weir_issuer_keys_aged",
        "gauge",
        ("issuer",),
        "Workers whose last fetch of an issuer's keys failed, and which go by older ones or have none.",
        "Above 0 for longer than refresh_seconds: bring the issuer back before stale_seconds are over; then its tokens "
        "are refused with issuer_unavailable.",
    ),
    Family(
        "weir_issuer_groups_left_out_total",
        "counter",
        ("issuer",),
        "Verified tokens whose issuer had more groups than a token holds and left them out: they count as without.",
        "These users may use less than they should. Let the issuer send roles, or only the groups of this application.",
    ),
)
