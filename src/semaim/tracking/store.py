"""Where MLflow keeps its runs, a SQLite file or a server: its address, and why it does not take what is sent."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from semaim.core.files import writable
from semaim.errors import UserError

SQLITE = "sqlite:///"
ANSWER_SECONDS = 5  # that a server is given to say whether it is well

# Nothing phones home or writes between our lines; and a server that does not answer is given up soon, since the journal
# keeps everything for later.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def absolute_uri(uri: str) -> str:
    """The same store from any working directory."""
    if uri.startswith(SQLITE) and not uri.startswith(SQLITE + "/"):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return uri


def existing_store(uri: str) -> str:
    """A store to read from, with its absolute address.

    Raises:
        UserError: if it is a file that does not exist, which MLflow would create.
    """
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise UserError(f"there is no MLflow store {uri} (from {Path.cwd()})")
    return absolute_uri(uri)


def unreachable(uri: str) -> str | None:
    """What keeps a store from taking metrics, and what to do; None if nothing does, or its kind is not known here."""
    if uri.startswith(SQLITE) and not writable(Path(uri.removeprefix(SQLITE))):
        return "this file cannot be written; choose another"
    if not uri.startswith(("http://", "https://")):
        return None
    try:  # which any server answers soon, and to anybody
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            return f"the server answers {error.code} {error.reason}; mend it"
    except (OSError, ValueError) as error:
        return f"no server answers ({getattr(error, 'reason', error)}); start it"
    from mlflow import MlflowClient

    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # MLflow and what lies below it raise many kinds
        return refusal(uri, error)
    return None


def refusal(uri: str, error: Exception) -> str:
    """Why a store did not do what it was asked for, and where its user can mend that, what to set; in a line."""
    from mlflow.utils.credentials import read_mlflow_creds

    user, code = read_mlflow_creds().username, getattr(error, "error_code", "")
    if code == "UNAUTHENTICATED":
        known = f"the server does not know user {user} with this password" if user else "the server wants a password"
        return f"{known}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write ~/.mlflow/credentials"
    if code == "PERMISSION_DENIED" and "Host header" in str(error):
        name = urlsplit(uri).netloc.rpartition("@")[2]
        return f"the server does not go by the name {name}: start it with --allowed-hosts {name}, or use its own name"
    if code == "PERMISSION_DENIED":
        return f"the server does not let user {user} do this: its administrator must give the permission EDIT"
    return str(error).strip().split("\n")[0] or type(error).__name__
