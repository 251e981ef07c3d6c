"""AWS Signature Version 4, checked: the client signs a request with a secret that it never sends.

Made for the clients of one AWS service whose API we speak; what AWS has for others (signed query strings, chunked
or unsigned bodies, temporary credentials) is refused. The algorithm: AWS, "Create a signed AWS API request".
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW = timedelta(minutes=5)

_TIME = "%Y%m%dT%H%M%SZ"
_AUTHORIZATION = re.compile(
    rf"{ALGORITHM} +Credential=(?P<id>[A-Za-z0-9]{{1,64}})/(?P<date>[0-9]{{8}})/(?P<region>[a-z0-9-]{{1,64}})"
    r"/(?P<service>[a-z0-9-]{1,64})/aws4_request, *SignedHeaders=(?P<headers>[a-z0-9_;-]{1,2000}), *"
    r"Signature=(?P<signature>[0-9a-f]{64})"
)


class SignatureError(Exception):
    """A request that is not signed, or not as it must be; the message is a sentence for the client."""


@dataclass(frozen=True)
class SignedRequest:
    """A request as it arrived, without its body.

    Attributes:
        path: as sent, percent-encoded.
        query: as sent, percent-encoded; without the question mark.
        headers: names in lower case and values, in the order they were sent.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str:
        """The values of a header, joined as the algorithm joins them; empty if it was not sent."""
        return ",".join(" ".join(value.split()) for given, value in self.headers if given == name)


@dataclass(frozen=True)
class Signature:
    """What a request says of its signature, so far not compared with anything.

    Attributes:
        access_key_id: whose secret made it.
        time: ``X-Amz-Date``, as sent.
        scope: date, region and service.
        signed_headers: in the order of the signature.
    """

    access_key_id: str
    time: str
    scope: tuple[str, str, str]
    signed_headers: tuple[str, ...]
    value: str


def read_signature(request: SignedRequest, service: str, now: datetime) -> Signature:
    """Read the signature of a request, as far as it can be judged without the secret and the body.

    Args:
        service: the name that it must be signed for.

    Raises:
        SignatureError: there is none, it is not well-formed, or its time is too far from ours.
    """
    authorization = request.header("authorization")
    if not authorization:
        raise SignatureError(f"the request is not signed; sign it by {ALGORITHM}, as the SDKs of AWS do")
    match = _AUTHORIZATION.fullmatch(authorization)
    if match is None:
        raise SignatureError(
            f"the Authorization header is none of {ALGORITHM}; "
            f"accepted: {ALGORITHM} Credential=ID/DATE/REGION/{service}/aws4_request, SignedHeaders=..., Signature=..."
        )
    if match["service"] != service:
        raise SignatureError(f"the request is signed for the service {match['service']!r}, not for {service!r}")
    time = request.header("x-amz-date")
    _check_time(time, match["date"], now)
    signed = tuple(match["headers"].split(";"))
    needed = {"host"} | {name for name, _ in request.headers if name.startswith("x-amz-")}
    if missing := sorted(needed - set(signed)):
        raise SignatureError(f"the signature leaves out {', '.join(missing)}; sign host and every x-amz header")
    return Signature(match["id"], time, (match["date"], match["region"], service), signed, match["signature"])


def check_signature(request: SignedRequest, signature: Signature, secret: str, body_sha256: str) -> None:
    """Compare a signature with the one that the secret makes, in constant time.

    Args:
        body_sha256: of the body, in hexadecimal.

    Raises:
        SignatureError: they differ.
    """
    # A client may declare the hash of its body; what it declares is what it signed.
    declared = request.header("x-amz-content-sha256")
    if declared and declared != body_sha256:
        raise SignatureError("X-Amz-Content-SHA256 is not the SHA-256 of the body; unsigned bodies are not accepted")
    expected = sign(request, signature, secret, body_sha256)
    if not hmac.compare_digest(expected, signature.value):
        raise SignatureError(
            "the signature does not match the request; see that the secret is right, and that no proxy changes the "
            "host, the path or a header"
        )


def sign(request: SignedRequest, signature: Signature, secret: str, body_sha256: str) -> str:
    """The signature that the secret makes of a request, in hexadecimal; of ``signature`` all but its value counts."""
    canonical = "\n".join(
        (
            request.method,
            quote(request.path, safe="/~"),  # encoded once more, as every service but S3 has it
            "&".join("=".join(pair) for pair in sorted(_pairs(request.query))),
            *(f"{name}:{request.header(name)}" for name in signature.signed_headers),
            "",
            ";".join(signature.signed_headers),
            body_sha256,
        )
    )
    scope = (*signature.scope, "aws4_request")
    text = "\n".join((ALGORITHM, signature.time, "/".join(scope), sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{secret}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def _check_time(time: str, date: str, now: datetime) -> None:
    try:
        signed_at = datetime.strptime(time, _TIME).replace(tzinfo=UTC)
    except ValueError as error:
        raise SignatureError("the header X-Amz-Date is absent or not of the form 20201120T120000Z") from error
    if time[:8] != date:
        raise SignatureError(f"X-Amz-Date is of another day than the credential, which says {date}")
    if abs(signed_at - now) > SKEW:
        minutes = SKEW // timedelta(minutes=1)
        raise SignatureError(
            f"clock skew: the request was signed at {time}, here it is {now:{_TIME}}, and they may differ by {minutes} "
            "minutes; set the clocks"
        )


def _pairs(query: str) -> Iterable[tuple[str, str]]:
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        yield name, value
