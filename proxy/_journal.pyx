"""Slots and segments in C: what is in flight and what is done. The scheme is told in `_journal.h`."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_SIZE
from libc.errno cimport errno
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from proxy._fastpath cimport Arena

import os

from proxy import bounds


cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    void* MAP_FAILED
    void* mmap(void*, size_t, int, int, int, int64_t)
    int munmap(void*, size_t)


cdef extern from "_journal.h":
    enum:
        JRN_SLOTS_FORMAT
        JRN_SLOTS_FORMAT_OLD
        JRN_SEGMENT_FORMAT
        JRN_SLOTS_MAGIC
        JRN_SEGMENT_MAGIC
        JRN_SLOT_BYTES
        JRN_OPENED_BYTES_MAX
        JRN_SENT_BYTES_MAX
        JRN_RECORD_BYTES_MAX
        JRN_HOLDS
        JRN_COUNTERS
        JRN_COUNTERS_OLD
        JRN_SLOTS_HEAD_BYTES
        JRN_SEGMENT_HEAD_BYTES
        JRN_SPACE_MAX
        JRN_FREE
        JRN_FAILED
        JRN_MOVED
    ctypedef struct jrn_head:
        uint64_t magic
        uint32_t format, slot_bytes
        uint64_t slots, column
        uint8_t* epoch
        uint64_t segment_bytes, calls, recovered, created_us
    ctypedef struct jrn_segment_head:
        uint64_t magic
        uint32_t format
        uint8_t* epoch
        uint64_t index, first_seq, last_seq, synced, started_us, bad, cut
    ctypedef struct jrn_record:
        uint32_t size
        uint64_t seq, call
    ctypedef struct jrn_segment:
        char* base
        uint64_t size
    ctypedef struct jrn:
        jrn_head* head
        jrn_slot* slots
        jrn_segment segment
        uint64_t offset, seq
        uint32_t seed
    ctypedef struct jrn_place:
        uint64_t last
    ctypedef struct jrn_recovery:
        uint64_t added, gaps
        int ended, at
    ctypedef int (*jrn_visit)(void*, const jrn_record*) noexcept
    ctypedef void (*jrn_drop)(void*, uint64_t) noexcept
    ctypedef int (*jrn_build)(void*, const jrn_slot*, char*) noexcept
    uint32_t (*jrn_crc)(uint32_t, const void*, uint64_t)
    uint32_t jrn_crc_portable(uint32_t, const void*, uint64_t)
    void jrn_init()
    uint32_t jrn_seed(const uint8_t*)
    uint64_t jrn_space(uint64_t)
    void jrn_segment_begin(jrn_segment, const uint8_t*, uint64_t)
    void jrn_mend(jrn_segment, const uint8_t*, uint64_t)
    void jrn_use(jrn*, jrn_segment)
    int jrn_fits(const jrn*, uint64_t)
    void jrn_append(jrn*, uint64_t, const void*, uint64_t)
    jrn_place jrn_walk(const jrn_segment*, int, uint32_t, uint64_t, uint64_t, jrn_visit, void*)
    int jrn_move(jrn*, const jrn_segment*, int, const jrn_segment*, uint64_t)
    void jrn_touch(jrn_segment)
    void jrn_open(jrn*, jrn_slot*, uint64_t, const void*, uint64_t, const uint64_t*, uint32_t)
    void jrn_sent(jrn_slot*, uint32_t, const void*, uint64_t)
    void jrn_note(jrn_slot*, const uint64_t*)
    const uint64_t* jrn_counters(const jrn_slot*)
    const uint64_t* jrn_counters_old(const jrn_slot*)
    void jrn_close(jrn*, jrn_slot*, const void*, uint64_t, jrn_drop, void*)
    int jrn_recover(jrn*, const jrn_segment*, int, jrn_build, void*, jrn_recovery*)
    jrn_segment_head* jrn_segment_headof(jrn_segment)


jrn_init()

if (
    JRN_SLOT_BYTES != bounds.SLOT_BYTES
    or JRN_OPENED_BYTES_MAX != bounds.OPENED_BYTES_MAX
    or JRN_SENT_BYTES_MAX != bounds.SENT_BYTES_MAX
    or JRN_RECORD_BYTES_MAX != bounds.RECORD_BYTES_MAX
    or JRN_HOLDS != bounds.HOLDS_PER_SLOT
):
    raise ImportError("_journal.h and bounds.py disagree about the journal's sizes: rebuild, or make them equal")

cdef enum:
    OLD_BYTES_PER_TOKEN = 4  # of English prose in o200k_base: what the version that wrote old slots took

SLOTS_HEAD_BYTES = JRN_SLOTS_HEAD_BYTES
SEGMENT_HEAD_BYTES = JRN_SEGMENT_HEAD_BYTES
RECORD_SPACE_MAX = JRN_SPACE_MAX


class Malformed(ValueError):
    """A file of the journal that is not what its name says, or of a format this version does not know."""


def crc32c(const uint8_t[::1] data, bint portable=False):
    """CRC-32C (RFC 3720) of `data`; `portable` takes the tables even where the CPU has the instruction."""
    cdef const void* at = &data[0] if data.shape[0] else NULL
    return jrn_crc_portable(0, at, data.shape[0]) if portable else jrn_crc(0, at, data.shape[0])


cdef class Mapping:
    """A file mapped shared. Lives as long as anything points into it."""

    cdef char* base
    cdef uint64_t size

    def __cinit__(self, int fd, uint64_t size, bint writable):
        self.base = NULL
        cdef void* at = mmap(NULL, size, PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED, fd, 0)
        if at == MAP_FAILED:
            raise OSError(errno, f"cannot map {size} bytes of the journal")
        self.base = <char*>at
        self.size = size

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)


cdef class Segment:
    """One segment file, mapped. Owns `fd`."""

    cdef Mapping mapping
    cdef jrn_segment at
    cdef jrn_segment_head* head
    cdef readonly int fd
    cdef readonly uint64_t index

    def __cinit__(self, int fd, bytes epoch=None, uint64_t index=0, *, bint writable=True, bint mend=False):
        self.fd = fd
        cdef uint64_t size = os.fstat(fd).st_size
        if size < JRN_SEGMENT_HEAD_BYTES + JRN_SPACE_MAX:
            raise Malformed(f"a segment of {size} bytes cannot hold one record of {JRN_RECORD_BYTES_MAX}")
        self.mapping = Mapping(fd, size, writable)
        self.at.base = self.mapping.base
        self.at.size = size
        self.head = jrn_segment_headof(self.at)
        if mend and self.head.magic != JRN_SEGMENT_MAGIC:
            jrn_mend(self.at, <const uint8_t*>PyBytes_AS_STRING(epoch), index)
        elif epoch is not None and not mend:
            jrn_segment_begin(self.at, <const uint8_t*>PyBytes_AS_STRING(epoch), index)
        self.index = index if index else self.head.index
        if self.head.magic != JRN_SEGMENT_MAGIC or self.head.format != JRN_SEGMENT_FORMAT:
            raise Malformed(f"not a journal segment of format {JRN_SEGMENT_FORMAT}: it says format {self.head.format}")

    def __dealloc__(self):
        self.close()

    cpdef void close(self) noexcept:
        """Closes the descriptor; the mapping stays until the object goes."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            try:
                os.close(fd)
            except OSError:
                pass

    @property
    def first_seq(self):
        return self.head.first_seq

    @property
    def last_seq(self):
        return self.head.last_seq

    @property
    def started_us(self):
        return self.head.started_us

    @property
    def synced(self):
        return self.head.synced

    @property
    def bad(self):
        return self.head.bad

    @property
    def epoch(self):
        return PyBytes_FromStringAndSize(<char*>self.head.epoch, 16)

    def mark_synced(self, uint64_t seq):
        """Everything up to `seq` that this segment holds is on the disk."""
        seq = min(seq, self.head.last_seq)
        if seq > self.head.synced:
            self.head.synced = seq

    def mark_failed(self):
        """Its fdatasync failed: what is unsynced must be written again."""
        if self.head.bad == 0:
            self.head.bad = JRN_FAILED

    def touch(self):
        """Makes every page dirty, so that the next fdatasync writes what a failed one has dropped."""
        jrn_touch(self.at)


