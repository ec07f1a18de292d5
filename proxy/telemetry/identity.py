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
    Family(
        "weir_keys_age_seconds",
        "gauge",
        (),
        "Age of this host's last look at which keys have ended. 0 until the first one.",
        "Above 1: the keeper cannot ask the database. What other hosts revoke meanwhile is still served here.",
        "keeper",
    ),
    Family(
        "weir_keys_stale",
        "gauge",
        (),
        "1 while that is older than identity.freshness_seconds, else 0.",
        "1: bring the database back. Until then identity.on_stale decides whether calls are served.",
        "keeper",
    ),
    Family(
        "weir_keys_ending_soon",
        "gauge",
        (),
        "Keys that expire within 7 days and have not been rotated, counted once a minute. Absent until then.",
        "Their answers carry x-weir-key-expires. Rotate them (`weir keys rotate`), or their clients will stand still.",
        "keeper",
    ),
    Family(
        "weir_keys_channel_up",
        "gauge",
        (),
        "1 while the keeper hears over Redis that keys have changed, else 0. Absent when no Redis is configured.",
        "0: revocations come by polling alone, a few tenths of a second later.",
        "keeper",
    ),
)
