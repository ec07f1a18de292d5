"""Every limit on size and time, with its unit and its reason. Policy may narrow some of them; nothing widens them."""

# === the wire: what a client may send ===
REQUEST_LINE_BYTES_MAX = 8190  # aiohttp's own bound; our paths are known and short
HEADERS_SECONDS_MAX = 10  # accept to end of headers; a slow-header client holds a socket no longer
BODY_SECONDS_MAX = 60  # the whole body: 32 MB at half a megabyte a second
BODY_BYTES_MAX = 32 * 1024 * 1024  # a chat with images as base64; larger belongs to a files endpoint
CONNECTION_IDLE_SECONDS_MAX = 75  # keep-alive between requests: longer than the SDKs' pools keep theirs
LINGER_SECONDS_MAX = 2  # a refused request's body is read on so long, so that the refusal reaches its client
CLIENT_AHEAD_BYTES_MAX = 64 * 1024  # of a client, before anybody asks for them: one read of the kernel's buffer
CONNECTIONS_MAX = 20_000  # per worker: below the usual file limit, two sockets a stream
JSON_DEPTH_MAX = 128  # nesting of a request body: far above real use, far below any parser's stack
PROMPT_STRINGS_MAX = 65_536  # of a prompt whose tokens are counted: 8 bytes each; beyond them it is estimated
IMAGES_READ_MAX = 500  # images of one request whose headers are read; the providers take no more
IMAGE_SEGMENTS_MAX = 32  # of a JPEG, until its size is found: a camera's notes and profiles have about 10
IMAGE_UNESCAPED_BYTES_MAX = 64 * 1024  # of an image whose base64 is escaped: most headers are far in front of that
TOOLS_CACHED_MAX = 128  # counts of one tenant's tool definitions that a worker remembers, about 250 bytes each
TOOLS_BYTES_MAX = 128 * 1024  # of tool definitions that are decoded, below 1 ms; longer ones are counted as text
TOOL_SCHEMAS_MAX = 5000  # objects and arrays in them, and schemas that are written out; beyond them the same
REQUEST_ID_BYTES_MAX = 128  # the client's X-Request-ID: kept on the wire up to here, replaced above
# What of a request goes into its opened record. `record` checks that all of it at its widest is below OPENED_BYTES_MAX,
# so that every call can be opened.
REQUEST_ID_BYTES_KEPT = 48  # a mere column: the SDKs' ids have 36
USER_BYTES_MAX = 96  # the body's `user`, cut
TAGS_MAX = 8  # per key: tags multiply what a report must group
TAGS_BYTES_MAX = 96  # names and values of one key's tags together; refused above it where the key is made
TAG_HEADER_BYTES_MAX = 32  # the name of the one tag header, which is the tag's own
TAG_BYTES_MAX = 48  # the value of the one tag header, cut
KEY_ID_BYTES_MAX = 20  # `jwt_` and 16 digits; a key's own is shorter
ENDPOINT_BYTES_MAX = 16  # `chat.completions`
MODEL_BYTES_MAX = 96  # longer model names are nobody's: refused as not found
GRANTS_PER_KEY_MAX = 256  # (endpoint, model) pairs remembered for one key; a catch-all model makes their number open
KEYS_CACHED_MAX = 100_000  # known keys in one worker, about 1.2 KB each
KEYS_UNKNOWN_CACHED_MAX = 10_000  # digests known not to exist: a wrong key costs the database one look-up
KEYS_RENEWED_MAX = 1000  # known keys looked up again in the background after a change; the others at their next use
KEYS_RENEWED_AT_ONCE = 200  # in one query: about a millisecond of the event loop
KEYS_WAITING_MAX = 2000  # keys that wait for the database to say whose they are; one more is refused with 503
KEYS_WAIT_SECONDS_MAX = 5  # a request waits so long for that; a database that is slower is as good as away
KEYS_RENEW_SECONDS = 0.1  # how often a worker looks whether keys have changed, to renew what it knows
KEYS_POLL_SECONDS = 0.3  # between a keeper's looks at the key table: a change that nobody announced is seen so late
KEYS_CHANNEL_SECONDS = 1  # between two tries to subscribe, and between two proofs that a silent channel still stands
KEYS_CUT_SECONDS = 0.2  # the rest of a frame is waited for so long when a stream is cut; then its connection ends

