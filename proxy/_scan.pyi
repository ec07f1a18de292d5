"""Reading bytes in C, with no I/O: a request's head, a request's body, a stream's frames. Bytes in, facts out.

Nothing here builds a JSON tree: every function walks its bytes once and allocates only what it returns.
"""

from proxy._fastpath import Encoding

class BadHead(Exception):
    """args: (code of errors.KINDS, detail). A detail is printable ASCII, at most 64 characters of a client's own."""

class Head:
    """What Weir needs of a request's headers, read in one pass over aiohttp's raw_headers. Values are without outer
    blanks.
    """

    authorization: bytes | None  # the token after "Bearer " (any case), or of x-api-key / api-key; None without one
    content_type: bytes | None
    content_length: int  # -1 without one
    chunked: bool
    expect: bytes | None
    request_id: bytes | None  # X-Request-ID when it is 1..REQUEST_ID_BYTES_MAX visible ASCII characters, else None
    tenant: bytes | None  # X-Tenant-ID
    host: bytes | None
    tag: bytes | None  # the value of the header named by `tag_header`
    forward: bytes  # header lines to send upstream, each "name: value\r\n" with the name in lower case

def read_head(raw_headers: tuple[tuple[bytes, bytes], ...], tag_header: bytes = b"") -> Head:
    """Judges and reads. `tag_header` is a header's name in any case; a header that carries credentials is never a tag.

    Forwarded: content-type, accept, openai-beta, traceparent, tracestate, unless empty, not ASCII, or named in
    Connection (RFC 9110, 7.6.1). Names are compared in any case of ASCII letters; `_` is not `-`.

    Raises BadHead. bad_header: a doubled Authorization, x-api-key, api-key, Content-Type, Content-Length, Host,
    X-Tenant-ID, Expect, X-Request-ID or tag; credentials that disagree (equal ones may stand side by side, another
    scheme than Bearer is no credential); CR, LF or NUL in any value; a Content-Length that is no number, or beside
    Transfer-Encoding (RFC 9112, 6.1); a Host with characters other than letters, digits and -._:[].
    unsupported_transfer_coding: a Transfer-Encoding other than `chunked`. compressed_body: a Content-Encoding other
    than `identity`.
    """

class BadBody(Exception):
    """args: (code of errors.KINDS, detail, param or None)."""

class Peek:
    """The governed facts of a JSON body and where they stand in it. Spans are [start, end) offsets, (-1, -1) when
    absent.
    """

    @property
    def model(self) -> str | None:
        """A name longer than MODEL_BYTES_MAX is cut, but still longer than that."""
    @property
    def model_span(self) -> tuple[int, int]:
        """Of the value, quotes included."""
    @property
    def stream(self) -> bool: ...
    @property
    def usage_asked(self) -> bool:
        """Whether stream_options.include_usage is true."""
    @property
    def stream_options_span(self) -> tuple[int, int]:
        """Of the value."""
    @property
    def include_usage_span(self) -> tuple[int, int]:
        """Of the value."""
    @property
    def user(self) -> str | None:
        """Cut to whole characters within USER_BYTES_MAX."""
    @property
    def answer_tokens(self) -> int:
        """max_completion_tokens, else max_tokens, else max_output_tokens; -1 without one."""
    @property
    def choices(self) -> int:
        """`n`, 1 without one."""
    @property
    def text_bytes(self) -> int:
        """Decoded bytes of the prompt's text; `peek` says which."""
    @property
    def images(self) -> int: ...
    @property
    def token_ids(self) -> int:
        """Numbers inside prompt or input given as token arrays."""
    @property
    def messages(self) -> int:
        """Elements of `messages`."""
    @property
    def tools_span(self) -> tuple[int, int]:
        """Of the value, as the next four; of two equal keys the last."""
    @property
    def functions_span(self) -> tuple[int, int]: ...
    @property
    def tool_choice_span(self) -> tuple[int, int]: ...
    @property
    def function_call_span(self) -> tuple[int, int]: ...
    @property
    def response_format_span(self) -> tuple[int, int]: ...
    @property
    def incomplete(self) -> bool:
        """The prompt has more than PROMPT_STRINGS_MAX strings: those that follow were not noted."""
    @property
    def strings(self) -> list[tuple[str, int, int]]:
        """(kind, start, end) of every noted string, between its quotes, in the body's order. Kinds: `role`; `name`, a
        message's own; `text`; `function` and `call`, the names in function_call and in tool_calls; `arguments`;
        `image` and a detail, such as `image low`, the url of an image_url.
        """
    @property
    def string_count(self) -> int:
        """How many that are."""
    def image_urls(self) -> list[tuple[str, int, int]]:
        """(detail, start, end) of every image's url: `auto` where none is said, `low`, `high`, `original`, or `other`
        for one that is not known. An image without a url has an empty span.
        """
    def texts(self, body: bytes) -> list[bytes]:
        """The noted strings decoded, without the images' urls. Errors as `with_usage`."""
    @property
    def text_cost(self) -> int:
        """How long `count` takes at most, in bytes of text that takes as long: TEXT_BYTES_INLINE may be counted on the
        loop.
        """
    @property
    def tools_cost(self) -> int:
        """The same of tool definitions, where nobody has counted them before."""
    def cost(self, body: bytes) -> int:
        """The same of the whole prompt: text, calls, images, formats, but without tool definitions. Errors as
        `with_usage`.
        """
    def count(self, body: bytes, encoding: Encoding) -> tuple[int, int]:
        """(tokens of all noted strings but images' urls, how many of them are a message's name). The GIL is released
        where that is dear (`text_cost`). Errors as `with_usage`, and MemoryError.
        """
    def count_plain(self, body: bytes, encoding: Encoding, message: int, name: int) -> int | None:
        """The tokens of a prompt that is `plain`, with so many more for each message and for each message's name; None
        for any other. GIL and errors as `count`.
        """
    def count_calls(self, body: bytes, encoding: Encoding, prefix: bytes) -> int:
        """Tokens of the names in tool_calls, each behind `prefix`. GIL and errors as `count`."""
    @property
    def unread(self) -> int:
        """What the prompt says that is neither text nor image: audio, files, found pages, and what stands under keys
        that are not known, unless it is empty.
        """
    def plain(self, body: bytes) -> bool:
        """Nothing but text and names: no calls, tools, formats, images, nothing unread. Errors as `with_usage`."""
    def count_line_end(self, body: bytes, encoding: Encoding) -> int | None:
        """What a line feed at its end adds to the tokens of the last text of the first message in the role of system or
        developer; None where there is none. GIL and errors as `count`.
        """
    def calls(self, body: bytes) -> tuple[int, int, int, int, int]:
        """(names in tool_calls, messages with more than one of them, names in function_call, messages in the role of
        a tool, messages in the role of a function). Errors as `with_usage`.
        """
    def __sizeof__(self) -> int:
        """Bytes of this object and of the strings it notes."""
    @property
    def prompts(self) -> dict[str, str]:
        """Which of messages, prompt and input the body has, and the first character of its JSON; null is none."""
    @property
    def end(self) -> int:
        """Offset of the object's closing brace."""

