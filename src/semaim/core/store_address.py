"""Addresses of MLflow stores and names of experiments, as users write them: what is accepted, and why the rest is not.

What follows `sqlite:///` is the path of a file as it is on disk: no character has a special meaning in it, except `~`
at its beginning. An address is stored in run folders, checkpoints and MLflow, so it must not contain a password.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from semaim.core.formatting import SECRET
from semaim.errors import UserError

SQLITE = "sqlite:///"
SERVERS = ("http://", "https://")
DATABASE = re.compile(r"(postgresql|mysql|mssql)(\+\w+)?://")
SECRET_PARAMETER = re.compile(rf"{SECRET}\s*=", re.IGNORECASE)
SERVER_PASSWORD = (
    "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN), or write them into "
    "~/.mlflow/credentials"
)
DATABASE_PASSWORD = (
    "and keep it where the database's client finds it, such as ~/.pgpass; or give the address of an `mlflow server` "
    "that uses the database"
)
MAX_NAME, MAX_PART_BYTES = 500, 255  # of an experiment in MLflow; of a folder, which has the name of the experiment


def absolute_address(option: str, uri: str) -> str:
    """The address of a store, independent of the working directory.

    Args:
        option: what holds the address, for messages: "tracking.uri", "--uri".
        uri: a SQLite file, a server, or the database of a server.

    Raises:
        UserError: if it is no address of a store, or contains a password, which the message does not quote.
    """
    if uri.startswith(SQLITE):
        return SQLITE + _file(option, os.path.expanduser(uri.removeprefix(SQLITE)))
    text = unquote(uri)
    database = DATABASE.match(uri)
    userinfo = text.partition("://")[2].rpartition("@")[0]
    if SECRET_PARAMETER.search(text) or (":" in userinfo if database else "@" in text):
        instead = DATABASE_PASSWORD if database else SERVER_PASSWORD
        raise UserError(f"{option} contains a user or password, which run folders would show: leave it out, {instead}")
    if not (database or _is_server(uri)) or not uri.isprintable() or " " in uri:
        shown = re.split("[?#]", uri)[0]
        raise UserError(f"{option}={shown} is no MLflow store: give {SQLITE}<file> or http://<server>:<port>")
    return uri.rstrip("/")


def _file(option: str, path: str) -> str:
    """The absolute path of a SQLite file."""
    file = Path(path).absolute()
    try:
        file.as_posix().encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{option}: MLflow opens no file whose path is not UTF-8 ({file})") from error
    if not path or path.endswith("/") or "\0" in path or file.is_dir():
        raise UserError(f"{option}={SQLITE}{path} names no file: give {SQLITE}<file>")
    if not file.exists() and (decoded := Path(unquote(file.as_posix()))).is_file():
        raise UserError(f"{option} names {file}, which does not exist, but {decoded} does: write the path as it is")
    return file.as_posix()


def _is_server(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return uri.startswith(SERVERS) and bool(parts.hostname) and parts.port != 0 and not {"?", "#"} & {*uri}
    except ValueError:  # no port number
        return False


def check_experiment(option: str, name: str) -> None:
    """Raise UserError if a name cannot be that of an experiment; its artifacts are in a folder of this name."""
    parts = name.split("/")
    if len(name) > MAX_NAME or not name.isprintable() or any(
        part.strip() in ("", ".", "..") or len(part.encode()) > MAX_PART_BYTES for part in parts
    ):  # fmt: skip
        raise UserError(
            f"{option}={name!r} cannot name an MLflow experiment: give at most {MAX_NAME} printable characters, such "
            f"as orders or team/orders; a part between slashes is not empty, . or .. or over {MAX_PART_BYTES} bytes"
        )
