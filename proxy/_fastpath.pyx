"""Per-request judgement in C: key digest, limit cells, the board, tokens. The contract is `_fastpath.pyi`."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport clock_gettime, timespec

import fcntl
import os

from proxy import bounds

cdef extern from "<time.h>":
    int CLOCK_BOOTTIME
    int CLOCK_REALTIME

cdef extern from "_blake2b.h":
    ctypedef struct weir_blake2b:
        pass
    void weir_blake2b_start(weir_blake2b* state, unsigned digest_bytes, const uint8_t* key, unsigned key_bytes) nogil
    void weir_blake2b_digest(const weir_blake2b* state, const uint8_t* message, size_t bytes, uint8_t* out) nogil

cdef extern from "_arena.h":
    const uint64_t WEIR_LAYOUT
    const uint64_t WEIR_MAGIC
    const int WEIR_COLUMNS
    const int WEIR_ROW_WORDS
    const int WEIR_HOST_WORDS
    const int WEIR_WINDOW
    const int WEIR_HEAD_BYTES
    ctypedef struct weir_head:
        uint64_t magic
        uint64_t layout
        uint64_t size
        uint64_t rate_cells
        uint64_t count_cells
        uint64_t rate_offset
        uint64_t count_offset
        uint64_t columns
        char[64] boot_id
        uint8_t[32] key
        uint64_t generation
        uint64_t* words
    ctypedef struct weir_rate:
        uint64_t lo
        int64_t touched
    ctypedef struct weir_count:
        uint64_t lo
        int64_t touched
        int64_t* used
        int64_t* settled
    ctypedef struct weir_table:
        char* base
        uint64_t cells
        uint64_t stride
        uint64_t* generation
    int weir_is_key(uint64_t word) nogil
    uint64_t* weir_cell(const weir_table* table, uint64_t index) nogil
    int64_t weir_find(weir_table* table, uint64_t lo, uint64_t hi) nogil
    int weir_reclaim(weir_table* table, uint64_t index, int is_rate, int64_t before_ns) nogil
    uint64_t WEIR_LOAD(uint64_t* word) nogil
    void WEIR_STORE(uint64_t* word, uint64_t value) nogil
    int64_t weir_load_signed(int64_t* word) nogil

cdef extern from "_limits.h":
    const int64_t WEIR_UNIT
    const int64_t WEIR_MINUTE
    const int64_t WEIR_UNITS_MAX
    const int64_t WEIR_NOW_NS_MAX
    const int64_t WEIR_TOUCH_NS
    const int WEIR_TAKEN
    const int WEIR_REFUSED
    const int WEIR_GONE
    ctypedef struct weir_entry:
        uint64_t lo
        uint64_t hi
        uint64_t cell
        int64_t increment
        int64_t burst_units
        int64_t limit
        int64_t burst
        int kind
        int text_bytes
        char* text
    int64_t weir_cost(const weir_entry* entry, int64_t amount) nogil
    int weir_rate_take(weir_rate* cell, const weir_entry* entry, int64_t now, int64_t cost, int64_t* wait) nogil
    void weir_rate_give(weir_rate* cell, const weir_entry* entry, int64_t cost) nogil
    int weir_rate_owe(weir_rate* cell, const weir_entry* entry, int64_t now, int64_t cost) nogil
    int64_t weir_rate_room(weir_rate* cell, const weir_entry* entry, int64_t now, int64_t* full_in) nogil
    int weir_count_take(weir_count* cell, const weir_entry* entry, int column) nogil
    void weir_count_drop(weir_count* cell, int column) nogil
    void weir_store_column(int64_t* column, int64_t value) nogil
    char* weir_put_number(char* to, int64_t number) nogil
    char* weir_put_duration(char* to, int64_t units) nogil
    char* weir_put(char* to, const char* text) nogil

cdef extern from "_stream.h":
    const size_t WEIR_TABLE_HEAD
    const char* weir_vocab_open(weir_vocab* v, const uint8_t* base, size_t size) nogil
    int weir_encoding_start(weir_encoding* e, const weir_vocab* v) nogil
    void weir_encoding_end(weir_encoding* e) nogil

cdef extern from *:
    """
    #include <sys/mman.h>
    #ifdef MAP_POPULATE
    #define WEIR_POPULATE MAP_POPULATE
    #else
    #define WEIR_POPULATE 0
    #endif
    static inline uint64_t weir_raise(uint64_t *word) { return __atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST); }
    """
    uint64_t weir_raise(uint64_t* word) nogil
    const int WEIR_POPULATE

RATE_REQUESTS = 0
RATE_TOKENS = 1
CONCURRENCY = 2

cdef enum:
    KIND_REQUESTS = 0
    KIND_TOKENS = 1
    KIND_CONCURRENCY = 2
    FINDS_MAX = 100  # a cell that is reclaimed so often while it is being used is not there

if bounds.COLUMNS != WEIR_COLUMNS or bounds.CELL_WINDOW != WEIR_WINDOW:
    raise ImportError("proxy/_arena.h and proxy/bounds.py differ on COLUMNS or CELL_WINDOW: make them equal and rebuild")


# === time and keys ===


cdef inline int64_t boottime_ns() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_BOOTTIME, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec


def now_ns():
    return boottime_ns()


def wall_us():
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t> now.tv_sec * 1000000 + now.tv_nsec // 1000


cdef weir_blake2b pepper_state
cdef uint8_t[64] pepper_kept
cdef Py_ssize_t pepper_bytes = 0


def key_digest(bytes secret not None, bytes pepper not None):
    global pepper_bytes
    cdef Py_ssize_t length = PyBytes_GET_SIZE(pepper)
    if length < 16 or length > 64:
        raise ValueError(f"a key digest's pepper has {length} bytes; 16 to 64 are right")
    if length != pepper_bytes or memcmp(pepper_kept, PyBytes_AS_STRING(pepper), length) != 0:
        memcpy(pepper_kept, PyBytes_AS_STRING(pepper), length)
        weir_blake2b_start(&pepper_state, 32, pepper_kept, <unsigned> length)
        pepper_bytes = length
    cdef bytes digest = PyBytes_FromStringAndSize(NULL, 32)
    weir_blake2b_digest(
        &pepper_state, <const uint8_t*> PyBytes_AS_STRING(secret), PyBytes_GET_SIZE(secret),
        <uint8_t*> PyBytes_AS_STRING(digest),
    )
    return digest


cdef uint32_t[256] crc_table
cdef signed char[256] base62_values


cdef void fill_tables() noexcept:
    cdef uint32_t byte, crc
    cdef int bit, digit
    for byte in range(256):
        crc = byte
        for bit in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
        crc_table[byte] = crc
    memset(base62_values, -1, sizeof(base62_values))
    for digit in range(10):
        base62_values[48 + digit] = digit
    for digit in range(26):
        base62_values[65 + digit] = 10 + digit
        base62_values[97 + digit] = 36 + digit


fill_tables()


def key_well_formed(bytes secret not None):
    cdef const uint8_t* text = <const uint8_t*> PyBytes_AS_STRING(secret)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(secret)
    # wk_ env _ 43 _ 6, with 2 to 16 characters of env.
    cdef Py_ssize_t env_bytes = length - 3 - 1 - 43 - 1 - 6
    cdef Py_ssize_t at
    cdef uint64_t written = 0
    cdef uint32_t crc = 0xFFFFFFFF
    if env_bytes < 2 or env_bytes > 16 or memcmp(text, b"wk_", 3) != 0:
        return False
    for at in range(3, 3 + env_bytes):
        if not (48 <= text[at] <= 57 or 97 <= text[at] <= 122):
            return False
    if text[3 + env_bytes] != 95 or text[length - 7] != 95:
        return False
    for at in range(4 + env_bytes, length - 7):
        if base62_values[text[at]] < 0:
            return False
    for at in range(length - 6, length):
        if base62_values[text[at]] < 0:
            return False
        written = written * 62 + base62_values[text[at]]
    for at in range(length - 7):
        crc = crc_table[(crc ^ text[at]) & 0xFF] ^ (crc >> 8)
    return written == (crc ^ 0xFFFFFFFF)


# === the arena ===


class ArenaFull(Exception):
    """No cell can be had for a limit: refuse, since a limit must never be missing."""


cdef tuple layout(uint64_t rate_cells, uint64_t count_cells):
    """Offsets of the two tables and the size of the file."""
    cdef uint64_t rates = WEIR_HEAD_BYTES + WEIR_COLUMNS * WEIR_ROW_WORDS * 8
    cdef uint64_t counts = rates + rate_cells * sizeof(weir_rate)
    return rates, counts, counts + count_cells * sizeof(weir_count)


cdef bytes new_head(str boot_id, uint64_t rate_cells, uint64_t count_cells):
    cdef weir_head head
    cdef bytes boot = boot_id.encode("ascii")
    cdef bytes key = os.urandom(32)
    memset(&head, 0, sizeof(head))
    head.magic = WEIR_MAGIC
    head.layout = WEIR_LAYOUT
    head.rate_cells = rate_cells
    head.count_cells = count_cells
    head.rate_offset, head.count_offset, head.size = layout(rate_cells, count_cells)
    head.columns = WEIR_COLUMNS
    memcpy(head.boot_id, PyBytes_AS_STRING(boot), len(boot))
    memcpy(head.key, PyBytes_AS_STRING(key), 32)
    return (<char*> &head)[:sizeof(head)]


cdef bint fits(bytes found, bytes wanted, Py_ssize_t file_bytes) except -1:
    """Whether a file's head is of this layout, these sizes and this boot; only its hash key may differ."""
    cdef const weir_head* head
    cdef const weir_head* want = <const weir_head*> PyBytes_AS_STRING(wanted)
    if len(found) < <Py_ssize_t> sizeof(weir_head) or <uint64_t> file_bytes != want.size:
        return False
    head = <const weir_head*> PyBytes_AS_STRING(found)
    return memcmp(head, want, 8 * 8) == 0 and memcmp(head.boot_id, want.boot_id, 64) == 0


