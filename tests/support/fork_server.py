"""Python programs in new processes without the seconds of importing torch, timm, scikit-learn and MLflow.

A server has imported other projects' libraries. For each command it forks a process that imports semaim itself and runs
the module as `python -m` does: own pid, arguments, environment, working directory, streams, signals and exit code.
A server belongs to one test process and ends with it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = (
    "hydra.main", "mlflow", "mlflow.models", "mlflow.pytorch", "mlflow.tracking._model_registry.fluent", "numpy",
    "psutil", "PIL.Image", "sklearn.linear_model", "sklearn.pipeline", "sklearn.preprocessing", "sqlalchemy",
    "submitit", "timm", "torch", "torch.distributed.run", "torchvision.transforms.v2",
)  # fmt: skip
# Variables that Python or a library reads only once, during its import.
READ_AT_IMPORT = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH", "LC_", "LANG", "HF_")
MESSAGE = 1 << 17  # bytes of a request


class ForkedProcess:
    """The part of `subprocess.Popen` that tests use, for a process that the server started.

    Attributes:
        pid: process id.
        returncode: exit code, or minus the signal that ended it; None while it runs.
        stdout: its output and errors as text.
    """

    def __init__(self, command: Sequence[str], status: socket.socket, stdout: int) -> None:
        self.args = list(command)
        self.stdout = open(stdout, encoding="utf-8", errors="replace")  # noqa: SIM115
        fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, 1 << 20)  # a run must not wait until a test reads its status lines
        self.returncode: int | None = None
        self._status = status
        started = status.recv(64)
        assert started, "the server has ended; its standard error says why"
        self.pid = int(started)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._status.settimeout(timeout or 1e-6 if timeout is not None else None)
            try:
                self.returncode = int(self._status.recv(64))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Read the output to its end, then wait for the end of the process."""
        if self.stdout.closed:
            return "", None
        deadline = None if timeout is None else time.monotonic() + timeout
        parts = []
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0, output=b"".join(parts))
                if not (part := os.read(self.stdout.fileno(), 1 << 16)):
                    break
                parts.append(part)
        self.stdout.close()
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return b"".join(parts).decode(errors="replace").replace("\r\n", "\n"), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The server, from the side of the tests.

    Args:
        environment: variables of the server; a command whose values of READ_AT_IMPORT differ needs a new interpreter.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=self.environment | {"MLFLOW_DISABLE_TELEMETRY": "true"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def can_run(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a command is `python -m ...` and finds the libraries as if it had imported them."""

        def early(variables: Mapping[str, str]) -> dict[str, str]:
            names = [name for name in variables if name.startswith(READ_AT_IMPORT) and name != "PYTHONPATH"]
            return {name: variables[name] for name in names}

        return list(command[:2]) == [sys.executable, "-m"] and early(environment) == early(self.environment)

    def start(
        self, command: Sequence[str], cwd: Path, environment: Mapping[str, str], new_session: bool
    ) -> ForkedProcess:
        """Start `python -m <module> ...`, without standard input; its output and errors go to one pipe."""
        request = {
            "command": list(command), "cwd": str(cwd), "environment": dict(environment),
            "new_session": new_session,
        }  # fmt: skip
        output, write = os.pipe()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with open(os.devnull) as nothing, theirs:
            try:
                descriptors = [nothing.fileno(), write, write, theirs.fileno()]
                socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
            finally:
                os.close(write)
        return ForkedProcess(request["command"], ours, output)


def serve(control: socket.socket) -> list[str]:
    """Fork a process for each request. Returns only there: the words after `python -m`."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE, 4)
        if not message:
            os._exit(0)  # the tests are over
        if os.fork() == 0:
            control.close()
            return watch(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def watch(request: dict[str, Any], descriptors: list[int]) -> list[str]:
    """Start a process and report its pid and its exit code. Returns only there."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, status = descriptors
    if (process := os.fork()) == 0:
        os.close(status)
        return become(request, streams)
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(OSError):  # the tests may have ended
        os.write(status, str(process).encode())
        _, how = os.waitpid(process, 0)
        os.write(status, str(os.waitstatus_to_exitcode(how)).encode())
    os._exit(0)


def become(request: dict[str, Any], streams: list[int]) -> list[str]:
    """Turn this process into what `python -m` would be before it runs the module."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
    if request["new_session"]:
        os.setsid()
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    more = request["environment"].get("PYTHONPATH", "")
    sys.path[:0] = [request["cwd"], *filter(None, more.split(os.pathsep))]
    sys.orig_argv = request["command"]
    return request["command"][2:]


def run_module(module: str, *arguments: str) -> None:
    """Run a module as `python -m` does, and leave its exit code for `leave`."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        codes.append(0)
    except SystemExit as leaving:
        if isinstance(leaving.code, int | None):
            codes.append(leaving.code or 0)
        raise
    except Exception:
        codes.append(1)
        raise


def leave() -> None:
    """End the process after all other exit functions.

    To free a million imported objects one by one takes seconds, and after `gc.freeze` triton reports leaks.
    semaim ends itself likewise (core/interpreter.py), but not torchrun, nor Hydra's own exits such as that of --help.
    """
    if codes:
        with contextlib.suppress(OSError, ValueError):  # a closed stream
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(codes[0] & 0xFF)


def main() -> None:
    atexit.register(leave)  # the first one registered is called last
    sys.path.pop(0)  # the folder of this file
    for library in LIBRARIES:
        __import__(library)
    import numpy

    assert threading.active_count() == 1, threading.enumerate()  # a fork copies only the thread that forks
    gc.freeze()  # a collection in a forked process would copy all memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # watching processes end by themselves
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    numpy.random.seed(int.from_bytes(os.urandom(4)))
    run_module(*words)


codes: list[int] = []

if __name__ == "__main__":
    main()
