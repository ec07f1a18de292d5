"""The policy that the admin API answers by: what this host's workers serve by, or else the files."""

from __future__ import annotations

from typing import Literal

from proxy import board
from proxy._fastpath import Arena
from proxy.clock import boot_id
from proxy.policy.compile import compile_policy
from proxy.policy.snapshot import Policy
from proxy.settings import Settings


class Policies:
    """Looks at the keeper's snapshot at each use, and reads it again when it is another file.

    Where no keeper runs on this data directory there is none: then it is what the files said at the start. Raises
    PolicyErrors for those.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = settings.data_dir / "policy.snapshot"
        self._arena = settings.data_dir / "arena"
        self._seen: tuple[int, int, int] | None = None
        self.origin: Literal["snapshot", "files"] = "files"
        self._policy = compile_policy(settings.config_dir)
        self.current()

    def current(self) -> Policy:
        """The policy now."""
        try:
            stat = self._path.stat()
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen != self._seen:
                self._policy = Policy.decode(self._path.read_bytes())
                self._seen = seen
                self.origin = "snapshot"
        except (FileNotFoundError, ValueError):
            # A snapshot of another version is the keeper's to replace; the last good policy stands until then.
            pass
        return self._policy

    def generation(self) -> int:
        """How often this host's policy was swapped; 0 where no keeper has run."""
        if self.origin == "files":
            return 0
        arena = Arena(str(self._arena), boot_id())
        try:
            return int(arena.word(board.POLICY_GENERATION))
        finally:
            arena.close()