KEY_SOON_SECONDS = 7 * 86_400  # a key that ends within a week says so on every answer
FAILURES_PER_MINUTE_DEFAULT = 120  # bad credentials from one address: above any broken client's pace of retrying
STRANGERS_PER_SECOND = 50  # unknown credentials looked at for addresses above that: 5 ms of checking signatures
FAILURE_CELLS = 4096  # of the rate cells may count bad credentials; addresses share them
FORWARDED_ADDRESSES_MAX = 32  # in one X-Forwarded-For: nobody has so many proxies in a row
TRUSTED_PROXIES_MAX = 64  # blocks: each is looked at on every request of a proxy
ADDRESSES_CACHED_MAX = 4096  # addresses and lists of blocks that were read before
TENANTS_CACHED_MAX = 10_000  # header lines that say whose an answer is

# === identity: tokens and the keys that prove them ===
TOKEN_BYTES_MAX = 8000  # a whole token; REQUEST_LINE_BYTES_MAX leaves no room for more
TOKEN_KID_BYTES_MAX = 256  # a key's name in a token's header
TOKEN_SKEW_SECONDS_MAX = 300  # clocks that differ by more are broken
TOKEN_TIME_SECONDS_MAX = 1 << 40  # a time in a token, since 1970: the year 36,000; above it is no time
TOKENS_CACHED_MAX = 20_000  # verified tokens in one worker, about 2 KB each
TOKENS_REFUSED_CACHED_MAX = 4_000  # tokens that never will be good: another try costs no signature check
SUBJECT_BYTES_MAX = 255  # OpenID Connect Core, section 2, `sub`
CLAIM_NAME_BYTES_MAX = 128  # names of claims, groups and roles in the policy
ISSUER_BYTES_MAX = 512  # an issuer's or key set's address
JWKS_BYTES_MAX = 256 * 1024  # one answer of an issuer: a hundred keys with their certificates
JWKS_KEYS_MAX = 100  # more keys than that in one set are not read
JWKS_KIDS_ABSENT_MAX = 1_000  # key names remembered as asked for in vain
JWKS_FETCH_SECONDS_MAX = 10  # discovery and key set together
JWKS_WAIT_SECONDS_MAX = 15  # a request that needs new keys: a fetch under way, and most of one of its own
JWKS_ASK_SECONDS = 60  # between two fetches that unknown key names cause
JWKS_RETRY_SECONDS_MAX = 60  # between two tries while an issuer is away
RSA_BITS_MIN = 2048  # NIST SP 800-131A: fewer are no longer allowed
RSA_BITS_MAX = 8192  # a larger key costs milliseconds a token

# Counting a text's tokens.
# Counted on the loop: below a tenth of a millisecond of prose, below one of anything. What is no text is charged as the
# text that takes as long: WEIR_COST_ in _prompt.h.
TEXT_BYTES_INLINE = 12 * 1024
HUGGINGFACE_BYTES_INLINE = 1536  # the same for a tokenizer.json, at about 2 MB/s
HUGGINGFACE_BYTES_MAX = 1024 * 1024  # half a second in a thread; a longer prompt is estimated
HUGGINGFACE_STRINGS_MAX = 8192  # of one prompt: half a millisecond in which only one thread runs; more are estimated
COUNTING_THREADS = 2  # of one worker, for texts too long for its loop
TOKENIZERS_MAX = 64  # models of one tenant whose bytes per token a worker remembers; a catch-all makes them many
TENANTS_REMEMBERED_MAX = 1024  # tenants of whom a worker remembers these and their tools: 40 KB at most for each
TOKENIZE_PER_MINUTE_DEFAULT = 6000  # POST /v1/tokenize of a key whose calls are not limited: a hundred a second

# === the wire: upstream ===
UPSTREAM_HEAD_BYTES_MAX = 64 * 1024  # an answer's headers; above it is a fault, not a header
UPSTREAM_INFORMATIONAL_MAX = 8  # 1xx answers before the real one: 100 and 103 are all that is seen
UPSTREAM_IDLE_CONNECTIONS_MAX = 1024  # per worker and upstream: kept for reuse
UPSTREAM_IDLE_SECONDS_MAX = 50  # below the 60 s at which common load balancers drop idle connections
UPSTREAM_WAIT_SECONDS_MAX = 30  # a call waits so long for a place at a full upstream, then it is refused
ERROR_BODY_BYTES_MAX = 64 * 1024  # an upstream's error answer is read whole to be judged; more is cut
ANSWER_BYTES_PARSED_MAX = 16 * 1024 * 1024  # a JSON answer is kept this far to read its usage; above it is estimated
FRAME_BYTES_HELD_MAX = 64 * 1024  # an incomplete frame is held back this far when a frame may have to be hidden
FRAME_BYTES_PARSED_MAX = 1024 * 1024  # a longer frame is passed on unread: memory stays flat
ANSWER_BACKLOG_BYTES_MAX = 1024 * 1024  # of one answer's text may wait to be counted; what is more is estimated
WORD_BYTES_RECOUNTED = 256  # a growing word that must be counted whole is, at each write; above, when it has doubled
ANSWER_LANES_MAX = 256  # texts told apart in one answer: 128 choices with content and reasoning; more are estimated
ANSWER_STRINGS_MAX = 4096  # strings of text noted in one frame or whole answer; what is more is estimated
CLIENT_BUFFER_BYTES_MAX = 128 * 1024  # written but unread by a slow client: above it the upstream is paused
WRITE_TOGETHER_BYTES_MAX = 16 * 1024  # a longer piece is written at once, not at the end of the loop's turn
CLIENT_STALL_SECONDS_MAX = 120  # a client that reads nothing for so long is gone
SWEEP_SECONDS = 0.1  # how often deadlines are looked at: their precision

