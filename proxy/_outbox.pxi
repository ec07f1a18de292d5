# What is written in one turn of the loop: a part of _wire.pyx, which has the names that this one uses.

cdef class Outbox:
    def __init__(self, call_soon not None):
        self._call_soon = call_soon
        self._flush = self.flush
        self._context = Context()
        self._waiting = []

    cdef int put(self, Relay relay) except -1:
        self._waiting.append(relay)
        if len(self._waiting) == 1:
            # A context of its own: a copy of the caller's would be made each time, and it belongs to one of many.
            self._call_soon(self._flush, context=self._context)
        return 0

    def flush(self):
        cdef list waiting = self._waiting
        cdef Relay relay
        self._waiting = []
        for relay in waiting:
            try:
                relay.flush()
            except Exception as error:
                relay.finish(CLIENT_GONE, f"{type(error).__name__} on ending a turn's writes")