cdef int open_file(str path, bytes head) except -1:
    """A descriptor of the arena at `path`, made or made anew when it does not fit.

    A new arena is a new file renamed in place: processes that still drain with the old one keep it. Whoever renames
    holds the lock of the file that stands there, so all processes agree which one is current.
    """
    cdef const weir_head* want = <const weir_head*> PyBytes_AS_STRING(head)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            here = os.fstat(fd)
            try:
                there = os.stat(path)
            except FileNotFoundError:
                there = None
            if there is None or (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
                os.close(fd)
                continue
            if fits(os.pread(fd, sizeof(weir_head), 0), head, here.st_size):
                # Nobody writes over a file that fits, so it may be mapped without the lock.
                fcntl.flock(fd, fcntl.LOCK_UN)
                return fd
            fresh = make_file(path + ".new", head, want.size)
            try:
                os.rename(path + ".new", path)
            except BaseException:
                os.close(fresh)
                raise
            os.close(fd)
            return fresh
        except BaseException:
            os.close(fd)
            raise


cdef int make_file(str path, bytes head, uint64_t size) except -1:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # Allocated in full: a hole in a mapped file is a SIGBUS when the disk is full.
        os.posix_fallocate(fd, 0, size)
        os.pwrite(fd, head, 0)
    except BaseException:
        os.close(fd)
        os.unlink(path)
        raise
    return fd


cdef int check_open(Arena arena) except -1:
    if arena.base == NULL:
        raise ValueError("the arena is closed")
    return 0


cdef weir_table table_of(Arena arena, bint is_rate) noexcept:
    cdef weir_table table
    table.base = arena.rates if is_rate else arena.counts
    table.cells = arena.rate_cells if is_rate else arena.count_cells
    table.stride = sizeof(weir_rate) if is_rate else sizeof(weir_count)
    table.generation = &(<weir_head*> arena.base).generation
    return table


cdef inline weir_count* count_cell(Arena arena, uint64_t cell) noexcept:
    return <weir_count*> (arena.counts + cell * sizeof(weir_count))


cdef uint64_t* host_word(Arena arena, Py_ssize_t index) except NULL:
    check_open(arena)
    if not 0 <= index < WEIR_HOST_WORDS:
        raise IndexError(f"host word {index}: there are {WEIR_HOST_WORDS}")
    return &(<weir_head*> arena.base).words[index]


cdef uint64_t* row_word(Arena arena, Py_ssize_t column, Py_ssize_t index) except NULL:
    check_open(arena)
    if not 0 <= column < WEIR_COLUMNS:
        raise IndexError(f"column {column}: there are {WEIR_COLUMNS}")
    if not 0 <= index < WEIR_ROW_WORDS:
        raise IndexError(f"column word {index}: there are {WEIR_ROW_WORDS}")
    return <uint64_t*> (arena.base + WEIR_HEAD_BYTES) + column * WEIR_ROW_WORDS + index


@cython.final
cdef class Arena:
    def __cinit__(self):
        self.base = NULL
        self.column = -1

    def __init__(
        self,
        path,
        str boot_id not None,
        int column=-1,
        *,
        uint64_t rate_cells=bounds.RATE_CELLS,
        uint64_t count_cells=bounds.COUNT_CELLS,
    ):
        if self.base != NULL:
            raise ValueError("this Arena is open already")
        if not -1 <= column < WEIR_COLUMNS:
            raise ValueError(f"column {column}: it is 0 to {WEIR_COLUMNS - 1}, or -1 for a process that holds nothing")
        if not boot_id or not boot_id.isascii() or len(boot_id) > 63:
            raise ValueError(f"boot id {boot_id!r}: 1 to 63 ASCII characters are right, as clock.boot_id() gives them")
        for cells in (rate_cells, count_cells):
            if cells < 1 or cells > 1 << 24 or cells & (cells - 1):
                raise ValueError(f"{cells} cells: a power of two up to {1 << 24} is right")
        cdef bytes head = new_head(boot_id, rate_cells, count_cells)
        rates, counts, size = layout(rate_cells, count_cells)
        self.path = os.fspath(path)
        cdef int fd = open_file(self.path, head)
        cdef void* base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        os.close(fd)
        if base == MAP_FAILED:
            raise OSError(f"{self.path}: the arena of {size} bytes cannot be mapped")
        self.base = <char*> base
        self.size = size
        self.rates = self.base + <uint64_t> rates
        self.counts = self.base + <uint64_t> counts
        self.rate_cells = rate_cells
        self.count_cells = count_cells
        self.column = column
        memcpy(self.key, (<weir_head*> self.base).key, 32)

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)

    cdef void drop(self, uint64_t cell) noexcept:
        """Lowers this life's column in a count cell by one hold. Silent where there is nothing to lower."""
        if self.base != NULL and self.column >= 0 and cell < self.count_cells:
            weir_count_drop(count_cell(self, cell), self.column)

    def word(self, Py_ssize_t index):
        return WEIR_LOAD(host_word(self, index))

    def set_word(self, Py_ssize_t index, uint64_t value):
        WEIR_STORE(host_word(self, index), value)

    def raise_word(self, Py_ssize_t index):
        return weir_raise(host_word(self, index))

    def column_word(self, Py_ssize_t column, Py_ssize_t index):
        return WEIR_LOAD(row_word(self, column, index))

    def set_column_word(self, Py_ssize_t column, Py_ssize_t index, uint64_t value):
        WEIR_STORE(row_word(self, column, index), value)

    def used(self, uint64_t cell):
        check_open(self)
        if cell >= self.count_cells:
            raise IndexError(f"count cell {cell}: there are {self.count_cells}")
        cdef int64_t total = 0
        cdef int column
        for column in range(WEIR_COLUMNS):
            total += weir_load_signed(&count_cell(self, cell).used[column]) >> 1
        return total

    def held_total(self):
        check_open(self)
        cdef int64_t total = 0
        cdef uint64_t cell
        cdef int column
        for cell in range(self.count_cells):
            for column in range(WEIR_COLUMNS):
                total += weir_load_signed(&count_cell(self, cell).used[column]) >> 1
                total -= weir_load_signed(&count_cell(self, cell).settled[column])
        return total

    def overwrite_column(self, Py_ssize_t column):
        check_open(self)
        if not 0 <= column < WEIR_COLUMNS:
            raise IndexError(f"column {column}: there are {WEIR_COLUMNS}")
        cdef int64_t changed = 0
        cdef int64_t truth
        cdef uint64_t cell
        for cell in range(self.count_cells):
            truth = weir_load_signed(&count_cell(self, cell).settled[column]) * 2
            if weir_load_signed(&count_cell(self, cell).used[column]) != truth:
                weir_store_column(&count_cell(self, cell).used[column], truth)
                changed += 1
        return changed

    def reclaim_idle(self, int64_t now_ns, int64_t idle_ns):
        check_open(self)
        if idle_ns < 0 or not 0 <= now_ns <= WEIR_NOW_NS_MAX:
            raise ValueError(f"now_ns {now_ns}, idle_ns {idle_ns}: 0 to {WEIR_NOW_NS_MAX} and 0 or more are right")
        cdef weir_table rates = table_of(self, True)
        cdef weir_table counts = table_of(self, False)
        cdef uint64_t cell
        cdef int64_t freed = 0
        for cell in range(self.rate_cells):
            freed += weir_reclaim(&rates, cell, 1, now_ns - idle_ns)
        for cell in range(self.count_cells):
            freed += weir_reclaim(&counts, cell, 0, now_ns - idle_ns)
        return freed

    def usage(self):
        check_open(self)
        cdef weir_table rates = table_of(self, True)
        cdef weir_table counts = table_of(self, False)
        cdef uint64_t cell, rates_used = 0, counts_used = 0
        for cell in range(self.rate_cells):
            rates_used += weir_is_key(WEIR_LOAD(weir_cell(&rates, cell)))
        for cell in range(self.count_cells):
            counts_used += weir_is_key(WEIR_LOAD(weir_cell(&counts, cell)))
        return rates_used, self.rate_cells, counts_used, self.count_cells

    def close(self):
        if self.base != NULL:
            munmap(self.base, self.size)
            self.base = NULL


