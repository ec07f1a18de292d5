"""The only reader of time. Durations and limits use BOOTTIME; wall-clock time is for calendars and for people."""

import time

_BOOTTIME = time.CLOCK_BOOTTIME
_REALTIME = time.CLOCK_REALTIME
_clock_gettime_ns = time.clock_gettime_ns


def now_ns() -> int:
    """Nanoseconds since boot, suspension included; never steps backwards, equal in every process of the host."""
    return _clock_gettime_ns(_BOOTTIME)


def wall_us() -> int:
    """Microseconds since 1970 UTC. May step; nothing is measured or limited by it."""
    return _clock_gettime_ns(_REALTIME) // 1000


def boot_id() -> str:
    """The kernel's identity of this boot: times of `now_ns` compare only under the same one."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def pause(seconds: float) -> None:
    """Sleeps; for the rare place outside an event loop that waits for another process."""
    time.sleep(seconds)
