"""Make, list and revoke the keys that callers of the service need."""

from __future__ import annotations

import argparse
import math
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import UsageError
from cli.options import add_json, positive_integer

if TYPE_CHECKING:
    from service.keys import AwsKey, BearerKey
    from service.limits import Rate
    from service.security import Scope

_MOST_DAYS = 36_500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's sub-verbs."""
    from service.security import Scope

    verbs = parser.add_subparsers(metavar="ACTION", required=True)
    for name, action, help_line in (
        ("create", _create, "make a key, and print it this once"),
        ("list", _list, "every key: its id, who holds it, what it allows"),
        ("revoke", _revoke, "have a key refused from now on"),
        ("new-secret", _new_secret, "print a new secret key, which encrypts the secrets of keys of the kind aws"),
    ):
        sub = verbs.add_parser(name, help=help_line, description=help_line)
        if action is _create:
            sub.add_argument("name", metavar="NAME", help="who will hold it, as records and logs show")
            sub.add_argument(
                "--scope",
                action="append",
                choices=[scope.value for scope in Scope],
                default=[],
                help="what it allows, once for each; none implies another; without any: to read what every caller may",
            )
            sub.add_argument(
                "--kind",
                choices=("bearer", "aws"),
                default="bearer",
                help="bearer: callers send the key; aws: they sign with it, as AWS's SDKs do (default: %(default)s)",
            )
            sub.add_argument(
                "--secret-key-file",
                type=Path,
                default=os.environ.get("PLUMBLINE_SECRET_KEY_FILE") or None,
                help="encrypts the secret of a key of the kind aws (default: PLUMBLINE_SECRET_KEY_FILE, or the key in "
                "PLUMBLINE_SECRET_KEY)",
            )
            sub.add_argument("--expires", type=_days, metavar="DAYS", help="after so many days")
            sub.add_argument(
                "--rate-limit", type=_rate, metavar="N", help="requests a second (default: the service's setting)"
            )
            sub.add_argument(
                "--rate-burst",
                type=positive_integer,
                metavar="N",
                help="requests at once (default: %(default)s)",
                default=20,
            )
        if action is _revoke:
            sub.add_argument("id", metavar="ID", help="of the key, as 'plumbline keys list' shows it")
        if action is not _new_secret:
            sub.add_argument(
                "--keys",
                type=Path,
                default=Path(os.environ.get("PLUMBLINE_KEYS") or "keys.json"),
                help="file of the keys (default: %(default)s)",
            )
        add_json(sub)
        sub.set_defaults(action=action)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-verb."""
    result: dict[str, Any] = options.action(options)
    return result


def _days(text: str) -> int:
    days = positive_integer(text)
    if days > _MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{days} days are more than {_MOST_DAYS}; leave it out for no end")
    return days


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return rate


def _create(options: argparse.Namespace) -> dict[str, Any]:
    from service.keys import create_key
    from service.limits import Rate
    from service.security import Scope

    lifetime = timedelta(days=options.expires) if options.expires else None
    scopes = tuple(map(Scope, options.scope))
    limit = options.rate_limit
    rate = None if limit is None else Rate(per_second=limit, burst=options.rate_burst)
    if options.kind == "aws":
        return _create_aws(options, scopes, lifetime, rate)
    record, key = create_key(options.keys, options.name, scopes, lifetime, rate)
    print(_line(record))
    if not options.json:
        print(f"{key}\nThis is the only time it is shown. Callers send it as 'Authorization: Bearer KEY'.")
    return {**_facts(record), "key": key}


def _create_aws(
    options: argparse.Namespace, scopes: tuple[Scope, ...], lifetime: timedelta | None, rate: Rate | None
) -> dict[str, Any]:
    from service.keys import create_aws_key
    from service.sealing import find_seal

    named = options.secret_key_file is not None
    seal = find_seal(None if named else os.environ.get("PLUMBLINE_SECRET_KEY"), options.secret_key_file)
    if seal is None:
        raise UsageError(
            "a key of the kind aws needs a secret key to encrypt it: set PLUMBLINE_SECRET_KEY or give "
            "--secret-key-file; 'plumbline keys new-secret' prints one"
        )
    record, secret = create_aws_key(options.keys, options.name, scopes, seal, lifetime, rate)
    print(_line(record))
    if not options.json:
        print(f"aws_access_key_id={record.access_key_id}\naws_secret_access_key={secret}")
        print("This is the only time the secret is shown.")
    return {**_facts(record), "aws_access_key_id": record.access_key_id, "aws_secret_access_key": secret}


def _new_secret(options: argparse.Namespace) -> dict[str, Any]:
    from service.sealing import new_secret_key

    key = new_secret_key()
    if not options.json:
        print(key)
    return {"secret_key": key}


def _list(options: argparse.Namespace) -> dict[str, Any]:
    from service.keys import read_keys

    records = read_keys(options.keys)
    for record in records:
        print(_line(record))
    return {"keys": [_facts(record) for record in records]}


def _revoke(options: argparse.Namespace) -> dict[str, Any]:
    from service.keys import revoke_key

    record = revoke_key(options.keys, options.id)
    print(_line(record))
    return _facts(record)


def _line(record: BearerKey | AwsKey) -> str:
    state = record.obstacle() or (f"until {record.expires:%Y-%m-%d}" if record.expires else "no end")
    if record.rate is not None:
        state += f", {record.rate.per_second:g} requests/s"
    return f"{record.id}  {record.kind:6}  {record.name:24} {','.join(record.scopes) or '-':20} {state}"


def _facts(record: BearerKey | AwsKey) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude={"sha256", "sealed_secret"})
