"""MLflow stores, a SQLite file or a server: which the user has named, reachability, reasons of failure."""

from __future__ import annotations

import logging
import os
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from semaim.core.files import writable
from semaim.core.formatting import program
from semaim.core.store_address import SERVERS, SQLITE, absolute_address
from semaim.errors import UserError

HEALTH_TIMEOUT_SECONDS = 5

# No telemetry, and no output of MLflow's own. Requests to an unreachable server fail soon, since the journal keeps
# everything for later.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # errors with their tracebacks: we say the reason


_named: set[str] = set()


def name_store(option: str, uri: str) -> str:
    """The absolute address of a store that the user of this process names; run folders may name it, too.

    Args:
        option: where it is named, for messages.
        uri: the address.

    Raises:
        UserError: as `absolute_address`.
    """
    _named.add(address := absolute_address(option, uri))
    return address


def configured_store() -> str | None:
    """The absolute address of `tracking.uri` in the configuration, such as site.yaml; None without tracking."""
    from semaim.config.compose import options  # takes long to import

    uri = options().tracking.get("uri")
    return uri and absolute_address("tracking.uri", uri)


def store_of_folder(path: Path, uri: str) -> str:
    """The address of the store that a run folder names, if the user names it as well.

    Whoever made the folder must not decide which server receives the user's password, or which file is written.

    Raises:
        UserError: if it is neither the configured store nor one that the user of this process names.
    """
    address = absolute_address(f"the address in {path / 'mlflow.json'}", uri)
    if address in _named or address == (configured := configured_store()):
        return address
    raise UserError(
        f"{path} names the MLflow store {address}, which is not the configured one ({configured or 'none'}): to use "
        f"it, give {shlex.join(['--uri', address])}, or set tracking.uri in site.yaml"
    )


def naming(address: str) -> tuple[str, ...]:
    """The option of commands that names a store; none for the configured one."""
    return () if address == configured_store() else ("--uri", address)


def sync_command(path: Path, address: str) -> str:
    """The command that sends a run folder to a store."""
    return program("sync", path, *naming(address))


def client_uri(address: str) -> str:
    """An address as MLflow reads it: the path of a SQLite file is encoded."""
    from sqlalchemy import URL

    if not address.startswith(SQLITE):
        return address
    encoded = URL.create("sqlite", database=address.removeprefix(SQLITE))
    if encoded.render_as_string() != address:  # MLflow makes the folder of an encoded path, unless a driver is named
        encoded = encoded.set(drivername="sqlite+pysqlite")
    return encoded.render_as_string()


def existing_store(address: str) -> str:
    """An absolute address as MLflow reads it, of a store to read from.

    Raises:
        UserError: if it is a file that does not exist, because MLflow would create it.
    """
    if address.startswith(SQLITE) and not Path(address.removeprefix(SQLITE)).is_file():
        raise UserError(f"there is no MLflow store {address}")
    return client_uri(address)


def unreachable(uri: str) -> str | None:
    """Why a store cannot accept metrics, and what to do; None if it can, or if its kind is not checked."""
    if uri.startswith(SQLITE) and not writable(Path(uri.removeprefix(SQLITE))):
        return "this file cannot be written; choose another"
    if not uri.startswith(SERVERS):
        return None
    try:  # any server answers this quickly, and without authentication
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            return f"the server answers {error.code} {error.reason}; repair it"
    except (OSError, ValueError) as error:
        return f"no server answers ({getattr(error, 'reason', error)}); start it"
    from mlflow import MlflowClient

    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow and its dependencies raise many types
        return failure_reason(uri, error)
    return None


@contextmanager
def mlflow_errors(uri: str, message: str) -> Iterator[None]:
    """Raise errors of MLflow in this block as UserError.

    Args:
        uri: the store.
        message: of the error; "{reason}" in it is replaced by the reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # MLflow and its dependencies raise many types
        raise UserError(message.replace("{reason}", failure_reason(uri, error))) from error


def failure_reason(uri: str, error: Exception) -> str:
    """Why a request to a store failed, in one line, and what to set if the user can fix it."""
    from mlflow.utils.credentials import read_mlflow_creds

    user, code = read_mlflow_creds().username, getattr(error, "error_code", "")
    if code == "UNAUTHENTICATED":
        problem = (
            f"the server does not know user {user} with this password" if user else "the server requires a password"
        )
        return f"{problem}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write ~/.mlflow/credentials"
    if code == "PERMISSION_DENIED" and "Host header" in str(error):
        name = urlsplit(uri).netloc.rpartition("@")[2]
        return f"the server rejects the host name {name}: start it with --allowed-hosts {name}, or use its own name"
    if code == "PERMISSION_DENIED":
        return f"the server does not allow user {user} to do this: its administrator must grant the permission EDIT"
    first: BaseException = error  # of the network or the disk; MLflow and its libraries repeat it at length
    while (cause := first.__cause__ or first.__context__) is not None:
        first = cause
    first_sentence = re.split(r"\.? *\n|\. ", str(first).strip())[0]
    return first_sentence or type(first).__name__
