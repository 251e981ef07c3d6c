"""What the operator of the service can set: variables ``PLUMBLINE_*``, or options of ``plumbline serve``."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.images import DEFAULT_MAX_PIXELS
from service.limits import Burst, PerSecond

_PREFIX = "PLUMBLINE_"

_OF_COMPOSE = {
    "CERTIFICATES", "METRICS_RETENTION", "MODELS_FOLDER", "PUBLISH", "PUBLISH_GRAFANA", "PUBLISH_PROMETHEUS",
    "PUBLISH_TLS", "SECRETS", "SITE", "TLS",
}  # fmt: skip
_OF_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT)|PORT_\d+")  # of a service there that is called plumbline

Names = Annotated[tuple[str, ...], NoDecode]
"""Several values, with commas between them."""


class SettingsError(Exception):
    """A setting that the service cannot start with; the message is a sentence for the operator."""


class Settings(BaseSettings):
    """The settings of one service process.

    At its worst the service holds ``queue_bytes``, and for each of ``image_threads``, and one for the pictures that are
    kept, an image that is being decoded or drawn, which takes up to ``max_pixels`` x 14 bytes more.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    models: Path = Field(description="folder that trained models are published to")
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    keys: Path | None = Field(
        default=None, description="file of API keys ('plumbline keys create'); set, every caller needs one"
    )
    allow_anonymous: bool = Field(
        default=False, description="ask nobody for a key, even where the address is not of this machine alone"
    )
    secret_key: SecretStr | None = Field(
        default=None, description="encrypts the secrets of keys of the kind aws; in the environment alone"
    )
    secret_key_file: Path | None = Field(
        default=None, description="file that holds the key of PLUMBLINE_SECRET_KEY instead"
    )
    rate_limit: PerSecond | None = Field(
        default=None,
        description="requests a second that a key may make, if it has no limit of its own; an address where nobody is "
        "asked for a key. unset: no limit",
    )
    rate_burst: Burst = Field(default=20, description="requests that may come at once under the rate limit")
    allowed_hosts: Names = Field(
        default=(),
        description="host names that the service answers as besides localhost and IP addresses, with commas between; "
        "unset: none, or any where callers need keys",
    )
    cors_origins: Names = Field(
        default=(),
        description="sites whose pages may use the service, such as https://quality.example, with commas between",
    )
    trusted_proxies: Names = Field(
        default=(),
        description="addresses or networks of proxies whose X-Forwarded-For is believed, with commas between",
    )
    max_connections: int = Field(default=500, ge=1, description="connections at the same time; more are told to retry")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where torch and FAISS compute")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch, FAISS and OpenCV; unset: theirs")
    store_poll_s: float = Field(
        default=2, gt=0, allow_inf_nan=False, description="seconds between looks at the folder of models for changes"
    )
    model_memory_bytes: int = Field(
        default=4 * 2**30,
        ge=1,
        description="memory that loaded versions may hold together; over it the least recently used are unloaded, but "
        "never an active version or a shadow",
    )
    image_threads: int = Field(default=2, ge=1, description="images that are decoded or drawn at the same time")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="most images of a category that are scanned together; unset: 8 on a GPU; as many "
        "as there are threads on a CPU, which scans them side by side and lets more begin as each is done",
    )
    batch_wait_ms: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="how long an image waits for others to be scanned with; 0: it is scanned as soon as the worker is "
        "idle, and batches form of what has come meanwhile",
    )
    queue_size: int = Field(default=32, ge=1, description="images that may wait to be scanned; more are told to retry")
    queue_bytes: int = Field(
        default=2**30, ge=1, description="bytes of uploads and decoded images that are held; more are told to retry"
    )
    request_timeout_s: float = Field(
        default=10,
        gt=0,
        allow_inf_nan=False,
        description="from a request's arrival to its answer, where its header X-Request-Timeout says nothing else",
    )
    max_request_timeout_s: float = Field(
        default=300, gt=0, allow_inf_nan=False, description="most that X-Request-Timeout may ask for"
    )
    drain_s: float = Field(
        default=5,
        ge=0,
        allow_inf_nan=False,
        description="after SIGTERM: how long everything is still answered while /readyz says no, so that whoever "
        "distributes requests sends no more",
    )
    stop_timeout_s: float = Field(
        default=15, ge=0, allow_inf_nan=False, description="then: how long accepted requests may take to be answered"
    )
    hang_timeout_s: float = Field(
        default=120,
        gt=0,
        allow_inf_nan=False,
        description="longest scan of an image on the device; a worker that takes longer counts as hung",
    )
    job_hang_timeout_s: float = Field(
        default=600,
        gt=0,
        allow_inf_nan=False,
        description="longest load, explanation or step of an extension on the device; likewise",
    )
    max_upload_bytes: int = Field(default=64 * 2**20, ge=1, description="largest request body")
    max_pixels: int = Field(default=DEFAULT_MAX_PIXELS, ge=1, description="most pixels of an image")
    records: Path | None = Field(
        default=None,
        description="folder that inspections are recorded in; none records nothing; unset: 'records' beside the models",
    )
    records_url: SecretStr | None = Field(
        default=None,
        description="records database, postgresql://USER:PASSWORD@HOST/DATABASE; unset: SQLite in that folder",
    )
    records_required: bool = Field(
        default=True, description="refuse to answer what cannot be recorded; false answers it and counts it"
    )
    journal_bytes: int = Field(
        default=256 * 2**20, ge=2**20, description="most bytes of records that wait in the journal for the database"
    )
    keep_images: Literal["all", "defective", "none"] = Field(
        default="defective",
        description="inspections whose image and heatmap are kept; defective: those with any verdict but good",
    )
    keep_days: int | None = Field(
        default=None, ge=1, description="delete images and heatmaps after; unset: by bytes alone"
    )
    keep_bytes: int = Field(
        default=10 * 2**30, ge=0, description="most bytes of images and heatmaps; beyond it the oldest are deleted"
    )
    keep_free_bytes: int = Field(
        default=2**30, ge=0, description="keep no image where less is free on the disk, which is left to the records"
    )
    keep_records_days: int | None = Field(default=None, ge=1, description="delete records after; unset: never")
    drift_window: int = Field(
        default=500, ge=1, le=100_000, description="latest inspections of a category whose scores' quantiles are shown"
    )
    drift_false_alarm_rate: float = Field(
        default=0.01,
        gt=0,
        lt=0.1,
        description="largest probability that a drift test ever alarms while nothing changes; of a warning, ten times",
    )
    mqtt_url: SecretStr | None = Field(
        default=None,
        description="broker that is told every result, mqtt://USER:PASSWORD@HOST:PORT; mqtts:// for TLS",
    )
    mqtt_ca: Path | None = Field(
        default=None, description="PEM file of the authorities that may vouch for the broker; unset: the system's"
    )
    mqtt_prefix: str = Field(
        default="plumbline",
        pattern=r"^[^/+#$\x00]+(/[^/+#\x00]+)*$",
        max_length=200,
        description="topics begin with it: PREFIX/CATEGORY/inspections and PREFIX/status",
    )
    webhooks: Names = Field(
        default=(),
        repr=False,
        description="URLs that every result is posted to, with commas between; each may end in # and the verdicts that "
        "it is told of, such as #defective+review",
    )
    webhook_secret: SecretStr | None = Field(
        default=None, min_length=16, description="what posted results are signed with; at least 16 characters"
    )
    webhook_give_up_s: float = Field(
        default=300,
        gt=0,
        allow_inf_nan=False,
        description="how long a result that a webhook does not take is tried again",
    )
    outbox_bytes: int = Field(
        default=64 * 2**20, ge=1, description="most bytes of results that wait in memory for one receiver"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")

    @field_validator("allowed_hosts", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().lower() for part in value.split(",") if part.strip())
        return value

    @field_validator("webhooks", mode="before")
    @classmethod
    def _split_urls(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"[a-z0-9._-]+", host):
                raise ValueError(f"{host!r} is no host name; give it without scheme and port")
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[a-z0-9._-]+(:\d+)?", origin):
                raise ValueError(f"{origin!r} is no origin; give scheme and host, and the port if it has one, no path")
        return origins

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"{network!r} is neither an IP address nor a network such as 172.16.0.0/12") from error
        return networks

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.keys is not None and self.allow_anonymous:
            raise ValueError(
                f"{_named('keys')} and {_named('allow_anonymous')} are both set; keep the one that is meant"
            )
        if self.secret_key is not None and self.secret_key_file is not None:
            raise ValueError(f"PLUMBLINE_SECRET_KEY and {_named('secret_key_file')} are both set; keep one")
        return self

    @model_validator(mode="after")
    def _records_have_a_folder(self) -> Self:
        if self.records_url is not None and self.records_folder is None:
            raise ValueError(
                f"{_named('records_url')} is set and {_named('records')} is 'none': records wait in a folder for their "
                "database; name one"
            )
        return self

    @model_validator(mode="after")
    def _timeouts_fit(self) -> Self:
        if self.request_timeout_s > self.max_request_timeout_s:
            raise ValueError(
                f"{_named('request_timeout_s')} is {self.request_timeout_s:g}: it must not be above "
                f"{_named('max_request_timeout_s')}, which is {self.max_request_timeout_s:g}"
            )
        return self

    @property
    def records_folder(self) -> Path | None:
        """Where inspections are recorded; None where they are not."""
        if self.records is None:
            return self.models.absolute().parent / "records"
        return None if str(self.records) == "none" else self.records

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


