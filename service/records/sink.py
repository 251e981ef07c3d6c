"""Recording: the sink that every inspection goes through, and the parts behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from service.errors import RECORDS_UNAVAILABLE, ProblemError
from service.inspection import Inspection
from service.records.database import DatabaseError, DatabaseUnavailable, database_in
from service.records.journal import Journal, JournalError, JournalInUse
from service.records.pictures import PICTURES, Pictures
from service.records.record import record_of
from service.records.writer import Writer
from service.settings import Settings, SettingsError
from service.telemetry import Telemetry

Result = TypeVar("Result")

_RETRY_AFTER_S = "5"
_SETTLE_S = 10.0
_READERS = 2

_log = logging.getLogger("plumbline.records")


class Records:
    """Records every inspection before its answer, and reads what was recorded.

    Attributes:
        database: for reading; on the threads of ``read`` only.
        pictures: the images and heatmaps that are kept.

    Raises:
        SettingsError: the folder cannot be written or another process records there, or the database is not one that
            this build can use. One that is merely not there yet is waited for.
    """

    def __init__(self, folder: Path, settings: Settings, telemetry: Telemetry) -> None:
        self._required = settings.records_required
        self._telemetry = telemetry
        url = settings.records_url
        self._journal = _journal(folder, settings)
        try:
            self.database = database_in(folder, None if url is None else url.get_secret_value())
        except DatabaseError as error:
            self._journal.close()
            raise SettingsError(f"PLUMBLINE_RECORDS_URL (--records-url): {error}") from error
        try:
            migrated = self._migrate()
        except DatabaseError as error:
            self.close()
            raise SettingsError(str(error)) from error
        self.pictures = Pictures(folder / PICTURES, settings, telemetry)
        self._writer = Writer(
            self._journal,
            self.database,
            migrated=migrated,
            set_aside=folder / "journal" / "damaged.jsonl",
            keep_days=settings.keep_records_days,
            failed=telemetry.record_failures.labels("database").inc,
        )
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="records-read")
        telemetry.journal_depth.set_function(lambda: self._journal.depth)
        telemetry.journal_bytes.set_function(lambda: self._journal.size)
        telemetry.database_up.set_function(lambda: self._writer.failure is None)

    async def __aenter__(self) -> Self:
        self._writer.start()
        self.pictures.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._writer.stop)
        await asyncio.to_thread(self.pictures.stop)
        self._readers.shutdown(cancel_futures=True)
        self.close()

    def close(self) -> None:
        """Let go of the folder and the database."""
        self._journal.close()
        self.database.close()

    def check(self) -> None:
        """Refuse an image before it costs work, where its inspection could not be recorded.

        Raises:
            ProblemError: so.
        """
        if self._required:
            try:
                self._journal.check()
            except JournalError as error:
                raise self._refused(error) from error

    async def take(self, inspection: Inspection) -> None:
        """Record an inspection, so that it outlives this process.

        Raises:
            ProblemError: it could not be recorded, and answers must be.
        """
        try:
            self._journal.append(record_of(inspection).model_dump_json().encode())
        except JournalError as error:
            if self._required:
                raise self._refused(error) from error
            self._telemetry.record_failures.labels("journal").inc()
            _log.error("inspection not recorded", extra={"fields": {"id": inspection.id, "reason": str(error)}})
            return
        self.pictures.take(inspection)

    async def read(self, function: Callable[[], Result]) -> Result:
        """Run what reads or writes the database, when all that was answered before is in it.

        Raises:
            ProblemError: the database cannot be used now.
        """

        def settled() -> Result:
            self._writer.settle(_SETTLE_S)
            return function()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, settled)
        except DatabaseUnavailable as error:
            _log.error("records not read", extra={"fields": {"reason": str(error)}})
            detail = "the records database cannot be used now; what is inspected is kept until it can; retry then"
            raise ProblemError(RECORDS_UNAVAILABLE, detail, {"Retry-After": _RETRY_AFTER_S}) from error

    def _refused(self, error: JournalError) -> ProblemError:
        self._telemetry.record_failures.labels("journal").inc()
        detail = f"the inspection cannot be recorded, so it is not answered: {error}"
        return ProblemError(RECORDS_UNAVAILABLE, detail, {"Retry-After": _RETRY_AFTER_S})

    def _migrate(self) -> bool:
        try:
            self.database.migrate()
        except DatabaseUnavailable as error:
            _log.error("records database not reached yet", extra={"fields": {"reason": str(error)}})
            return False
        return True


def open_records(settings: Settings, telemetry: Telemetry) -> Records | None:
    """What records the inspections of a service; None where it is told not to."""
    folder = settings.records_folder
    return None if folder is None else Records(folder, settings, telemetry)


def _journal(folder: Path, settings: Settings) -> Journal:
    setting = "PLUMBLINE_RECORDS, --records"
    try:
        return Journal(folder / "journal", settings.journal_bytes)
    except JournalInUse as error:
        raise SettingsError(f"{error}; give each service a folder of records of its own ({setting})") from error
    except OSError as error:
        raise SettingsError(
            f"inspections cannot be recorded in {str(folder)!r}: {error.strerror}; name a folder that can be written "
            f"({setting}), or 'none' to record nothing"
        ) from error