# === the journal ===
SLOTS_PER_WORKER = 8192  # calls in flight in one worker; each 1 KiB of a mapped file
SLOT_BYTES = 1024  # header, double-buffered counters, holds, and the opened record
OPENED_BYTES_MAX = 640  # the opened record in its slot: checked, so that no call can be opened that cannot be closed
SENT_BYTES_MAX = 96  # upstream and model name in the slot; longer names are cut
RECORD_BYTES_MAX = 2048  # one finished record: an opened one plus fixed fields, with room to spare
SEGMENT_BYTES = 16 * 1024 * 1024  # one segment file: about 50,000 records
HOLDS_PER_SLOT = 6  # columns a call may hold: concurrency of tenant, key and model; later budgets
SHIP_RECORDS_MAX = 500  # in one stream entry: 2-5 microseconds of CPU a record at this size
SHIP_BYTES_MAX = 512 * 1024  # in one stream entry

# === shared memory ===
COLUMNS = 32  # worker lives with holds at one time: live workers plus draining ones plus dead ones not yet recovered
WORKERS_MAX = 16  # half the columns, so that every worker can be replaced while its predecessor drains
BURST_MINUTES_MAX = 10_080  # a week of quiet fills any burst; the cells can express seven times that
RATE_CELLS = 1 << 16  # two per tenant, key and tenant-model pair in use
COUNT_CELLS = 1 << 13  # concurrency limits in use
CELL_WINDOW = 64  # how far a cell may lie from its home
SERIES_MAX = 8192  # metric series per host; beyond it counts go to the series `other`
METRIC_CELLS_MAX = 1 << 15  # 64-bit cells of those series, per column: a histogram takes one for each bucket
METRIC_TABLE_BYTES = 1024 * 1024  # names and labels of those series: 128 bytes each
TENANT_LABELS_MAX = 200  # tenants named in metrics; the others are summed as `other`
MODEL_LABELS_MAX = 200  # models named in metrics

# === processes ===
HEARTBEAT_SECONDS = 0.5  # how often a worker says it lives
HEARTBEAT_SECONDS_MAX = 5  # without one for so long it is killed and replaced
HANDOVER_SECONDS = 0.05  # between a replacement's first accept and the old one's close
RESTART_BACKOFF_SECONDS_MAX = 10  # between restarts of a part that keeps dying
DRAIN_IDLE_SECONDS = 1.0  # a draining worker leaves idle connections so long, for the request that is on its way
DRAIN_SECONDS_DEFAULT = 30  # streams may finish this long after SIGTERM
STARTING_SECONDS_MAX = 30  # a part that is not ready by then is killed and tried again
READY_POLL_SECONDS = 0.02  # how often the supervisor looks whether a part has become ready
RELOAD_SECONDS_MAX = 20  # `weir reload` waits so long for every worker to report the new policy
LOG_LINES_MAX = 20_000  # request lines waiting for a reader of standard output; more are dropped and counted

# === outside parts ===
REDIS_SECONDS_MAX = 0.5  # one Redis call of the keeper; a stalled Redis must look like an absent one
FLUSH_RECORDS_MAX = 5000  # in one transaction of the flusher
CLAIM_IDLE_SECONDS = 30  # an entry unacknowledged for so long is claimed by another flusher
FLUSH_SECONDS_MAX = 20  # one transaction; below the claim time, so that no two flushers persist the same entry for long
DATABASE_CONNECT_SECONDS_MAX = 5  # to a database: an absent one must be noticed while its backlog is small
DATABASE_BUSY_SECONDS_MAX = 5  # SQLite waits so long for another writer's turn to end
TRANSACTION_TRIES_MAX = 5  # a deadlock, a serialization failure or a busy SQLite is run again so often
MIGRATE_SECONDS_MAX = 60  # for another process's migration to end
FLUSH_BLOCK_MS = 200  # the flusher's wait for entries in one XREADGROUP: how late it sees a stop or a new stream
FLUSH_BACKOFF_SECONDS_MAX = 5  # between tries while Redis or the database is away

