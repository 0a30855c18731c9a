"""Which server gets the next request: the one with the fewest under way. One that keeps failing is set aside."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipeline.engines.chat_server import STOPS, ServerError

FAILURES_IN_A_ROW = 5  # so many set an address aside
FEWEST_FAILURES = 10  # in a row, of all addresses, before they count as dead
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


class NoServerError(Exception):
    """No server answers any more. ``error`` is the newest failure."""

    def __init__(self, error: ServerError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(eq=False)
class Address:
    """One server. ``bases``: where its API may begin, the likeliest first; after an answer only the right one."""

    url: str
    bases: list[str] = field(default_factory=list)
    num_in_flight: int = 0
    num_failures: int = 0
    """Since its last answer."""
    pause_seconds: float = 0.0
    free_at: float = 0.0
    """It is set aside until then; infinity: for good."""
    has_answered: bool = False

    def __post_init__(self) -> None:
        self.bases = bases_of(self.url)


def trouble_with_url(url: str) -> str:
    """What is wrong with an address; empty if nothing is. A name and password in it are not shown."""
    if "@" in url or "?" in url:
        return "has more than an address in it; put a key into the variable of api_key_variable"
    shown = f"is {url!r}, which"
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # a port that is no number or out of range, half of an IPv6 address
        return f"{shown} is no address ({error}); write it like http://localhost:8000/v1"
    if not url.startswith(("http://", "https://")):
        return f"{shown} must begin with http:// or https://"
    if any(character.isspace() or not character.isprintable() for character in url):
        return f"{shown} has a space or a control character in it; remove it"
    if not named:
        return f"{shown} names no host; write it like http://localhost:8000/v1"
    if url.rstrip("/").endswith("/completions"):
        return f"{shown} is too long; end it with /v1"
    return ""


def bases_of(url: str) -> list[str]:
    """Where an API may begin: as written, or with /v1 behind it. Of a bare host, /v1 is tried first."""
    url = url.rstrip("/")
    if re.search(r"/(v\d\w*|openai)$", url):
        return [url]
    return [url, f"{url}/v1"] if urlsplit(url).path else [f"{url}/v1", url]


class Addresses:
    """Hands out addresses.

    Args:
        max_parallel: requests under way at one address.
        patience_seconds: they count as dead if nothing succeeds for so long.
    """

    def __init__(self, urls: Sequence[str], max_parallel: int, patience_seconds: float) -> None:
        self.all = [Address(url) for url in urls]
        self.max_parallel = max_parallel
        self._patience = patience_seconds
        self._are_gone: Callable[[], bool] = lambda: False
        self._num_failures = 0  # of all addresses since the last answer
        self._silent_since = math.inf
        self._changed = asyncio.Event()

    def use(self, url: str, is_gone: Callable[[], bool]) -> None:
        """Ask only this address, of a server that is known to have ended if ``is_gone`` says so."""
        if [address.url for address in self.all] != [url]:
            self.all = [Address(url)]
        self._are_gone = is_gone

    @property
    def num_slots(self) -> int:
        return self.max_parallel * len(self.all)

    def begin(self) -> None:
        """A new series of requests: what went wrong before does not count."""
        self._silent_since, self._num_failures = time.monotonic(), 0
        self._changed = asyncio.Event()
        for address in self.all:
            address.num_in_flight = address.num_failures = 0
            address.free_at = address.pause_seconds = 0.0

    async def take(self, last: Address | None = None) -> Address:
        """Wait for a free place. Of addresses with as much to do, another one than ``last`` is taken."""
        while (found := self._free(last)) is None:
            self._changed.clear()
            pauses = [address.free_at - time.monotonic() for address in self.all if address.free_at < math.inf]
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.01, min((p for p in pauses if p > 0), default=1.0))):
                    await self._changed.wait()
        found.num_in_flight += 1
        return found

    def _free(self, last: Address | None) -> Address | None:
        now = time.monotonic()
        free = [
            address for address in self.all if address.free_at <= now and address.num_in_flight < self._most(address)
        ]
        return min(free, key=lambda address: (address.num_in_flight, address is last), default=None)

    def _most(self, address: Address) -> int:
        """Requests under way at the same time: a single one tries an address that was set aside."""
        return 1 if address.num_failures >= FAILURES_IN_A_ROW else self.max_parallel

    def give_back(self, address: Address) -> None:
        address.num_in_flight -= 1
        self._changed.set()

    def succeeded(self, address: Address) -> None:
        """The server answered, if only to refuse the request."""
        address.num_failures, address.pause_seconds, address.free_at = 0, 0.0, 0.0
        address.has_answered = True
        self._silent_since, self._num_failures = time.monotonic(), 0

    def failed(self, address: Address, error: ServerError) -> None:
        """Count a failure.

        Raises:
            NoServerError: no server will answer.
        """
        now = time.monotonic()
        self._num_failures += 1
        if error.retry_after:  # it announced its silence
            self._silent_since = max(self._silent_since, now + error.retry_after)
        if error.status in STOPS and not address.has_answered:
            address.free_at = math.inf
        elif error.status != 429:  # this server is alive
            address.num_failures += 1
            if address.num_failures >= FAILURES_IN_A_ROW and now >= address.free_at:
                address.pause_seconds = min(max(2 * address.pause_seconds, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
                address.free_at = now + address.pause_seconds
        silent = now - self._silent_since > self._patience and self._num_failures >= FEWEST_FAILURES
        if silent or self._are_gone() or all(address.free_at == math.inf for address in self.all):
            raise NoServerError(error)