# === limits ===


@cython.final
cdef class Limits:
    cdef Arena arena
    cdef weir_entry* entries
    cdef int count
    cdef int64_t wait
    cdef tuple held

    def __cinit__(self, Arena arena not None, entries):
        cdef list rows = list(entries)
        cdef weir_entry* entry
        self.arena = arena
        self.entries = <weir_entry*> PyMem_Malloc(max(1, len(rows)) * sizeof(weir_entry))
        if self.entries == NULL:
            raise MemoryError
        check_open(arena)
        cdef weir_blake2b hash_state
        weir_blake2b_start(&hash_state, 16, arena.key, 32)
        for kind, scope, limit, burst in rows:
            entry = &self.entries[self.count]
            fill_entry(entry, kind, limit, burst)
            fill_key(entry, &hash_state, scope)
            self.find(entry)
            self.count += 1

    def __dealloc__(self):
        PyMem_Free(self.entries)

    cdef int find(self, weir_entry* entry) except -1:
        """Finds the entry's cell, or makes it, and says so in the cell."""
        cdef bint is_rate = entry.kind != KIND_CONCURRENCY
        cdef weir_table table = table_of(self.arena, is_rate)
        cdef int64_t cell = weir_find(&table, entry.lo, entry.hi)
        if cell < 0:
            raise ArenaFull(
                f"no free {'rate' if is_rate else 'count'} cell within {WEIR_WINDOW} places in {self.arena.path}: "
                "more limits are in use than it has room for"
            )
        entry.cell = cell
        self.held = None
        if is_rate:
            self.rate(entry).touched = boottime_ns()
        else:
            self.counter(entry).touched = boottime_ns()
        return 0

    cdef inline weir_rate* rate(self, weir_entry* entry) noexcept:
        return <weir_rate*> (self.arena.rates + entry.cell * sizeof(weir_rate))

    cdef inline weir_count* counter(self, weir_entry* entry) noexcept:
        return count_cell(self.arena, entry.cell)

    @property
    def holds(self):
        cdef int at
        if self.held is None:
            self.held = tuple([self.entries[at].cell for at in range(self.count)
                               if self.entries[at].kind == KIND_CONCURRENCY])
        return self.held

    @property
    def wait_ns(self):
        return self.wait

    def token_burst(self):
        cdef int64_t smallest = 1 << 62
        cdef int at
        for at in range(self.count):
            if self.entries[at].kind == KIND_TOKENS and self.entries[at].burst < smallest:
                smallest = self.entries[at].burst
        return smallest

    cdef inline int64_t cost(self, weir_entry* entry, int64_t tokens) noexcept:
        return weir_cost(entry, tokens) if entry.kind == KIND_TOKENS else entry.increment

    cdef int take(self, weir_entry* entry, int64_t now_ns, int64_t tokens, int64_t* wait) except -1:
        cdef int answer = WEIR_GONE
        cdef int finds
        cdef weir_count* cell
        for finds in range(FINDS_MAX):
            if entry.kind != KIND_CONCURRENCY:
                answer = weir_rate_take(self.rate(entry), entry, now_ns * WEIR_UNIT, self.cost(entry, tokens), wait)
            else:
                cell = self.counter(entry)
                answer = weir_count_take(cell, entry, self.arena.column)
                if answer == WEIR_TAKEN and now_ns - weir_load_signed(&cell.touched) > WEIR_TOUCH_NS:
                    weir_store_column(&cell.touched, now_ns)
            if answer != WEIR_GONE:
                return answer
            self.find(entry)
        raise ArenaFull(f"a cell in {self.arena.path} is reclaimed faster than it can be used")

    cdef void give(self, int taken, int64_t tokens) noexcept:
        """Returns what the first `taken` entries were charged."""
        cdef weir_entry* entry
        cdef int at
        for at in range(taken):
            entry = &self.entries[at]
            if entry.kind == KIND_CONCURRENCY:
                weir_count_drop(self.counter(entry), self.arena.column)
            else:
                weir_rate_give(self.rate(entry), entry, self.cost(entry, tokens))

    cdef int check(self, int64_t now_ns, int64_t tokens) except -1:
        if self.arena.base == NULL:
            raise ValueError("the arena is closed")
        if now_ns < 0 or tokens < 0:
            raise ValueError(f"now_ns {now_ns}, tokens {tokens}: neither is ever negative")
        if now_ns > WEIR_NOW_NS_MAX:
            raise ValueError(f"now_ns {now_ns}: limits are kept for {WEIR_NOW_NS_MAX} ns of uptime, four and a half years")
        return 0

    def acquire(self, int64_t now_ns, int64_t tokens):
        cdef int64_t wait = 0
        cdef int at
        self.check(now_ns, tokens)
        for at in range(self.count):
            if self.entries[at].kind == KIND_CONCURRENCY and self.arena.column < 0:
                self.give(at, tokens)
                raise ValueError("this process opened the arena without a column, so it cannot hold concurrency")
            try:
                if self.take(&self.entries[at], now_ns, tokens, &wait) == WEIR_TAKEN:
                    continue
            except ArenaFull:
                self.give(at, tokens)
                raise
            self.give(at, tokens)
            self.wait = (wait + WEIR_UNIT - 1) // WEIR_UNIT
            return at + 1
        self.wait = 0
        return 0

    def settle_tokens(self, int64_t now_ns, int64_t reserved, int64_t used):
        cdef weir_entry* entry
        cdef int64_t change
        cdef int at
        self.check(now_ns, reserved)
        self.check(now_ns, used)
        for at in range(self.count):
            entry = &self.entries[at]
            if entry.kind != KIND_TOKENS:
                continue
            change = weir_cost(entry, used) - weir_cost(entry, reserved)
            if change < 0:
                weir_rate_give(self.rate(entry), entry, -change)
            elif change > 0:
                self.owe(entry, now_ns * WEIR_UNIT, change)

    cdef void owe(self, weir_entry* entry, int64_t now, int64_t cost) noexcept:
        """Charges what was used beyond what was reserved. Settling never fails: without a cell the charge is let go."""
        cdef int finds
        for finds in range(FINDS_MAX):
            if weir_rate_owe(self.rate(entry), entry, now, cost) != WEIR_GONE:
                return
            try:
                self.find(entry)
            except ArenaFull:
                return

    def refund(self, int64_t now_ns, int64_t tokens):
        self.check(now_ns, tokens)
        self.give(self.count, tokens)

    def headers(self, int64_t now_ns):
        cdef char[640] text
        cdef char* end = text
        self.check(now_ns, 0)
        end = self.put_tightest(end, KIND_REQUESTS, now_ns * WEIR_UNIT)
        end = self.put_tightest(end, KIND_TOKENS, now_ns * WEIR_UNIT)
        return PyBytes_FromStringAndSize(text, end - text)

    cdef char* put_tightest(self, char* to, int kind, int64_t now) noexcept:
        """Three header lines of the entry of this kind with the least room; none without such an entry."""
        cdef weir_entry* tightest = NULL
        cdef int64_t least = 0, full_in = 0, room, until
        cdef int at
        for at in range(self.count):
            if self.entries[at].kind != kind:
                continue
            room = weir_rate_room(self.rate(&self.entries[at]), &self.entries[at], now, &until)
            if tightest == NULL or room < least:
                tightest, least, full_in = &self.entries[at], room, until
        if tightest == NULL:
            return to
        memcpy(to, tightest.text, tightest.text_bytes)
        to = weir_put_number(to + tightest.text_bytes, least)
        to = weir_put(to, b"\r\nx-ratelimit-reset-requests: " if kind == KIND_REQUESTS
                      else b"\r\nx-ratelimit-reset-tokens: ")
        return weir_put(weir_put_duration(to, full_in), b"\r\n")


