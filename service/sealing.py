"""Encryption of secrets that a file must hold and a service must know again."""

from __future__ import annotations

from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from service.settings import SettingsError

_HINT = "'plumbline keys new-secret' prints one"


class Seal:
    """Encrypts and decrypts with one secret key, authenticated (Fernet: AES-128-CBC, HMAC-SHA-256).

    Args:
        key: 32 bytes in URL-safe base64.
        source: where the key is from, for messages.

    Raises:
        SettingsError: it is no such key.
    """

    def __init__(self, key: str, source: str) -> None:
        self._source = source
        try:
            self._fernet = Fernet(key.strip())
        except ValueError as error:
            raise SettingsError(f"{source} is no secret key of 32 bytes in URL-safe base64; {_HINT}") from error

    def close(self, secret: str) -> str:
        """Encrypt."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """Decrypt.

        Raises:
            SettingsError: it was encrypted with another key, or changed since.
        """
        try:
            return self._fernet.decrypt(sealed).decode()
        except (InvalidToken, ValueError) as error:  # the latter of what is no ASCII
            raise SettingsError(f"it was not encrypted with the key in {self._source}") from error


def find_seal(key: str | None, file: Path | None) -> Seal | None:
    """The seal of a secret key that stands in the environment, or in a file; None if in neither.

    Raises:
        SettingsError: what is there is no key, or the file cannot be read.
    """
    if key:
        return Seal(key, "PLUMBLINE_SECRET_KEY")
    if file is None:
        return None
    try:
        return Seal(file.read_text("ascii"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the secret key's file {file} cannot be read: {error}; {_HINT}") from error


def new_secret_key() -> str:
    """A key for ``Seal``."""
    return Fernet.generate_key().decode()
