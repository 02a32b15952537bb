"""Commands that show a page of MLflow."""

from __future__ import annotations

import shlex

from semaim.core.store_address import SERVERS, absolute_address
from semaim.runs.folder import RunFolder
from semaim.tracking.store import client_uri
from semaim.tracking.views import view_key

DEFAULT_URI = "sqlite:///mlflow.db"  # short enough to be shown as it is
LOCAL_SERVER = "http://127.0.0.1:5000"  # default address of mlflow ui


def tracked_page_commands(folder: RunFolder, compare: bool = False) -> dict[str, str]:
    """Commands that show a run where it was sent to, by purpose; none for a run without MLflow.

    Args:
        folder: the run folder.
        compare: show the table of the runs of this sweep instead.
    """
    state = folder.tracked()
    return {} if state is None or "uri" not in state else run_page_commands(state["uri"], folder, compare)


def run_page_commands(address: str, folder: RunFolder, compare: bool = False) -> dict[str, str]:
    """Commands that show a run in a store, or the experiments if it has not been sent, by purpose."""
    state = folder.tracked()
    if not state or not state["run_id"]:
        return page_commands(address, "")
    runs = f"/{state['experiment_id']}/runs"
    if compare:
        return page_commands(address, runs, f"&viewStateShareKey={view_key(state['run_id'])}")
    return page_commands(address, f"{runs}/{state['run_id']}")


def page_commands(address: str, page: str, more: str = "") -> dict[str, str]:
    """Commands that show a page, by purpose.

    Args:
        address: of the store, absolute (see `semaim.core.store_address`).
        page: what follows `experiments` in the address of the page: `/<experiment id>/runs/<run id>`, or empty.
        more: what the address ends with.
    """
    page = f"/#/experiments{page}?workflowType=machine_learning{more}"  # MLflow also has pages for language models
    if address.startswith(SERVERS):
        return {"look at it": f"open {address}{page}"}
    shown = DEFAULT_URI if address == absolute_address("tracking.uri", DEFAULT_URI) else client_uri(address)
    return {
        "look at it": shlex.join(["mlflow", "ui", "--backend-store-uri", shown]),
        "and open": f"{LOCAL_SERVER}{page}",
    }
