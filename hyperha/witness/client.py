"""Asking a lease witness: within a bounded time, and only the one whose fingerprint is known."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from urllib.parse import urlsplit

import httpx

from hyperha.core.lease import Answer, Request
from hyperha.encoding import EncodingError
from hyperha.errors import DeniedError, FailedError, HyperhaError, UnreachableError
from hyperha.text import clean
from hyperha.witness.wire import answer_of, body_of, path_of

_REASON_CHARS = 200


def token_of(cluster_key: bytes) -> str:
    """What a cluster proves itself with; the key itself never leaves its nodes."""
    return hmac.new(cluster_key, b"hyperha witness", hashlib.sha256).hexdigest()


class LeaseClient:
    """One node's way to the witness of its cluster; close it at the end.

    `fingerprint`: SHA-256 of the witness's certificate, pairs of digits with colons.
    """

    def __init__(
        self, url: str, fingerprint: str, cluster: str, token: str, timeout_s: float
    ) -> None:
        self._url = url.rstrip("/")
        self._fingerprint = fingerprint.replace(":", "").lower()
        self._cluster = cluster
        self._token = token
        self._timeout_s = timeout_s
        self._client: httpx.AsyncClient | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, module: str, request: Request) -> Answer:
        """The answer. Raises UnreachableError when none came in time, DeniedError or FailedError
        with what the witness says."""
        path = path_of(self._cluster, module, request)
        try:
            async with asyncio.timeout(self._timeout_s):
                client = await self._connected()
                response = await client.post(path, json=body_of(request))
        except (httpx.HTTPError, OSError, TimeoutError) as problem:
            reason = clean(str(problem))[:_REASON_CHARS] or f"nothing in {self._timeout_s:.1f} s"
            raise UnreachableError(
                f"the witness {self._url} does not answer: {reason}",
                "Is `hyperha witness run` running there, and may this node reach it?",
            ) from problem
        return _read(self._url, response)

    async def _connected(self) -> httpx.AsyncClient:
        async with self._connecting:
            if self._client is None:
                context = await self._pinned()
                self._client = httpx.AsyncClient(
                    base_url=self._url,
                    verify=context,
                    headers={"authorization": f"Bearer {self._token}"},
                    timeout=self._timeout_s,
                    trust_env=False,
                )
            return self._client

    async def _pinned(self) -> ssl.SSLContext:
        """Trusts the one certificate of that fingerprint, which the witness shows first."""
        parts = urlsplit(self._url)
        looking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        looking.check_hostname, looking.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=looking)
        try:
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            writer.transport.abort()
        found = hashlib.sha256(shown).hexdigest()
        if not hmac.compare_digest(found, self._fingerprint):
            raise DeniedError(
                f"the witness {self._url} has the fingerprint {_colons(found)}, the "
                f"configuration names {_colons(self._fingerprint)}",
                "Is it another machine, or was the witness set up anew? Compare with what "
                "`hyperha witness run` prints there.",
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(shown))
        return context

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


def _colons(digits: str) -> str:
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2)).upper()


def _read(url: str, response: httpx.Response) -> Answer:
    try:
        body = response.json()
        if response.status_code == httpx.codes.OK:
            return answer_of(body)
        text, fix = clean(str(body["text"])), clean(str(body.get("fix", "")))
    except (ValueError, EncodingError, KeyError, TypeError, AttributeError) as problem:
        raise FailedError(f"{url} does not answer as a witness does: {problem!r}") from problem
    kind: type[HyperhaError] = DeniedError if response.status_code == 403 else FailedError
    raise kind(f"the witness {url} refuses: {text}", fix)
