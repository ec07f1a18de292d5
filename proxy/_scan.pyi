"""Reading bytes in C, with no I/O: a request's head, a request's body, a stream's frames. Bytes in, facts out."""

class BadHead(Exception):
    """args: (code of errors.KINDS, detail)."""

class Head:
    """What Weir needs of a request's headers, read in one pass over aiohttp's raw_headers."""

    authorization: bytes | None  # the value after "Bearer " (any case), or of x-api-key / api-key; None without one
    content_type: bytes | None
    content_length: int  # -1 without one
    chunked: bool
    expect: bytes | None
    request_id: bytes | None  # X-Request-ID when it is 1..REQUEST_ID_BYTES_MAX visible ASCII characters, else None
    tenant: bytes | None  # X-Tenant-ID
    host: bytes | None
    tag: bytes | None  # the value of the header named by `tag_header`
    forward: bytes  # header lines to send upstream: the allow-list of reliability.md 2.2, each "name: value\r\n"

def read_head(raw_headers: tuple[tuple[bytes, bytes], ...], tag_header: bytes = b"") -> Head:
    """Judges and reads. Raises BadHead for doubled Authorization/Content-Type/Host/X-Tenant-ID/Expect/X-Request-ID, two
    different credentials, a Transfer-Encoding that is not exactly `chunked`, a Content-Encoding other than identity
    (code compressed_body), a Host with characters that no host has. Header names with `_` are never forwarded.
    """

class BadBody(Exception):
    """args: (code of errors.KINDS, detail, param or None)."""

class Peek:
    """The governed facts of a JSON body and where they stand in it. Spans are [start, end) offsets, (-1, -1) when absent."""

    model: str | None
    model_span: tuple[int, int]  # of the value, quotes included
    stream: bool
    usage_asked: bool  # stream_options.include_usage is true
    stream_options_span: tuple[int, int]  # of the value
    include_usage_span: tuple[int, int]  # of the value
    user: str | None
    answer_tokens: int  # max_completion_tokens, else max_tokens, else max_output_tokens; -1 without one
    choices: int  # n, 1 without one
    text_bytes: int  # decoded bytes of text in messages/prompt/input/tools (keys of tools included), without images
    images: int  # data: and image_url values
    token_ids: int  # numbers inside prompt/input given as token arrays
    messages: int  # elements of `messages`
    end: int  # offset of the object's closing brace

def peek(body: bytes) -> Peek:
    """Strict RFC 8259 over the whole body (valid UTF-8, no BOM, no NaN, depth <= JSON_DEPTH_MAX, one top-level object).

    Raises BadBody: bad_json (with the offset), duplicate_key for a governed top-level key or one inside stream_options
    that stands twice, also when spelt with escapes or another case of ASCII letters; bad_value for a governed key of the wrong type
    (model not a string, stream not a boolean or null, n not an integer in 1..128, answer limits not integers >= 0 or null, ...).
    Governed: model, stream, stream_options, max_tokens, max_completion_tokens, max_output_tokens, n, user.
    """

def with_usage(body: bytes, facts: Peek, model: bytes | None) -> bytes:
    """The body with stream_options.include_usage true and, when given, `model` (JSON string literal, quotes included) in
    place of the model's value. Only those bytes change. Either edit may already hold; the body itself is then returned.
    """

def with_model(body: bytes, facts: Peek, model: bytes) -> bytes:
    """The body with another model value; nothing else changes."""

class Frames:
    """Scans an SSE byte stream cut anywhere. Accepts \\n, \\r\\n and \\r line ends and a leading BOM. Never raises for content.

    `_wire` uses the C form (see _scan.pxd); this face is for tests and tools.
    """

    def feed(self, data: bytes) -> None: ...
    frames: int  # complete frames so far (blocks ended by a blank line that held at least one data line)
    text_bytes: int  # decoded bytes of generated text in them: every choices[].delta content/refusal/reasoning_content/tool-call arguments, choices[].text
    usage_frames: list[bytes]  # the data of frames with a top-level `usage` object, as they stood (tests only)
    usage: tuple[int, int, int, int, int] | None  # prompt, cached, completion, reasoning, audio of the last valid one; a negative, fractional or > 2**40 figure makes the whole object ignored
    model: str  # top-level "model" of the first frame that has one
    done: bool  # [DONE] seen
    error: bool  # a frame with a top-level `error` object seen

def read_answer(body: bytes) -> tuple[tuple[int, int, int, int, int] | None, str, int]:
    """A whole JSON answer: (usage as above or None, model, text_bytes of choices[].message.content/refusal/tool-call arguments/choices[].text)."""
