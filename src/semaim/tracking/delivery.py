"""Delivery of a run folder to MLflow.

Everything in MLflow is written to the run folder first: configuration, environment, journal. `Delivery` sends new
content and stores its position in `mlflow.json`, so it can be interrupted anywhere and repeated. `semaim sync` does the
same on request.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from semaim.config.naming import flatten
from semaim.core.files import write_json
from semaim.core.locks import one_at_a_time
from semaim.core.store_address import SQLITE, check_experiment
from semaim.errors import DamagedFile, UserError
from semaim.runs.folder import RunFolder, Tracked
from semaim.runs.journal import Evaluated, Line, read
from semaim.tracking import images
from semaim.tracking.datasets import dataset_input
from semaim.tracking.models import log_model, model_of
from semaim.tracking.run_names import encodable, stored_name
from semaim.tracking.store import client_uri, name_store, store_of_folder
from semaim.tracking.views import general_view, sweep_view

log = logging.getLogger(__name__)
MAX_VALUE = 6000  # MLflow silently truncates longer parameter values
PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
CONFLICT_RETRIES, CONFLICT_WAIT_SECONDS = 5, 1.0
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # not a language model's
    "mlflow.note.content": "Runs of semaim. *Views* has a table of each sweep; the page of a run says how to repeat it",
    **dict([general_view()]),
}
# Error codes of a server that does not know a request, since it is older than this client.
UNKNOWN_REQUEST = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")


def parameters(config: dict[str, Any]) -> dict[str, str]:
    """The configuration as MLflow parameters: dotted keys, values within MLflow's limits."""
    flat = {key: encodable(str(value)) for key, value in flatten(config).items()}
    return {
        k: v if len(v) <= MAX_VALUE else v[: MAX_VALUE - 30] + "... (cut; see config.yaml)" for k, v in flat.items()
    }