# === identity and the record of changes ===
KEY_USED_SECONDS = 60  # a key's last use is stored no finer than this: one small write a minute for a busy key
KEY_NETWORKS_MAX = 32  # CIDR blocks of one key: each is looked at on its requests
KEY_NAMES_MAX = 256  # endpoints, or models, that one key is narrowed to
KEYS_REVOKED_MAX = 10_000  # in one transaction, about two seconds with their records; more take several
KEY_TEXT_BYTES_MAX = 128  # a key's name, owner and plan
INVITE_SECONDS_MAX = 7 * 86_400  # an invite that nobody took up in a week is asked for again
BOOTSTRAP_SECONDS_MAX = 3600  # the first admin's token opens everything: it is for the person at the terminal, now
SESSION_SECONDS_MAX = 12 * 3600  # a working day; who works longer signs in again
PEOPLE_TEXT_BYTES_MAX = 256  # a person's name, address, issuer and subject
IDEMPOTENCY_SECONDS = 86_400  # a request is known again so long: longer than anybody's retries
IDEMPOTENCY_KEY_BYTES_MAX = 255  # as the client chose it; draft-ietf-httpapi-idempotency-key-header has UUIDs in mind
CONTROL_BODY_BYTES_MAX = 256 * 1024  # a request of the admin API: the widest key has a tenth of that
CONTROL_QUERY_BYTES_MAX = 4096  # its query: every filter and a cursor
CONTROL_SECONDS_MAX = 30  # one of its requests, body and all; the log's export and verification are not bounded
CONTROL_CONNECTIONS_MAX = 256  # of the admin API's port: people, and a few programs
CONTROL_FAILURES_PER_MINUTE = 30  # bad credentials from one address; a person's typing stays far below
CONTROL_CHANGES_PER_MINUTE = 600  # by one tenant's people and keys: ten a second, a twentieth of what a database does
CONTROL_SITES_MAX = 10_000  # addresses whose bad credentials are counted, and tenants whose changes are
PAGE_ROWS_MAX = 200  # in one page of a list: about 100 KB
AUDIT_TEXT_BYTES_MAX = 1024  # one text of an audit row, cut; reasons and targets are far shorter
AUDIT_JSON_BYTES_MAX = 64 * 1024  # a state before or after; a larger change is refused, never recorded in part
AUDIT_PAGE_ROWS = 1000  # read at a time, when the whole log is read
AUDIT_FINDINGS_MAX = 100  # named by one verification; a log in ruins needs no longer list
POLICY_REVISIONS_MAX = 1000  # recorded of one host: years of reviewed changes, about 100 KB
ANCHOR_ROWS = 100  # new audit rows after which they are anchored at once
ANCHOR_SECONDS = 60  # after which the fewest are: what a truncation can hide

# === policy: what an operator writes ===
POLICY_FILE_BYTES_MAX = 4 * 1024 * 1024  # one file: tens of thousands of lines; more is a mistake
POLICY_DEPTH_MAX = 16  # nesting of a policy file; the schema needs 6
TENANT_NAME_BYTES_MAX = 48  # stands in every row, scope and metric label
TOKENIZER_NAME_BYTES_MAX = 1024  # a tokenizer's name, or the path of its file
TOKENIZER_FILE_BYTES_MAX = 64 * 1024 * 1024  # a tokenizer.json; the largest that models come with have half of it
UPSTREAM_NAME_BYTES_MAX = 32  # shares SENT_BYTES_MAX with the upstream's name of the model
PRICE_VERSION_BYTES_MAX = 32  # stands in every row and in the slot
LIMIT_MAX = 1 << 40  # the arena's arithmetic is exact to here
PRICE_DOLLARS_MAX = 1_000_000  # per million tokens: a thousand times the dearest model; a typo in a unit shows
SECRET_BYTES_MAX = 16 * 1024  # an upstream's credential: room for a long token, not for a wrong file

assert WORKERS_MAX * 2 <= COLUMNS
assert FLUSH_SECONDS_MAX < CLAIM_IDLE_SECONDS
assert OPENED_BYTES_MAX + SENT_BYTES_MAX + 288 <= SLOT_BYTES
