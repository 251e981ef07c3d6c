"""The file of API keys: who holds which, without the keys themselves.

A key is 256 random bits, so nobody can search for the one behind a hash, however fast the hash: SHA-256 keeps it as
safe as the slow hashes do that passwords need, and costs a request microseconds. A signature of AWS's kind cannot be
checked by a hash: the secrets of such keys are in the file encrypted.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from models.store_files import write_file
from service.limits import Rate
from service.sealing import Seal
from service.security import Scope
from service.settings import SettingsError

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@ -]{0,63}$")]


class KeysError(SettingsError):
    """A keys file that cannot be used, or a change to it that is not possible; the message says what to do."""


class KeyRecord(BaseModel):
    """What the file holds of a key of any kind.

    Attributes:
        name: of who holds it; two keys may share it while one replaces the other.
        rate: of requests; None for that of the service's settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Id
    name: Name
    scopes: tuple[Scope, ...]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    rate: Rate | None = None

    def obstacle(self) -> str | None:
        """Why the key is not accepted now; None where it is."""
        if self.revoked is not None:
            return f"the key {self.id} of {self.name} was revoked at {self.revoked:%Y-%m-%d %H:%M} UTC"
        if self.expires is not None and self.expires <= datetime.now(UTC):
            return f"the key {self.id} of {self.name} expired at {self.expires:%Y-%m-%d %H:%M} UTC"
        return None


class BearerKey(KeyRecord):
    """A key that its holder sends with each request; the file has its SHA-256."""

    kind: Literal["bearer"] = "bearer"
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AwsKey(KeyRecord):
    """A key that its holder signs requests with, as clients of AWS do; the file has its secret encrypted."""

    kind: Literal["aws"] = "aws"
    sealed_secret: str

    @property
    def access_key_id(self) -> str:
        """What a client calls the key."""
        return access_key_id(self.id)


Key = Annotated[BearerKey | AwsKey, Field(discriminator="kind")]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    keys: tuple[Key, ...] = ()


def read_keys(path: Path) -> tuple[BearerKey | AwsKey, ...]:
    """All keys of a file, oldest first.

    Raises:
        KeysError: it cannot be read.
    """
    try:
        return _File.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError as error:
        hint = f"make a key first: plumbline keys create NAME --scope score --keys {path}"
        raise KeysError(f"there is no keys file {path}; {hint}") from error
    except OSError as error:
        raise KeysError(f"the keys file {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) + ": " if fault["loc"] else ""
        raise KeysError(f"{path} is no keys file: {place}{fault['msg']}") from error


def create_key(
    path: Path, name: str, scopes: tuple[Scope, ...], lifetime: timedelta | None = None, rate: Rate | None = None
) -> tuple[BearerKey, str]:
    """Add a key to a file, which is made if it is not there.

    Returns:
        Its record, and the key, which nothing else keeps.

    Raises:
        KeysError: the file cannot be read or written, or the name is not acceptable.
    """
    id = secrets.token_hex(6)
    key = f"plumb_{id}_{secrets.token_hex(32)}"
    with _name_checked(name):
        record = BearerKey(**_common(id, name, scopes, lifetime, rate), sha256=sha256(key.encode()).hexdigest())
    _change(path, lambda keys: (*keys, record))
    return record, key


def create_aws_key(
    path: Path,
    name: str,
    scopes: tuple[Scope, ...],
    seal: Seal,
    lifetime: timedelta | None = None,
    rate: Rate | None = None,
) -> tuple[AwsKey, str]:
    """Add a key for clients that sign requests as AWS's do; as ``create_key``, but gives its secret.

    Args:
        seal: encrypts the secret in the file.
    """
    secret = secrets.token_urlsafe(30)
    with _name_checked(name):
        record = AwsKey(**_common(secrets.token_hex(6), name, scopes, lifetime, rate), sealed_secret=seal.close(secret))
    _change(path, lambda keys: (*keys, record))
    return record, secret


def access_key_id(id: str) -> str:
    """What a client of AWS calls the key of an id: at least 16 capital letters and digits."""
    return f"PLUMB{id.upper()}"


def revoke_key(path: Path, id: str) -> BearerKey | AwsKey:
    """Revoke a key; its record stays, for whoever asks later who it was.

    Raises:
        KeysError: there is no such key, it is revoked already, or the file cannot be written.
    """
    read_keys(path)  # an absent file is not made by this

    def revoked(keys: tuple[BearerKey | AwsKey, ...]) -> tuple[BearerKey | AwsKey, ...]:
        record = by_id(keys).get(id)
        if record is None:
            raise KeysError(f"{path} has no key with the id {id!r}; 'plumbline keys list' shows them")
        if record.revoked is not None:
            raise KeysError(f"{record.obstacle()} already")
        now = datetime.now(UTC).replace(microsecond=0)
        return tuple(key.model_copy(update={"revoked": now}) if key.id == id else key for key in keys)

    return by_id(_change(path, revoked))[id]


def _common(
    id: str, name: str, scopes: tuple[Scope, ...], lifetime: timedelta | None, rate: Rate | None
) -> dict[str, Any]:
    now = datetime.now(UTC).replace(microsecond=0)
    expires = None if lifetime is None else now + lifetime
    scopes = tuple(sorted(set(scopes)))
    return {"id": id, "name": name, "scopes": scopes, "created": now, "expires": expires, "rate": rate}


@contextmanager
def _name_checked(name: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise KeysError(
            f"{name!r} is no name for a key; use up to 64 letters, digits, spaces and . _ @ -, a letter or digit first"
        ) from error


def _change(
    path: Path, change: Callable[[tuple[BearerKey | AwsKey, ...]], tuple[BearerKey | AwsKey, ...]]
) -> tuple[BearerKey | AwsKey, ...]:
    """Replace a file's keys as one step: a reader finds all the old ones or all the new."""
    try:
        with _locked(path.parent):
            keys = change(read_keys(path) if path.exists() else ())
            _replace(path, _File(keys=keys).model_dump_json(indent=2, exclude_none=True) + "\n")
    except OSError as error:
        raise KeysError(f"the keys file {path} cannot be written: {error.strerror}") from error
    return keys


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others from changing a file of the folder at the same time."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    def keep_owner(descriptor: int) -> None:
        if path.exists() and os.geteuid() == 0:  # root changes the file for the user who serves
            before = path.stat()
            os.fchown(descriptor, before.st_uid, before.st_gid)

    write_file(path, text, mode=0o600, prepare=keep_owner)


def by_id(keys: tuple[BearerKey | AwsKey, ...]) -> dict[str, BearerKey | AwsKey]:
    """The same by their ids."""
    return {record.id: record for record in keys}
