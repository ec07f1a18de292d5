# The deadlines of running relays: a part of _wire.pyx, which has the names that this one uses.

cdef class Sweeper:
    def __init__(self, loop, *, double stall_seconds=bounds.CLIENT_STALL_SECONDS_MAX):
        global coarse_ns
        self._loop = loop
        self._stall_ns = <int64_t>(stall_seconds * 1_000_000_000)
        self._relays = []
        self._tick = self._sweep
        coarse_ns = weir_wire_now()
        self._due_ns = coarse_ns + SWEEP_NS
        self._timer = loop.call_later(SWEEP_SECONDS, self._tick)

    def add(self, Relay relay not None):
        if relay.ending == RUNNING and relay._sweeper is None:
            relay._start_ns = relay._start_ns or weir_wire_now()  # one that is never sent leaves as well
            relay._sweeper = self
            relay._place = len(self._relays)
            self._relays.append(relay)

    def running(self):
        return len(self._relays)

    def lag_us(self):
        cdef int64_t lag = self._lag_ns // 1000
        self._lag_ns = 0
        return lag

    def close(self):
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._tick = None

    def _sweep(self):
        global coarse_ns
        cdef int64_t now = weir_wire_now(), late = now - self._due_ns
        cdef Py_ssize_t i
        cdef Relay relay
        coarse_ns = now
        if late > self._lag_ns:
            self._lag_ns = late
        self._due_ns = now + SWEEP_NS
        self._timer = self._loop.call_later(SWEEP_SECONDS, self._tick)
        if late > SWEEP_NS and not self._skipped:
            # The loop, or the whole host, stood still: what arrived meanwhile is read before anybody is judged by it.
            self._skipped = True
            return
        self._skipped = False
        # Backwards, because an ended relay's place is taken by the last one.
        for i in range(len(self._relays) - 1, -1, -1):
            if i >= len(self._relays):
                continue
            relay = <Relay>self._relays[i]
            try:
                self.judge(relay, now)
            except Exception as error:
                relay.finish(CLIENT_GONE, f"{type(error).__name__} on asking the client's transport")

    cdef int judge(self, Relay relay, int64_t now) except -1:
        cdef int64_t unread
        if now - relay._start_ns > relay._total_ns:
            return relay.finish(TOTAL_TIMEOUT, "the whole answer took too long")
        if relay._paused_ns:
            unread = relay._buffered()
            if unread < relay._unread:
                relay._unread = unread  # slow is not stalled
                relay._paused_ns = now
            elif now - relay._paused_ns > self._stall_ns:
                return relay.finish(CLIENT_STALLED, "the client reads nothing")
        elif relay.first_us == 0:
            if now - relay._start_ns > relay._first_byte_ns:
                return relay.finish(FIRST_BYTE_TIMEOUT, "no byte of a body in time")
        elif now - relay._last_ns > relay._idle_ns:
            return relay.finish(IDLE_TIMEOUT, "nothing more for too long")
        return 0

    cdef int drop(self, Relay relay) except -1:
        """Takes the relay off the list; the last one moves to its place."""
        cdef Relay last = <Relay>self._relays.pop()
        if last is not relay:
            self._relays[relay._place] = last
            last._place = relay._place
        relay._sweeper = None
        return 0