def peek(body: bytes) -> Peek:
    """Strict RFC 8259 over the whole body: valid UTF-8, no BOM, no NaN, no lone surrogate, no number that overflows a
    double, depth <= JSON_DEPTH_MAX, one top-level object. It accepts what orjson accepts, within that depth.

    Governed keys: model, stream, stream_options with its include_usage and include_obfuscation, max_tokens,
    max_completion_tokens, max_output_tokens, n, user. What Weir reads there the upstream must read too, and parsers
    differ: some take the first of two keys, some the last, some any case of letters (Go's encoding/json, U+017F and
    U+212A included).

    Raises BadBody. bad_json, with the offset. duplicate_key: a governed key that stands twice, in whatever escapes or
    case. bad_value: a governed key in another case only, or a value of the wrong type: model is a string; user a
    string or null; stream, include_usage and include_obfuscation booleans or null; stream_options an object or null;
    n an integer from 1 to 128 or null; the limits integers from 0 to 2**40 or null; U+0000 in model or user, which
    databases do not store.

    text_bytes, an estimate's base that an exact count may replace, are decoded bytes of
    - strings under content, text, name, arguments, refusal, reasoning, reasoning_content, output and (of a custom
      tool) input, at any depth in `messages`, `prompt` and `input`; of `prompt`, `suffix`, `input` and `instructions`
      also the strings that are the value itself or elements of it;
    - every string and every key in `tools`, `functions` and `response_format`.
    An `image_url` is one image and no text; input_audio and file are neither: base64 is no text.

    Strings of the first kind are also noted, one by one, and with them those under `role`, which text_bytes leaves out.
    """

def with_usage(body: bytes, facts: Peek, model: bytes | None) -> bytes:
    """The body with stream_options.include_usage true and, when given, `model` (JSON string literal, quotes included)
    in place of the model's value. Only those bytes change. Either edit may already hold; the body itself is then
    returned. `facts` must be of this body: ValueError where that is plainly not so, or where there is no model to
    replace.
    """

def with_model(body: bytes, facts: Peek, model: bytes) -> bytes:
    """The body with another model value; nothing else changes. Errors as `with_usage`."""

