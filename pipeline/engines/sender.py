"""Sends many requests to servers at the same time, and each of them again after a passing failure."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx2 as httpx

from pipeline.core.errors import ConfigError, first_line
from pipeline.core.log import say, warn
from pipeline.engines.addresses import Address, Addresses
from pipeline.engines.chat_server import (
    RefusedError,
    Reply,
    ServerError,
    adapted,
    error_of,
    lesson_of,
    seconds_to_wait,
)
from pipeline.engines.prompts import Post

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0  # before a request is sent again
TOO_MANY_REQUESTS = 429  # the status of a rate limit
LONGEST_RETRY_AFTER_SECONDS = 600.0  # a server that asks to wait longer does not answer in this run
_jitter = random.Random()  # of its own: the draws of a run must not depend on how often a server fails

ItemT = TypeVar("ItemT")
Outcome = Reply | RefusedError | ServerError
"""A reply, the server's refusal, or the failure of the last try."""


@dataclass(frozen=True)
class Sent(Generic[ItemT]):
    item: ItemT
    outcome: Outcome


class Sender:
    """Sends requests. It remembers what the servers do not take, and then sends every request without it.

    At most ``addresses.num_slots`` requests are under way. One that waits for its next try takes no place, unless the
    server said that it gets too many requests.

    Args:
        name: the model's name, for warnings.
        timeout_seconds: the longest time that one request may take.
    """

    def __init__(
        self,
        addresses: Addresses,
        *,
        name: str,
        key: str,
        max_retries: int,
        timeout_seconds: float,
        connect_seconds: float,
    ) -> None:
        self.addresses, self._name, self._key = addresses, name, key
        self._max_retries, self._timeout_seconds, self._connect_seconds = max_retries, timeout_seconds, connect_seconds
        self._lessons: frozenset[str] = frozenset()

    def send_all(self, items: Sequence[ItemT], post: Callable[[ItemT], Post]) -> Iterator[Sent[ItemT]]:
        """Send a request for each item, and yield each outcome as it comes.

        Args:
            post: the request for an item.

        Raises:
            NoServerError: no server answers any more.
        """

        async def following(outcomes: AsyncIterator[Sent[ItemT]]) -> Sent[ItemT] | None:
            return await anext(outcomes, None)

        with asyncio.Runner() as runner:
            outcomes = self._outcomes(items, post)
            while (sent := runner.run(following(outcomes))) is not None:
                yield sent

    def send_one(self, post: Post) -> Outcome:
        """Send one request, once, to the first address."""

        async def once() -> Outcome:
            async with self._client() as client:
                try:
                    return await self._ask(client, self.addresses.all[0], post)
                except (RefusedError, ServerError) as error:
                    return error

        with asyncio.Runner() as runner:
            return runner.run(once())

    async def _outcomes(self, items: Sequence[ItemT], post: Callable[[ItemT], Post]) -> AsyncIterator[Sent[ItemT]]:
        """Yield outcomes while tasks send the requests. A task keeps its place until its outcome is taken, so that a
        killed run loses no more answers than there are places."""
        found: asyncio.Queue[Sent[ItemT] | Exception | None] = asyncio.Queue(maxsize=1)
        places = asyncio.Semaphore(self.addresses.num_slots)
        self.addresses.begin()

        async def answer(client: httpx.AsyncClient, item: ItemT) -> None:
            try:
                await found.put(Sent(item, await self._insist(client, post(item), places)))
            finally:
                places.release()

        async def send() -> None:
            failure: Exception | None = None
            try:
                async with self._client() as client, asyncio.TaskGroup() as tasks:
                    for item in items:
                        await places.acquire()
                        tasks.create_task(answer(client, item))
            except ExceptionGroup as group:
                failure = group.exceptions[0]
            except Exception as error:  # raised below: whoever waits for outcomes must hear of it
                failure = error
            await found.put(failure)

        sending = asyncio.create_task(send())
        try:
            while isinstance(taken := await found.get(), Sent):
                yield taken
            if taken is not None:
                raise taken
        finally:
            sending.cancel()

    def _client(self) -> httpx.AsyncClient:
        hosts = {urlsplit(address.url).hostname for address in self.addresses.all}
        try:
            return httpx.AsyncClient(
                headers=authorization(self._key),
                timeout=httpx.Timeout(self._timeout_seconds, connect=self._connect_seconds, pool=None),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.addresses.num_slots),
                trust_env=not hosts
                <= {"localhost", "127.0.0.1", "::1"},  # a proxy does not know this machine's servers
            )
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(
                f"no connection to the server of {self._name} can be made with the proxy and certificates of the "
                f"environment ({first_line(error)}); change or unset ALL_PROXY, HTTPS_PROXY, HTTP_PROXY or "
                "SSL_CERT_FILE."
            ) from None

    async def _insist(self, client: httpx.AsyncClient, post: Post, places: asyncio.Semaphore) -> Outcome:
        """The outcome of the last try. It holds one of the places, except while it waits after an error that says
        nothing about the other requests."""
        num_failures, address = 0, None
        while True:
            address = await self.addresses.take(address)
            try:
                reply = await self._ask(client, address, post)
            except RefusedError as refusal:
                self.addresses.succeeded(address)
                return refusal
            except ServerError as error:
                self.addresses.failed(address, error)
                failure = error
            else:
                self.addresses.succeeded(address)
                return reply
            finally:
                self.addresses.give_back(address)
            if num_failures == self._max_retries or (failure.retry_after or 0.0) > LONGEST_RETRY_AFTER_SECONDS:
                return failure
            # A server that gets too many requests gets no other one instead.
            async with nullcontext() if failure.status == TOO_MANY_REQUESTS else _given_up(places):
                await asyncio.sleep(_wait_seconds(num_failures, failure.retry_after))
            num_failures += 1

    async def _ask(self, client: httpx.AsyncClient, address: Address, post: Post) -> Reply:
        """Send a request, in another form if the server does not take this one.

        Raises:
            RefusedError: the server refuses this request for good.
            ServerError: there is no usable answer.
        """
        lessons = self._lessons
        while True:
            body = adapted(post.body, lessons)
            try:
                reply = self._read(post, await self._post(client, address, post, body))
            except RefusedError as refusal:
                lesson = lesson_of(str(refusal), body)
                if lesson is None or lesson in lessons:
                    raise
                lessons |= {lesson}
            else:
                self._remember(lessons)
                return reply

    def _read(self, post: Post, text: str) -> Reply:
        try:
            return post.read(text)
        except (RefusedError, ServerError):
            return post.read(self._without_key(text))

    def _without_key(self, text: str) -> str:
        """An error in which the server may repeat the key."""
        return text.replace(self._key, "***") if self._key else text

    def _remember(self, lessons: frozenset[str]) -> None:
        new = sorted(lessons - self._lessons)
        self._lessons |= lessons
        for name in new:
            if name in ("temperature", "top_p"):
                warn(f"the server of {self._name} does not take {name}: it is left out, and its own value holds.")
            elif name == "system":
                say(f"the server of {self._name} takes no system turn: its text is put before the user's turn.")
            elif name == "seed":
                warn(f"the server of {self._name} does not take a seed: another run would get other replies.")

    async def _post(self, client: httpx.AsyncClient, address: Address, post: Post, body: Mapping[str, Any]) -> str:
        """The text of an answer with status 200, from where the API of this address begins."""
        if post.at_host:  # it does not show where the rest of the API begins
            host = re.sub(r"/v\d\w*$", "", address.bases[0])
            return await self._post_to(client, f"{host}{post.path}", body)
        first: ServerError | None = None
        for base in address.bases:
            try:
                text = await self._post_to(client, f"{base}{post.path}", body)
            except ServerError as error:
                first = first or error
                if error.status not in (404, 405):
                    raise
            else:
                if address.bases != [base]:
                    address.bases = [base]
                    if base != address.url:
                        say(f"the API of {address.url} begins at {base}.")
                return text
        assert first is not None
        raise first

    async def _post_to(self, client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> str:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await client.post(url, json=body)
        except httpx.ConnectTimeout:
            raise ServerError(f"no connection within {self._connect_seconds:g} s") from None
        except (TimeoutError, httpx.TimeoutException):
            raise ServerError(f"no answer within {self._timeout_seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(_reason(error)) from None
        text = response.content.decode("utf-8-sig", "replace")
        if response.is_success:
            return text
        text = self._without_key(text)
        raise error_of(response.status_code, text, seconds_to_wait(response.headers, datetime.now(UTC)))


@asynccontextmanager
async def _given_up(places: asyncio.Semaphore) -> AsyncIterator[None]:
    """Another request may take the place meanwhile."""
    places.release()
    try:
        yield
    finally:
        await places.acquire()


def authorization(key: str) -> dict[str, str]:
    """The header with a key. Some servers want one although they need no key."""
    return {"Authorization": f"Bearer {key or 'none'}"}


def _wait_seconds(num_failures: int, retry_after: float | None) -> float:
    """How long to wait before the next try: a random share of a bound that doubles, or what the server asks for."""
    if retry_after is not None:
        return retry_after + _jitter.uniform(0, FIRST_WAIT_SECONDS)
    return _jitter.uniform(0, min(FIRST_WAIT_SECONDS * 2**num_failures, LONGEST_WAIT_SECONDS))


def _reason(error: BaseException) -> str:
    """Why there was no answer, without addresses, so that equal reasons can be counted."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split()) or type(error).__name__