def command_line_settings() -> dict[str, FieldInfo]:
    """The settings that may stand on a command line: all but the key to other secrets, for any user of the machine can
    read it. An address with a password may, and is better set in the environment.
    """
    return {name: field for name, field in Settings.model_fields.items() if name != "secret_key"}


def load_settings(**options: Any) -> Settings:
    """Read the settings: an option that is not None, else the environment variable, else the default.

    Raises:
        SettingsError: naming each setting that is wrong, its value and what is accepted.
    """
    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(dict(problem)) for problem in error.errors())) from error
    if not settings.models.is_dir():
        raise SettingsError(
            f"{_named('models')}: there is no folder {str(settings.models)!r}; name the one models are published to"
        )
    return settings


def unknown_variables() -> list[str]:
    """Variables ``PLUMBLINE_*`` of the environment that set nothing, as those do that are misspelt."""
    names = (name.upper().removeprefix(_PREFIX) for name in os.environ if name.upper().startswith(_PREFIX))
    known = {field.upper() for field in Settings.model_fields} | _OF_COMPOSE
    return sorted(_PREFIX + name for name in names if name not in known and not _OF_KUBERNETES.match(name))


def _sentence(problem: dict[str, Any]) -> str:
    message: str = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:  # settings that do not fit together; the message names them
        return message
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"{_named(name)} is not set: {Settings.model_fields[name].description}"
    if problem["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; there is {', '.join(Settings.model_fields)}"
    given = "not accepted" if "Secret" in str(Settings.model_fields[name].annotation) else repr(problem["input"])
    return f"{_named(name)} is {given}: {message[0].lower()}{message[1:]}"


def _named(name: str) -> str:
    return f"{_PREFIX}{name.upper()} (--{name.replace('_', '-')})"