class Delivery:
    """Sends one run folder's content to MLflow.

    Args:
        folder: the run folder.
        uri: tracking store; default: that of the first delivery, stored in mlflow.json.
        experiment: name of the MLflow experiment, likewise.
        option: where the uri is given, for messages.

    Raises:
        UserError: if the run was not tracked, or for an address or a name that is not accepted
            (see `semaim.core.store_address` and `store_of_folder`).
    """

    def __init__(
        self, folder: RunFolder, uri: str | None = None, experiment: str | None = None, option: str = "tracking.uri"
    ) -> None:
        self.folder = folder
        self.file = folder.path / "mlflow.json"
        known: dict[str, Any] | None = folder.tracked()  # type: ignore[assignment]
        stored = None if known is None else dict(known)
        if stored is None:
            if uri is None:
                raise UserError(f"{folder.path} was run without MLflow: give --uri, such as --uri sqlite:///mlflow.db")
            stored = {"experiment": "semaim", "uid": uuid.uuid4().hex, "run_id": None, "sent": 0}
        address = store_of_folder(folder.path, stored["uri"]) if uri is None else name_store(option, uri)
        if stored.get("uri", "").rstrip("/") not in ("", address):  # another store does not have this run yet
            stored |= {"run_id": None, "sent": 0}
        stored["uri"] = address
        if experiment is not None and stored["run_id"] is None:
            stored["experiment"] = experiment
        check_experiment("the name of the experiment", stored["experiment"])
        self.state: dict[str, Any] = stored
        if stored != known:  # else another process may just have noted what it has sent
            write_json(self.file, stored)
        self._client: Any = None
        self._models: dict[str, str | None] = {}  # ids, by the run folder of the pretraining

    def deliver(self) -> int:
        """Send everything that has not been sent; one process at a time.

        Returns:
            number of metric points sent.

        Raises:
            Exception: any error of MLflow when the store is unreachable; the position of what was sent is stored.
        """
        if self._client is None:
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports each table of a new database
            logging.getLogger("alembic").setLevel(logging.WARNING)
            with _database_locked(self.state["uri"]):
                self._client = MlflowClient(client_uri(self.state["uri"]))
                self._client.search_experiments(max_results=1)
        with one_at_a_time(self.folder.path / ".mlflow.lock", f"sending of {self.folder.path} to MLflow"):
            self.state |= self.folder.tracked() or {}
            if self.state["run_id"] is None:
                self._open_run()
            return self._send_journal()

    def _update_state(self, **changes: Any) -> None:
        self.state |= changes
        write_json(self.file, self.state)

    def _open_run(self) -> None:
        """Create the MLflow run, or find the run that an interrupted attempt created."""
        from mlflow.entities import Param

        experiment_id = self._experiment_id()
        marker = "semaim.uid"
        runs = self._client.search_runs([experiment_id], f"tags.`{marker}` = '{self.state['uid']}'", max_results=1)
        if not runs:
            tags = {marker: self.state["uid"], "run_folder": encodable(str(self.folder.path)), **self._parent()}
            tags |= {"mlflow.user": user} if (user := self.folder.last_start().get("user")) else {}
            # when the run started: this may be much later
            start_time = next((line["time"] for _, line in read(self.folder.journal, 0)), None)
            runs = [self._client.create_run(experiment_id, start_time, tags, encodable(stored_name(self.folder)))]
        run_id = runs[0].info.run_id
        params = [Param(key, value) for key, value in parameters(self.folder.config()).items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
        self._client.log_artifact(run_id, str(self.folder.path / "config.yaml"))
        self._update_state(run_id=run_id, experiment_id=experiment_id)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.state["experiment"]
        if (known := self._client.get_experiment_by_name(name)) is None:
            uri = self.state["uri"]
            database = Path(uri.removeprefix(SQLITE))
            artifact_location = (database.parent / "mlartifacts" / name).as_uri() if uri.startswith(SQLITE) else None
            try:
                return str(
                    self._client.create_experiment(name, artifact_location=artifact_location, tags=EXPERIMENT_TAGS)
                )
            except MlflowException:  # another process created it meanwhile
                if (known := self._client.get_experiment_by_name(name)) is None:
                    raise
        if known.lifecycle_stage == "deleted":
            raise UserError(f"the MLflow experiment {name} is deleted: restore it, or set tracking.experiment")
        return str(known.experiment_id)

    def _parent(self) -> dict[str, str]:
        """The tag of the parent run, if the configuration names its folder as parent_run."""
        path = self.folder.config().get("parent_run")
        if path is None or not (Path(path) / "config.yaml").is_file():
            return {}
        parent = Delivery(RunFolder(Path(path)), self.state["uri"], self.state["experiment"])
        parent.deliver()
        return {"mlflow.parentRunId": parent.state["run_id"]}

    def _send_journal(self) -> int:
        """Send the journal lines after the position of the last delivery."""
        from mlflow.entities import Metric

        points: list[Any] = []
        total = 0
        offset = self.state["sent"]
        if offset > self.folder.journal.stat().st_size:
            log.warning("%s is shorter than what was sent of it: it is sent again", self.folder.journal)
            offset = 0

        def flush() -> None:
            nonlocal total
            if points:
                self._send_points(points)
                total += len(points)
                points.clear()
            if offset != self.state["sent"]:
                self._update_state(sent=offset)

        for next_offset, line in read(self.folder.journal, offset):
            of = self._measured(line["of"]) if "of" in line else {}
            new = [Metric(k, float(v), line["time"], line["step"], **of) for k, v in line.get("metrics", {}).items()]
            if len(points) + len(new) > METRICS_PER_CALL or "metrics" not in line:
                flush()
            points += new
            if "metrics" not in line:
                self._send_other(line)
            offset = next_offset
        flush()
        return total

    def _send_points(self, points: list[Any]) -> None:
        """Send points, again if a server that did not answer in time is still storing the same points."""
        from mlflow.exceptions import MlflowException

        for remaining in reversed(range(CONFLICT_RETRIES + 1)):
            try:
                self._client.log_batch(self.state["run_id"], metrics=points)
                return
            except MlflowException as error:  # BAD_REQUEST: the database found the points of the other request
                if error.error_code != "BAD_REQUEST" or not remaining:
                    raise
                time.sleep(CONFLICT_WAIT_SECONDS)

    def _measured(self, of: Evaluated) -> dict[str, Any]:
        """What a metric of an evaluation measures: the model of a pretraining, if this store has it, and the images."""
        from mlflow.entities import LoggedModelInput

        if of["run_folder"] not in self._models:
            model_id = None
            with unknown_request_skipped():
                if (model_id := model_of(self._client, of["run_folder"], self.state["uri"])) is not None:
                    self._client.log_inputs(self.state["run_id"], models=[LoggedModelInput(model_id)])
            self._models[of["run_folder"]] = model_id
        if (model_id := self._models[of["run_folder"]]) is None:
            return {}
        dataset = {"dataset_name": of["name"], "dataset_digest": of["digest"]}
        return {"model_id": model_id, "run_id": self.state["run_id"], **dataset}

    def _own_file(self, name: str) -> Path | None:
        """A file that the journal names, if it exists in the run folder."""
        file = self.folder.path / name
        return file if file.is_file() and file.resolve().is_relative_to(self.folder.path.resolve()) else None

    def _send_other(self, line: Line) -> None:
        """Send a line without metrics."""
        from mlflow.entities import RunTag

        run_id = self.state["run_id"]
        if tags := [RunTag(key, encodable(value)) for key, value in line.get("tags", {}).items()]:
            self._client.log_batch(run_id, tags=tags)
        if (artifact := line.get("artifact")) and (file := self._own_file(artifact)):
            artifact_path = Path(artifact).parent.as_posix()
            self._client.log_artifact(run_id, str(file), None if artifact_path == "." else artifact_path)
        if (image := line.get("image")) and (file := self._own_file(image["file"])):
            try:
                with images.files_for_mlflow(file, image["key"], line["step"], line["time"]) as files:
                    self._client.log_artifacts(run_id, str(files), images.ARTIFACT_FOLDER)
                self._client.set_tag(run_id, images.TAG, "True")
            except DamagedFile as error:
                log.warning("%s", error)
        with unknown_request_skipped():
            if used := line.get("dataset"):
                self._client.log_inputs(run_id, [dataset_input(used)])
            if params := line.get("model"):
                log_model(self._client, self.folder, self.state, params, line["step"])
            if view := line.get("view"):
                tag = sweep_view(view, cast(Tracked, self.state), line["time"])
                self._client.set_experiment_tag(self.state["experiment_id"], *tag)
        if (status := line.get("status")) == "RUNNING":
            self._client.update_run(run_id, status=status)
            self._client.log_artifact(run_id, str(self.folder.path / "environment.json"))
        elif status == "SCHEDULED":  # requeued, not terminated
            self._client.update_run(run_id, status=status)
        elif status:
            self._client.set_terminated(run_id, status, end_time=line["time"])


@contextmanager
def unknown_request_skipped() -> Iterator[None]:
    """Leave out what an older server does not have; the rest is sent."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in UNKNOWN_REQUEST:
            raise
        log.info("this MLflow server does not store all that semaim sends: %s", error)


def deliver(folder: RunFolder) -> None:
    """Deliver a run folder if it is tracked and MLflow is reachable; if not, `semaim sync` can deliver it later."""
    if (folder.path / "mlflow.json").is_file():
        with suppress(Exception):  # any error: the journal keeps everything
            try:
                Delivery(folder).deliver()
            except UserError as error:
                log.warning("MLflow does not receive this: %s", error)


@contextmanager
def _database_locked(uri: str) -> Iterator[None]:
    """Let the first process create a SQLite file before others open it, since opening an incomplete file fails."""
    if not uri.startswith(SQLITE):
        yield
        return
    database = Path(uri.removeprefix(SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(database.with_name(database.name + ".lock"), f"opening of {database}", True):
        yield
