"""The file of API keys: who holds which, without the keys themselves.

A key is 256 random bits, so nobody can search for the one behind a hash, however fast the hash: SHA-256 keeps it as
safe as the slow hashes do that passwords need, and costs a request microseconds.
"""

from __future__ import annotations

import asyncio
import fcntl
import hmac
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from models.artifact import sync_folder
from service.security import Scope
from service.settings import SettingsError

_REFRESH_S = 1
_FORMAT = re.compile(r"plumb_([0-9a-f]{12})_[0-9a-f]{64}")

_log = logging.getLogger("plumbline.keys")

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@ -]{0,63}$")]


class KeysError(SettingsError):
    """A keys file that cannot be used, or a change to it that is not possible; the message says what to do."""


class KeyRecord(BaseModel):
    """What the file holds of a key.

    Attributes:
        name: of who holds it; two keys may share it while one replaces the other.
        sha256: of the whole key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Id
    name: Name
    scopes: tuple[Scope, ...]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def obstacle(self) -> str | None:
        """Why the key is not accepted now; None where it is."""
        if self.revoked is not None:
            return f"the key {self.id} of {self.name} was revoked at {self.revoked:%Y-%m-%d %H:%M} UTC"
        if self.expires is not None and self.expires <= datetime.now(UTC):
            return f"the key {self.id} of {self.name} expired at {self.expires:%Y-%m-%d %H:%M} UTC"
        return None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    keys: tuple[KeyRecord, ...] = ()


class Keyring:
    """The keys of a file, as a running service has them.

    Raises:
        KeysError: the file cannot be read, or holds no key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._keys = _by_id(read_keys(path))
        if not self._keys:
            raise KeysError(f"{path} holds no key; make one: plumbline keys create NAME --scope score --keys {path}")

    def find(self, key: str) -> KeyRecord | None:
        """The record of a key, in a time that does not tell how much of it was right; None if there is none."""
        match = _FORMAT.fullmatch(key)
        record = self._keys.get(match[1]) if match else None
        given = sha256(key.encode()).hexdigest()
        same = hmac.compare_digest(given, record.sha256 if record else "0" * 64)
        return record if same else None

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """While the block runs, take up what changes in the file, within about a second."""
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _follow(self) -> None:
        failed: str | None = None
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                await asyncio.to_thread(self._refresh)
                failed = None
            except KeysError as error:
                # Stopping a line because somebody's editor made a mistake helps nobody; who revokes reads this.
                if failed != str(error):
                    failed = str(error)
                    _log.error("keys not read again; those before still hold", extra={"fields": {"reason": failed}})

    def _refresh(self) -> None:
        if (stamp := _stamp(self._path)) == self._stamp:
            return
        before, after = self._keys, _by_id(read_keys(self._path))
        self._keys, self._stamp = after, stamp
        changed = sorted(id for id in before.keys() | after.keys() if before.get(id) != after.get(id))
        accepted = sum(record.obstacle() is None for record in after.values())
        _log.info("keys changed", extra={"fields": {"keys": changed, "accepted": accepted}})


def read_keys(path: Path) -> tuple[KeyRecord, ...]:
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
        place = ".".join(map(str, fault["loc"]))
        raise KeysError(f"{path} is no keys file: {place}: {fault['msg']}") from error


def create_key(
    path: Path, name: str, scopes: tuple[Scope, ...], lifetime: timedelta | None = None
) -> tuple[KeyRecord, str]:
    """Add a key to a file, which is made if it is not there.

    Returns:
        Its record, and the key, which nothing else keeps.

    Raises:
        KeysError: the file cannot be read or written, or the name is not acceptable.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    id = secrets.token_hex(6)
    key = f"plumb_{id}_{secrets.token_hex(32)}"
    try:
        record = KeyRecord(
            id=id,
            name=name,
            scopes=tuple(sorted(set(scopes))),
            created=now,
            expires=None if lifetime is None else now + lifetime,
            sha256=sha256(key.encode()).hexdigest(),
        )
    except ValidationError as error:
        raise KeysError(
            f"{name!r} is no name for a key; use up to 64 letters, digits, spaces and . _ @ -, a letter or digit first"
        ) from error
    _change(path, lambda keys: (*keys, record))
    return record, key


def revoke_key(path: Path, id: str) -> KeyRecord:
    """Revoke a key; its record stays, for whoever asks later who it was.

    Raises:
        KeysError: there is no such key, it is revoked already, or the file cannot be written.
    """
    read_keys(path)  # an absent file is not made by this

    def revoked(keys: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        record = _by_id(keys).get(id)
        if record is None:
            raise KeysError(f"{path} has no key with the id {id!r}; 'plumbline keys list' shows them")
        if record.revoked is not None:
            raise KeysError(f"{record.obstacle()} already")
        now = datetime.now(UTC).replace(microsecond=0)
        return tuple(key.model_copy(update={"revoked": now}) if key.id == id else key for key in keys)

    return _by_id(_change(path, revoked))[id]


def _change(path: Path, change: Callable[[tuple[KeyRecord, ...]], tuple[KeyRecord, ...]]) -> tuple[KeyRecord, ...]:
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
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        if path.exists() and os.geteuid() == 0:  # root changes the file for the user who serves
            before = path.stat()
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells one state of a file from another; None where it cannot be seen."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def _by_id(keys: tuple[KeyRecord, ...]) -> dict[str, KeyRecord]:
    return {record.id: record for record in keys}