cdef int fill_entry(weir_entry* entry, int kind, object limit, object burst) except -1:
    if kind not in (KIND_REQUESTS, KIND_TOKENS, KIND_CONCURRENCY):
        raise ValueError(f"limit kind {kind}: RATE_REQUESTS, RATE_TOKENS or CONCURRENCY is right")
    burst = burst or limit
    for name, value in (("limit", limit), ("burst", burst)):
        if not 1 <= value <= 1 << 40:
            raise ValueError(f"{name} {value}: 1 to {1 << 40} is right")
    memset(entry, 0, sizeof(weir_entry))
    entry.kind = kind
    entry.limit = limit
    entry.burst = burst
    if kind == KIND_CONCURRENCY:
        return 0
    entry.increment = (WEIR_MINUTE + entry.limit - 1) // entry.limit
    if entry.burst > WEIR_UNITS_MAX // entry.increment:
        raise ValueError(f"a burst of {burst} at {limit} a minute takes more than 52 days to refill: lower the burst")
    entry.burst_units = entry.burst * entry.increment
    name = b"requests" if kind == KIND_REQUESTS else b"tokens"
    cdef bytes text = b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: " % (name, limit, name)
    entry.text_bytes = len(text)
    memcpy(entry.text, PyBytes_AS_STRING(text), len(text))
    return 0


cdef int fill_key(weir_entry* entry, const weir_blake2b* hash_state, bytes scope) except -1:
    """The limit's key: kind and scope, and no policy version, so that a reload keeps what was used."""
    if scope is None:
        raise TypeError("a limit's scope is bytes, such as b'tenant/acme'")
    cdef bytes name = bytes((entry.kind,)) + scope
    cdef uint64_t[2] words
    weir_blake2b_digest(hash_state, <const uint8_t*> PyBytes_AS_STRING(name), len(name), <uint8_t*> words)
    entry.lo = words[0] | (<uint64_t> 1 << 63)
    entry.hi = words[1] | (<uint64_t> 1 << 63)
    return 0


cdef size_t TEXT_BYTES_INLINE = bounds.TEXT_BYTES_INLINE

include "_counter.pxi"
include "_tally.pxi"
