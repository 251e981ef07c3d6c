"""The thread that moves records from the journal to the database."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from service.records.database import Database, DatabaseUnavailable
from service.records.journal import Journal
from service.records.record import Record

_BATCH = 500
_GATHER_S = 0.2  # records are cheaper by the hundred, and a reader does not wait for it
_RETRY_S = (0.5, 5.0)  # after the first failure, and at most
_FORGET_EVERY_S = 3600
_STOP_S = 5.0

_log = logging.getLogger("plumbline.records")


class Writer:
    """Moves every line of the journal to the database, in their order, and tries again until it could.

    Args:
        migrated: whether the schema is known to fit; else the writer sees to it first.
        set_aside: where lines are added that no database will ever take.
        keep_days: records older than that are deleted; None for never.
        failed: called at each failure.
    """

    def __init__(
        self,
        journal: Journal,
        database: Database,
        *,
        migrated: bool,
        set_aside: Path,
        keep_days: int | None,
        failed: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._database = database
        self._migrated = migrated
        self._set_aside = set_aside
        self._keep_days = keep_days
        self._failed = failed
        self._forget_at = 0.0
        self._forgotten = 0
        self._stopping = False
        self._urgent = threading.Event()
        self._moved = threading.Condition()
        self.failure: str | None = None if migrated else "it has not been reached yet"
        self._thread = threading.Thread(target=self._loop, name="records", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Move what is there, if the database takes it, and end the thread."""
        self._stopping = True
        self._urgent.set()
        self._thread.join(_STOP_S)

    def settle(self, seconds: float) -> None:
        """Wait until all that is in the journal now is in the database.

        Raises:
            DatabaseUnavailable: it is not within so many seconds.
        """
        target = self._journal.appended
        self._urgent.set()
        with self._moved:
            self._moved.wait_for(lambda: self._journal.committed >= target or self.failure is not None, seconds)
        if self._journal.committed < target:
            raise DatabaseUnavailable(self.failure or f"it has not taken all records within {seconds:g} s")

    def _loop(self) -> None:
        wait = _RETRY_S[0]
        while True:
            try:
                self._move()
                self._forget()
                self._tell(None)
                wait = _RETRY_S[0]
            except Exception as error:  # a thread has nobody above it who could hear of it
                self._failed()
                self._tell(str(error))
                self._sync()
                if self._stopping:
                    return
                time.sleep(wait)  # a reader in a hurry does not bring the database back
                wait = min(2 * wait, _RETRY_S[1])
            else:
                if self._stopping and self._journal.depth == 0:
                    return
                self._urgent.wait(_GATHER_S)
            self._urgent.clear()

    def _move(self) -> None:
        if not self._migrated:
            self._database.migrate()
            self._migrated = True
        while (batch := self._journal.read(_BATCH)).lines:
            records = [record for line in batch.lines if (record := self._parsed(line)) is not None]
            if records:
                for record, reason in self._database.insert(records):
                    self._put_aside(record.model_dump_json().encode(), reason)
            self._journal.commit(batch)
            self._tell(None)

    def _forget(self) -> None:
        """Delete some of what is too old; the rest in the next rounds, so that new records need not wait for it."""
        if self._keep_days is None or time.monotonic() < self._forget_at:
            return
        count = self._database.forget(datetime.now(UTC) - timedelta(days=self._keep_days))
        self._forgotten += count
        if count == 0:
            fields = {"count": self._forgotten, "keep_days": self._keep_days}
            _log.info("old records deleted", extra={"fields": fields})
            self._forgotten, self._forget_at = 0, time.monotonic() + _FORGET_EVERY_S

    def _parsed(self, line: bytes) -> Record | None:
        try:
            return Record.model_validate_json(line)
        except ValidationError as error:  # after a power cut, or of a build that records more strictly
            self._put_aside(line, str(error))
            return None

    def _put_aside(self, line: bytes, reason: str) -> None:
        self._failed()
        _log.error("record set aside", extra={"fields": {"file": str(self._set_aside), "reason": reason}})
        with self._set_aside.open("ab") as file:
            file.write(line + b"\n")

    def _sync(self) -> None:
        try:
            self._journal.sync()
        except OSError as error:
            _log.error("journal not flushed", extra={"fields": {"reason": str(error)}})

    def _tell(self, failure: str | None) -> None:
        with self._moved:
            if failure != self.failure:
                if failure is None:
                    _log.info("records database up", extra={"fields": {"journal": self._journal.depth}})
                else:
                    _log.error("records database down", extra={"fields": {"reason": failure}})
            self.failure = failure
            self._moved.notify_all()
