"""The keys as a running service has them: looked up, and taken up anew when the file changes."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path

from service.keys import AwsKey, BearerKey, KeyRecord, KeysError, by_id, read_keys
from service.sealing import Seal
from service.settings import SettingsError

_REFRESH_S = 1
_FORMAT = re.compile(r"plumb_([0-9a-f]{12})_[0-9a-f]{64}")

_log = logging.getLogger("plumbline.keys")


class Keyring:
    """The keys of a file, as a running service has them.

    Args:
        seal: opens the secrets of keys that requests are signed with; None if there are to be none.

    Raises:
        KeysError: the file cannot be read, holds no key, or has secrets that the seal does not open.
    """

    def __init__(self, path: Path, seal: Seal | None = None) -> None:
        self._path = path
        self._seal = seal
        self._stamp = _stamp(path)
        self._keys = by_id(read_keys(path))
        self._secrets, faults = self._opened(self._keys)
        if faults:
            raise faults[0]
        if not self._keys:
            raise KeysError(f"{path} holds no key; make one: plumbline keys create NAME --scope score --keys {path}")

    def find(self, key: str) -> KeyRecord | None:
        """The record of a key, in a time that does not tell how much of it was right; None if there is none."""
        match = _FORMAT.fullmatch(key)
        record = self._keys.get(match[1]) if match else None
        given = sha256(key.encode()).hexdigest()
        same = hmac.compare_digest(given, record.sha256 if isinstance(record, BearerKey) else "0" * 64)
        return record if same else None

    def secret(self, access_key_id: str) -> tuple[KeyRecord, str] | None:
        """The record and the secret of a key that requests are signed with; None if there is none."""
        return self._secrets.get(access_key_id)

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
            except Exception as error:  # whatever it is: a key that is revoked next must not be accepted for ever
                # Stopping a line because somebody's editor made a mistake helps nobody; who revokes reads this.
                if failed != str(error):
                    failed = str(error)
                    _log.error("keys not read again; those before still hold", extra={"fields": {"reason": failed}})

    def _refresh(self) -> None:
        if (stamp := _stamp(self._path)) == self._stamp:
            return
        before, after = self._keys, by_id(read_keys(self._path))
        self._secrets, faults = self._opened(after)
        self._keys, self._stamp = after, stamp
        for fault in faults:  # the others are as the file says, those that were revoked above all
            _log.error("key not accepted", extra={"fields": {"reason": str(fault)}})
        changed = sorted(id for id in before.keys() | after.keys() if before.get(id) != after.get(id))
        accepted = sum(record.obstacle() is None for record in after.values())
        _log.info("keys changed", extra={"fields": {"keys": changed, "accepted": accepted}})

    def _opened(self, keys: dict[str, BearerKey | AwsKey]) -> tuple[dict[str, tuple[KeyRecord, str]], list[KeysError]]:
        """The secrets of keys that requests are signed with, and why others could not be opened."""
        opened: dict[str, tuple[KeyRecord, str]] = {}
        faults: list[KeysError] = []
        for key in keys.values():
            if isinstance(key, AwsKey):
                try:
                    opened[key.access_key_id] = key, self._secret(key)
                except KeysError as fault:
                    faults.append(fault)
        return opened, faults

    def _secret(self, key: AwsKey) -> str:
        if self._seal is None:
            raise KeysError(
                f"{self._path} has keys of the kind aws, whose secrets are encrypted; set PLUMBLINE_SECRET_KEY or "
                "PLUMBLINE_SECRET_KEY_FILE (--secret-key-file)"
            )
        try:
            return self._seal.open(key.sealed_secret)
        except SettingsError as error:
            raise KeysError(f"the secret of key {key.id} in {self._path} cannot be decrypted: {error}") from error


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells one state of a file from another; None where it cannot be seen."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size