class AnswerCounter:
    """Counts the tokens of one answer's text while it is relayed: exactly, and never for long at a time.

    Texts are told apart by choice, kind (content, refusal, reasoning, a call's name, its arguments, completions' text)
    and tool call, and each is counted as one text, whatever deltas it came in. A delta's index is what it says; without
    one, its place in the array. Reasoning that a message holds under both of its names counts once, the longer of the
    two. Text counts once its frame has turned out to be well-formed JSON; of two equal keys the last one counts.

    Text is taken in by `Frames` and `read_answer`, and counted at once up to TEXT_BYTES_INLINE between two looks; what
    is more waits, at most ANSWER_BACKLOG_BYTES_MAX of it, for later looks or for `finish`. A word that is still growing
    is counted anew at each look, a long one at the cost of its newest part. Of the few whose parts do not join that
    is done up to WORD_BYTES_RECOUNTED bytes, then each time they have doubled. A word longer than TEXT_BYTES_INLINE
    waits for `finish`, and so does what follows it. All looks of an answer cost a small multiple of one count of it.

    Above ANSWER_LANES_MAX texts, ANSWER_STRINGS_MAX strings in one frame, or the backlog's bound, text is known by its
    bytes alone. A frame longer than FRAME_BYTES_PARSED_MAX is unknown altogether. Either makes the count an estimate
    for good.
    """

    def __init__(self, encoding: Encoding) -> None: ...
    encoding: Encoding
    def look(self, last: bool) -> None:
        """Counts what came since the last look. `last`: no more will come, so long words too, up to the same bound."""
    def finish(self) -> None:
        """Counts everything that waits. Gives up the GIL: for a thread, once no more text will come. Raises
        MemoryError; ValueError while another thread is at it.
        """
    @property
    def tokens(self) -> int:
        """As of the last look."""
    @property
    def rest(self) -> int:
        """Bytes of text that are not in `tokens`."""
    @property
    def backlog(self) -> int:
        """Bytes of them that `finish` would count."""
    @property
    def estimated(self) -> bool:
        """There is a rest, or text that nobody could read."""
    @property
    def lanes(self) -> int:
        """Texts told apart so far."""
    def __sizeof__(self) -> int:
        """Bytes of this object and of what it holds of the text."""

class Frames:
    """Scans an SSE byte stream cut anywhere (WHATWG HTML, 9.2.6): \\n, \\r\\n and \\r line ends, a leading BOM,
    comments, several data lines. Never raises for content; the facts do not depend on the cuts.

    `_wire` uses the C form (see _scan.pxd); this face is for tests and tools. A stream uses `feed` or `take`, not both.

    A frame's facts count only when its data is one well-formed JSON object (NaN and Infinity are let pass: Python's
    json writes them). A frame longer than FRAME_BYTES_PARSED_MAX is counted and not read. Text inside a string is
    text, whatever it looks like.
    """

    def __init__(self, counter: AnswerCounter | None = None) -> None:
        """With a counter, the text is given to it; whoever feeds has it look."""
    def feed(self, data: bytes) -> None:
        """Reads on; the caller forwards the bytes itself."""
    def take(self, data: bytes) -> bytes:
        """Reads on and returns the bytes to forward: all but usage frames and an incomplete last frame. `data` itself
        when that is all of it. A usage frame has `choices: []` and a `usage` object and no error, and is no longer
        than FRAME_BYTES_HELD_MAX; a longer one is passed on in parts. Comments and blank lines between frames are
        never held.
        """
    def __sizeof__(self) -> int:
        """Bytes of this object and of what it keeps of an incomplete frame."""
    def rest(self) -> bytes:
        """The stream has ended: what is still held and must be forwarded. A last frame without its blank line is
        counted if it can be read, as the official SDKs read it; a usage frame is hidden even so.
        """
    @property
    def frames(self) -> int:
        """Complete frames so far: blocks ended by a blank line that held at least one data line. Hidden ones
        included.
        """
    @property
    def hidden(self) -> int:
        """Frames that `take` removed."""
    @property
    def held(self) -> int:
        """Bytes that `take` keeps back now."""
    @property
    def text_bytes(self) -> int:
        """Decoded bytes of generated text: content, refusal, reasoning and tool-call arguments of every choice's
        delta or message, and choices[].text. Reasoning that stands under both of its names counts once.
        """
    @property
    def usage(self) -> tuple[int, int, int, int, int] | None:
        """(prompt, cached, completion, reasoning, audio) of the last valid top-level `usage`. A negative or
        fractional figure, or one above 2**40, makes the object ignored, and so does the lack of prompt_tokens; other
        absent or null figures are 0. Cached is at most prompt, reasoning and audio at most completion.
        """
    @property
    def model(self) -> str:
        """Top-level `model` of the first frame that has one that is not empty, at most MODEL_BYTES_MAX bytes."""
    @property
    def done(self) -> bool:
        """[DONE] was seen."""
    @property
    def error(self) -> bool:
        """A frame with a top-level `error` was seen that an SDK raises for: an object, or a string that is not ""."""

def read_answer(
    body: bytes, counter: AnswerCounter | None = None
) -> tuple[tuple[int, int, int, int, int] | None, str, int]:
    """(usage, model, text_bytes) of a whole JSON answer, each as in `Frames`; (None, "", 0) when it is no JSON
    object. Its text is given to the counter when there is no valid usage.
    """