@cython.final
@cython.freelist(256)
cdef class Slot:
    """One call in flight. Lives in the mapped slots file; this object is only its handle."""

    cdef void note(
        self,
        uint64_t frames,
        uint64_t bytes_,
        uint64_t text_bytes,
        uint64_t prompt_tokens,
        uint64_t cached,
        uint64_t completion,
        uint64_t reasoning,
        uint64_t audio,
        uint64_t usage_seen,
        uint64_t first_us,
        uint64_t status,
        uint64_t text_tokens,
        uint64_t text_estimated,
    ) noexcept:
        cdef uint64_t[JRN_COUNTERS] counters
        if self.at == NULL:
            return
        counters[0] = frames
        counters[1] = bytes_
        counters[2] = text_bytes
        counters[3] = prompt_tokens
        counters[4] = cached
        counters[5] = completion
        counters[6] = reasoning
        counters[7] = audio
        counters[8] = (usage_seen != 0) | <uint64_t>(text_estimated != 0) << 1  # two flags in one word
        counters[9] = first_us
        counters[10] = status
        counters[11] = text_tokens
        jrn_note(self.at, counters)

    def sent(self, uint32_t attempt, bytes sent not None):
        if PyBytes_GET_SIZE(sent) > JRN_SENT_BYTES_MAX:
            raise ValueError(f"a sent record of {len(sent)} bytes: at most {JRN_SENT_BYTES_MAX} fit into a slot")
        if self.at != NULL:
            jrn_sent(self.at, attempt, PyBytes_AS_STRING(sent), PyBytes_GET_SIZE(sent))

    def progress(
        self,
        uint64_t frames,
        uint64_t bytes_,
        uint64_t text_bytes,
        uint64_t prompt_tokens,
        uint64_t cached_tokens,
        uint64_t completion_tokens,
        uint64_t reasoning_tokens,
        uint64_t audio_tokens,
        uint64_t usage_seen,
        uint64_t first_us,
        uint64_t status,
        uint64_t text_tokens=0,
        uint64_t text_estimated=0,
    ):
        self.note(
            frames, bytes_, text_bytes, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens,
            audio_tokens, usage_seen, first_us, status, text_tokens, text_estimated,
        )

    def counters(self):
        if self.at == NULL:
            raise ValueError(f"call {self.call} is closed: its slot may be another call's by now")
        return counters_of(jrn_counters(self.at))

    @property
    def closed(self):
        return self.at == NULL


