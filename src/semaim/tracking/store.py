"""MLflow stores, a SQLite file or a server: addresses, reachability, reasons of failure."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from semaim.core.files import writable
from semaim.errors import UserError

SQLITE = "sqlite:///"
HEALTH_TIMEOUT_SECONDS = 5

# No telemetry, and no output of MLflow's own. Requests to an unreachable server fail soon, since the journal keeps
# everything for later.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def absolute_uri(uri: str) -> str:
    """The address of a store, independent of the working directory."""
    if uri.startswith(SQLITE) and not uri.startswith(SQLITE + "/"):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return uri


def existing_store(uri: str) -> str:
    """The absolute address of a store to read from.

    Raises:
        UserError: if it is a file that does not exist, because MLflow would create it.
    """
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise UserError(f"there is no MLflow store {uri} (from {Path.cwd()})")
    return absolute_uri(uri)


def unreachable(uri: str) -> str | None:
    """Why a store cannot accept metrics, and what to do; None if it can, or if its kind is not checked."""
    if uri.startswith(SQLITE) and not writable(Path(uri.removeprefix(SQLITE))):
        return "this file cannot be written; choose another"
    if not uri.startswith(("http://", "https://")):
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
    first_sentence = re.split(r"\.? *\n|\. ", str(error).strip())[0]
    return first_sentence or type(error).__name__
