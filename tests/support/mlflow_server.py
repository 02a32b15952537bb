"""A real `mlflow server` on a free port of this machine, and a real PostgreSQL server as its store."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path
from typing import Any

from support.commands import ENVIRONMENT
from support.waiting import PATIENCE, wait_for


def free_port() -> int:
    """A port without a listener."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """An `mlflow server` that can be stopped and restarted on the same port and store.

    The store is a database URI, by default a SQLite file in `place`; `options` are further ones of `mlflow server`.
    """

    def __init__(self, place: Path, store: str | None = None, options: tuple[str, ...] = ()) -> None:
        self.place = place
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.options = ("--backend-store-uri", store or f"sqlite:///{place}/server.db", "--workers", "1", *options)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is not None:
            return
        with open(self.place / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), *self.options],
                cwd=self.place,
                env=ENVIRONMENT | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.answers, f"the server; see {self.place}/server.log")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False


class PostgreSQL:
    """A private PostgreSQL server on 127.0.0.1 without a password."""

    # A shell starts the server and stops it at the end of its input, hence also when the tests are killed.
    KEEPER = """
        if "$0/initdb" -D "$1/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >"$1/log" 2>&1; then
            "$0/postgres" -D "$1/data" -h 127.0.0.1 -p "$2" -k "" -F >>"$1/log" 2>&1 &
            read -r _
            kill -QUIT $!
            wait
        fi
        cat "$1/log"
        rm -r "$1"
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.names = (f"store_{number}" for number in count())
        self.keeper: subprocess.Popen[str] | None = None

    @staticmethod
    def programs() -> Path | None:
        """Folder with the programs of the newest PostgreSQL version."""
        found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
        return max((path.parent for path in found), key=lambda folder: int(folder.parent.name), default=None)

    @classmethod
    def missing(cls) -> str | None:
        """Reason why no server can be started, or None."""
        if cls.programs() is None:
            return "needs PostgreSQL: apt-get install -y --no-install-recommends postgresql"
        return None if importlib.util.find_spec("psycopg") else "needs psycopg: pip install 'psycopg[binary]'"

    def start(self) -> None:
        folder = tempfile.mkdtemp(prefix="semaim-postgres-")
        account: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            account = {"user": "postgres", "group": "postgres", "extra_groups": ()}
            shutil.chown(folder, "postgres")
        self.keeper = keeper = subprocess.Popen(
            ["sh", "-c", self.KEEPER, str(self.programs()), folder, str(self.port)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **account,
        )
        wait_for(lambda: self.client("pg_isready", check=False) == 0 or keeper.poll() is not None, f"{folder}/log")
        assert keeper.poll() is None, keeper.communicate()[0]

    def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.communicate(timeout=PATIENCE)
            self.keeper = None

    def database(self) -> str:
        """Create an empty database and return its URI."""
        name = next(self.names)
        self.client("createdb", name)
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def client(self, program: str, *arguments: str, check: bool = True) -> int:
        """Run a PostgreSQL program, such as pg_isready, and return its exit code."""
        words = [f"{self.programs()}/{program}", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", *arguments]
        return subprocess.run(words, stdout=subprocess.DEVNULL, timeout=PATIENCE, check=check).returncode