cdef tuple counters_of(const uint64_t* counters):
    """The fields of `call.Progress`, in its order."""
    cdef int i
    cdef list values = [counters[i] for i in range(8)]
    values += [counters[8] & 1, counters[9], counters[10], counters[11], counters[8] >> 1 & 1]
    return tuple(values)


cdef tuple counters_of_old(const uint64_t* counters):
    """The same of a slot of the old format, which had only the bytes of text: its tokens are estimated from them."""
    cdef int i
    cdef list values = [counters[i] for i in range(JRN_COUNTERS_OLD)]
    values += [counters[2] // OLD_BYTES_PER_TOKEN + (counters[2] % OLD_BYTES_PER_TOKEN != 0), 1]
    return tuple(values)


cdef void drop_hold(void* arena, uint64_t cell) noexcept:
    (<Arena>arena).drop(cell)


cdef class Slots:
    """The slots file of one epoch, mapped. `fd` stays the caller's, with the lock on it."""

    cdef Mapping mapping
    cdef jrn j

    def __cinit__(self, int fd, *rest, bint writable=True):
        cdef uint64_t size = os.fstat(fd).st_size
        if size < JRN_SLOTS_HEAD_BYTES:
            raise Malformed(f"a slots file of {size} bytes is shorter than its header")
        self.mapping = Mapping(fd, size, writable)
        cdef jrn_head* head = <jrn_head*>self.mapping.base
        cdef bint known = head.format == JRN_SLOTS_FORMAT or head.format == JRN_SLOTS_FORMAT_OLD
        if head.magic != JRN_SLOTS_MAGIC or not known or head.slot_bytes != JRN_SLOT_BYTES:
            raise Malformed(f"not a slots file of format {JRN_SLOTS_FORMAT}: it says format {head.format}")
        if head.slots > (size - JRN_SLOTS_HEAD_BYTES) // JRN_SLOT_BYTES:
            raise Malformed(f"a slots file of {size} bytes cannot hold {head.slots} slots")
        self.j.head = head
        self.j.slots = <jrn_slot*>(self.mapping.base + JRN_SLOTS_HEAD_BYTES)
        self.j.seed = jrn_seed(head.epoch)

    @staticmethod
    def format(int fd, bytes epoch not None, int column, uint64_t slots, uint64_t segment_bytes, uint64_t created_us):
        """Writes the header of a zeroed file of `slots_bytes(slots)` bytes."""
        if len(epoch) != 16:
            raise ValueError(f"an epoch is 16 bytes, not {len(epoch)}")
        if os.fstat(fd).st_size < slots_bytes(slots):
            raise Malformed(f"{slots} slots need a file of {slots_bytes(slots)} bytes, not {os.fstat(fd).st_size}")
        cdef Mapping mapping = Mapping(fd, JRN_SLOTS_HEAD_BYTES, True)
        cdef jrn_head* head = <jrn_head*>mapping.base
        head.format = JRN_SLOTS_FORMAT
        head.slot_bytes = JRN_SLOT_BYTES
        head.slots = slots
        head.column = column
        memcpy(head.epoch, PyBytes_AS_STRING(epoch), 16)
        head.segment_bytes = segment_bytes
        head.created_us = created_us
        head.magic = JRN_SLOTS_MAGIC

    @property
    def epoch(self):
        return PyBytes_FromStringAndSize(<char*>self.j.head.epoch, 16)

    @property
    def column(self):
        return <int>self.j.head.column

    @property
    def calls(self):
        return self.j.head.calls

    @property
    def recovered(self):
        return self.j.head.recovered != 0

    @property
    def segment_bytes(self):
        return self.j.head.segment_bytes

    def mark_recovered(self):
        """The last word of a life: nothing is in flight, everything is on the disk, the column is free."""
        self.j.head.recovered = 1


def slots_bytes(uint64_t slots):
    """Size of a slots file."""
    return JRN_SLOTS_HEAD_BYTES + slots * JRN_SLOT_BYTES


cdef class Writer(Slots):
    """The living side of one epoch: slots plus the segment being written.

    One thread opens and closes calls. The sync thread shares it under the GIL, which no method gives up halfway.
    """

    cdef Arena arena
    cdef uint32_t* free_slots
    cdef uint64_t free_count
    cdef uint64_t records_per_segment
    cdef Segment current
    cdef list spares
    cdef list unsynced
    cdef readonly uint64_t open_slots
    cdef readonly uint64_t calls_opened
    cdef public uint64_t synced_seq
    cdef public bint failing

    def __cinit__(self, int slots_fd, Segment segment not None, Arena arena):
        cdef uint64_t slots = self.j.head.slots
        if self.j.head.format != JRN_SLOTS_FORMAT:
            raise Malformed(f"a slots file of format {self.j.head.format} is only recovered, not written")
        self.arena = arena
        self.free_slots = <uint32_t*>calloc(slots + 1, sizeof(uint32_t))
        if self.free_slots == NULL:
            raise MemoryError()
        self.free_count = slots
        for i in range(slots):
            self.free_slots[i] = <uint32_t>(slots - 1 - i)
        self.records_per_segment = (segment.at.size - JRN_SEGMENT_HEAD_BYTES) // JRN_SPACE_MAX
        self.current = segment
        self.spares = []
        self.unsynced = []
        jrn_use(&self.j, segment.at)

    def __dealloc__(self):
        free(self.free_slots)

    @property
    def seq(self):
        return self.j.seq

    @property
    def slots(self):
        return self.j.head.slots

    cdef uint64_t room(self) noexcept:
        cdef uint64_t here = (self.j.segment.size - self.j.offset) // JRN_SPACE_MAX
        return here + <uint64_t>len(self.spares) * self.records_per_segment

    @property
    def records_left(self):
        """Records of the largest size that what is allocated can still hold."""
        return self.room()

    @property
    def spare_count(self):
        return len(self.spares)

    @property
    def last_index(self):
        """Index of the newest segment, spares included."""
        cdef Segment newest = self.spares[len(self.spares) - 1] if self.spares else self.current
        return newest.index

    def add_spare(self, Segment segment not None):
        if segment.at.size != self.current.at.size:
            raise ValueError("segments of one epoch are of one size")
        self.spares.append(segment)

    cpdef Slot open(self, bytes record, tuple holds):
        cdef uint64_t[JRN_HOLDS] cells
        cdef uint64_t size = PyBytes_GET_SIZE(record)
        cdef Py_ssize_t count = PyTuple_GET_SIZE(holds)
        cdef Py_ssize_t i
        if size > JRN_OPENED_BYTES_MAX:
            raise ValueError(f"an opened record of {size} bytes: at most {JRN_OPENED_BYTES_MAX} fit into a slot")
        if count > JRN_HOLDS:
            raise ValueError(f"{count} holds: a slot has room for {JRN_HOLDS}")
        for i in range(count):
            cells[i] = holds[i]
        # One more for this call and one for the EpochEnd.
        if self.free_count == 0 or self.failing or self.room() < self.open_slots + 2:
            return None
        cdef Slot slot = Slot.__new__(Slot)
        self.free_count -= 1
        self.calls_opened += 1
        self.open_slots += 1
        slot.mapping = self.mapping
        slot.call = self.calls_opened
        slot.at = &self.j.slots[self.free_slots[self.free_count]]
        jrn_open(&self.j, slot.at, slot.call, PyBytes_AS_STRING(record), size, cells, <uint32_t>count)
        return slot

    cdef int make_room(self, uint64_t size) except -1:
        if jrn_fits(&self.j, size):
            return 0
        if not self.spares:
            raise RuntimeError("the journal has no room for a record that `open` kept room for")
        self.unsynced.append(self.current)
        self.current = self.spares.pop(0)
        jrn_use(&self.j, self.current.at)
        return 0

    cpdef uint64_t close(self, Slot slot, bytes record) except 0:
        cdef uint64_t size = PyBytes_GET_SIZE(record)
        cdef jrn_slot* at = slot.at
        if at == NULL:
            raise ValueError(f"call {slot.call} is closed already")
        if slot.mapping is not self.mapping:
            raise ValueError(f"call {slot.call} belongs to another epoch")
        if size == 0 or size > JRN_RECORD_BYTES_MAX:
            raise ValueError(f"a final record of {size} bytes: 1 to {JRN_RECORD_BYTES_MAX} are possible")
        self.make_room(size)
        slot.at = NULL
        jrn_close(
            &self.j, at, PyBytes_AS_STRING(record), size,
            drop_hold if self.arena is not None else <jrn_drop>NULL, <void*>self.arena,
        )
        self.free_slots[self.free_count] = <uint32_t>(at - self.j.slots)
        self.free_count += 1
        self.open_slots -= 1
        return self.j.seq

    def end(self, bytes payload not None):
        """Appends the EpochEnd: only when no call is open."""
        if self.open_slots:
            raise ValueError(f"{self.open_slots} calls are open: close them before the epoch ends")
        self.make_room(len(payload))
        jrn_append(&self.j, 0, PyBytes_AS_STRING(payload), len(payload))
        return self.j.seq

    def to_sync(self):
        """(seq, segments): once these are on the disk, so is every record up to seq."""
        cdef uint64_t seq = self.j.seq
        return seq, [*self.unsynced, self.current]

    def mark_synced(self, uint64_t seq, list segments not None):
        """What `to_sync` gave is on the disk: the segments that are full need no further look."""
        cdef Segment segment
        for segment in segments:
            segment.mark_synced(seq)
            if segment is not self.current and segment in self.unsynced:
                self.unsynced.remove(segment)
        self.synced_seq = seq

    def close_files(self):
        """Closes the segments' descriptors: the life is over."""
        cdef Segment segment
        for segment in [*self.unsynced, self.current, *self.spares]:
            segment.close()

    def spares_to_move(self):
        """Spares that `move_on` needs, so that afterwards every open call still has its room."""
        cdef uint64_t records = self.open_slots + 2
        return len(self.unsynced) + 2 + (records + self.records_per_segment - 1) // self.records_per_segment

    def move_on(self):
        """After a failed fdatasync: writes what is unsynced again, from memory, into fresh segments.

        The copies keep their seq. Returns the number of records moved.
        """
        if self.spare_count < self.spares_to_move():
            raise ValueError("too few spares to move on")
        cdef list old = [*self.unsynced, self.current]
        cdef int count = len(old), i
        cdef jrn_segment* segments = <jrn_segment*>calloc(count + len(self.spares), sizeof(jrn_segment))
        if segments == NULL:
            raise MemoryError()
        for i in range(count):
            segments[i] = (<Segment>old[i]).at
        for i in range(len(self.spares)):
            segments[count + i] = (<Segment>self.spares[i]).at
        cdef int used = jrn_move(&self.j, segments, count, segments + count, self.synced_seq)
        free(segments)
        self.unsynced = self.spares[:used - 1]
        self.current = self.spares[used - 1]
        self.spares = self.spares[used:]
        return self.j.seq - self.synced_seq


ctypedef struct building:
    void* build
    void* error
    bint old


cdef int build_record(void* context, const jrn_slot* slot, char* payload) noexcept:
    cdef building* state = <building*>context
    cdef uint64_t opened_size, sent_size
    try:
        opened_size = slot.opened_size
        opened = slot.opened[:min(opened_size, <uint64_t>JRN_OPENED_BYTES_MAX)]
        sent_size = slot.sent_word & 0xFFFFFFFF
        sent = slot.sent[:sent_size] if 0 < sent_size <= JRN_SENT_BYTES_MAX else None
        counters = counters_of_old(jrn_counters_old(slot)) if state.old else counters_of(jrn_counters(slot))
        record = (<object>state.build)(slot.call, opened, sent, slot.sent_word >> 32, counters, slot.state)
        if not 0 < len(record) <= JRN_RECORD_BYTES_MAX:
            raise ValueError(f"a final record of {len(record)} bytes: 1 to {JRN_RECORD_BYTES_MAX} are possible")
        memcpy(payload, PyBytes_AS_STRING(record), len(record))
        return len(record)
    except BaseException as error:
        (<list>state.error).append(error)
        return -1


cdef class Recovery(Slots):
    """The recoverer's side of a dead epoch. The caller holds the lock on the slots file."""

    cdef list segments
    cdef jrn_recovery result

    @property
    def added(self):
        return self.result.added

    @property
    def gaps(self):
        return self.result.gaps

    @property
    def ended(self):
        return self.result.ended != 0

    @property
    def seq(self):
        return self.j.seq

    def run(self, list segments not None, build):
        """Closes every call that is not closed; `build(call, opened, sent, attempt, counters, state) -> bytes`.

        False: one more empty segment is needed; add it and run again.
        """
        cdef int count = len(segments), i, status
        cdef jrn_segment* array = <jrn_segment*>calloc(count + 1, sizeof(jrn_segment))
        if array == NULL:
            raise MemoryError()
        cdef list errors = []
        cdef building state
        state.build = <void*>build
        state.error = <void*>errors
        state.old = self.j.head.format == JRN_SLOTS_FORMAT_OLD
        for i in range(count):
            array[i] = (<Segment>segments[i]).at
        self.segments = segments
        cdef uint64_t before = self.result.added
        status = jrn_recover(&self.j, array, count, build_record, &state, &self.result)
        self.result.added += before
        free(array)
        if errors:
            raise errors[0]
        if status < 0 and -status == 12:
            raise MemoryError()
        return status == 0

    def end(self, bytes payload not None):
        """Appends the EpochEnd; `run` has made room."""
        jrn_append(&self.j, 0, PyBytes_AS_STRING(payload), len(payload))


ctypedef struct gathering:
    void* records
    uint64_t expected
    uint64_t first
    uint64_t resumes
    uint64_t records_left
    int64_t bytes_left
    bint full


cdef int gather(void* context, const jrn_record* record) noexcept:
    cdef gathering* into = <gathering*>context
    if record.seq != into.expected:
        into.resumes = record.seq
        return 1
    if into.first != 0 and <int64_t>record.size > into.bytes_left:
        into.full = True
        return 1
    (<list>into.records).append(
        PyBytes_FromStringAndSize(<const char*>record + sizeof(jrn_record), record.size)
    )
    if into.first == 0:
        into.first = record.seq
    into.expected = record.seq + 1
    into.bytes_left -= record.size
    into.records_left -= 1
    into.full = into.records_left == 0
    return into.full


cdef int stop_at_first(void* context, const jrn_record* record) noexcept:
    (<uint64_t*>context)[0] = record.seq
    return 1


def span(list segments not None, bytes epoch not None, bint whole=True):
    """(first, last) seq that can be read in these segments, (0, 0) without any; not `whole`: last is first."""
    cdef int count = len(segments), i
    cdef uint64_t first = 0
    cdef jrn_segment* array = <jrn_segment*>calloc(count + 1, sizeof(jrn_segment))
    if array == NULL:
        raise MemoryError()
    for i in range(count):
        array[i] = (<Segment>segments[i]).at
    cdef uint32_t seed = jrn_seed(<const uint8_t*>PyBytes_AS_STRING(epoch))
    cdef jrn_place place = jrn_walk(array, count, seed, 0, UINT64_MAX, stop_at_first, &first)
    if whole and first:
        place = jrn_walk(array, count, seed, 0, UINT64_MAX, NULL, NULL)
    free(array)
    return first, place.last


def read(list segments not None, bytes epoch not None, uint64_t first, uint64_t until, uint64_t max_records, int64_t max_bytes):
    """(payloads, resumes): consecutive records from `first` on, up to `until`.

    `resumes` is 0, or the seq of the next readable record when what follows the payloads is damaged.
    """
    cdef int count = len(segments), i
    cdef jrn_segment* array = <jrn_segment*>calloc(count + 1, sizeof(jrn_segment))
    if array == NULL:
        raise MemoryError()
    for i in range(count):
        array[i] = (<Segment>segments[i]).at
    records = []
    cdef gathering into
    into.records = <void*>records
    into.expected = first
    into.first = 0
    into.resumes = 0
    into.records_left = max_records if max_records else 1
    into.bytes_left = max_bytes
    into.full = False
    cdef uint32_t seed = jrn_seed(<const uint8_t*>PyBytes_AS_STRING(epoch))
    jrn_walk(array, count, seed, first, until, gather, &into)
    free(array)
    # The walk came to the end and found nothing more, though more was synced.
    if into.resumes == 0 and not into.full and into.expected <= until:
        into.resumes = until + 1
    return records, into.resumes
