"""What is accepted as the address of an MLflow store and as the name of an experiment; passwords are never stored."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from semaim.cli import main
from semaim.core.store_address import SQLITE, absolute_address, check_experiment
from semaim.errors import UserError
from support.folders import contents
from support.in_process import run_here
from support.tracked import TINY

SECRET = "hunter2"
WITH_SECRETS = [
    f"http://ada:{SECRET}@127.0.0.1:9",
    f"https://{SECRET}@127.0.0.1:9",
    f"http://ada:{SECRET}/x@127.0.0.1:9",  # not escaped
    f"http://ada:{SECRET}%40127.0.0.1:9",
    f"http:/ada:{SECRET}@127.0.0.1:9",
    f"ada:{SECRET}@127.0.0.1:9",
    f"http://127.0.0.1:9?token={SECRET}",
    f"http://127.0.0.1:9/?{SECRET}",
    f"http://127.0.0.1:9/#access_token={SECRET}",
    f"postgresql://ada:{SECRET}@127.0.0.1/mlflow",
    f"mysql+pymysql://ada:{SECRET}@127.0.0.1/mlflow",
    f"postgresql://127.0.0.1/mlflow?user=ada&password={SECRET}",
    f"mssql+pyodbc:///?odbc_connect=UID%3Dada%3BPWD%3D{SECRET}",
]


@pytest.mark.parametrize("uri", WITH_SECRETS)
def test_a_password_is_refused_and_not_quoted(uri: str) -> None:
    with pytest.raises(UserError) as refused:
        absolute_address("--uri", uri)
    message = str(refused.value)
    assert SECRET not in message
    assert message.startswith("--uri")
    assert "\n" not in message
    if uri.startswith(("postgresql", "mysql", "mssql")):
        assert "~/.pgpass; or give the address of an `mlflow server`" in message
    elif not uri.endswith(f"?{SECRET}"):  # no store at all
        assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in message


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("http://mlflow.example.org:5000/", "http://mlflow.example.org:5000"),
        ("https://example.org/mlflow", "https://example.org/mlflow"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("postgresql:///mlflow", "postgresql:///mlflow"),
        ("postgresql+psycopg://ada@db:5432/mlflow?sslmode=require", None),
        ("sqlite:///a b%c#d?e@f:g'\"ü\n.db", f"{SQLITE}{{here}}/a b%c#d?e@f:g'\"ü\n.db"),
        ("sqlite:////data/x.db", "sqlite:////data/x.db"),
        ("sqlite:///~/x.db", f"{SQLITE}{{home}}/x.db"),
    ],
)
def test_accepted_addresses(uri: str, absolute: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    expected = (absolute or uri).replace("{here}", str(tmp_path)).replace("{home}", "/home/ada")
    assert absolute_address("tracking.uri", uri) == expected
    assert absolute_address("tracking.uri", expected) == expected


@pytest.mark.parametrize(
    "uri",
    ["", "mlflow.db", "runs/my.db", "sqlite:///", "sqlite://x.db", "sqlite:///x/", "sqlite:////tmp", "file:///tmp/x",
     "localhost:5000", "http://", "http://host:port", "http://host:5000/#/experiments/1", "http://a b", "ftp://x",
     "http://host\nerror: x", "sqlite:///a\0b"],
)  # fmt: skip
def test_what_is_no_address(uri: str) -> None:
    with pytest.raises(
        UserError, match=r"^tracking\.uri=.* (is no MLflow store: give sqlite:///<file> or|names no file:)"
    ):
        absolute_address("tracking.uri", uri.replace("\n", ""))
    with pytest.raises(UserError):
        absolute_address("tracking.uri", uri)


def test_an_encoded_path_beside_the_real_one_is_not_taken_for_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "x.db").touch()
    with pytest.raises(UserError, match=r"a%20b/x\.db, which does not exist, but .*/a b/x\.db does: write the path as"):
        absolute_address("--uri", f"{SQLITE}{tmp_path}/a%20b/x.db")


def test_a_path_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--uri: MLflow opens no file whose path is not UTF-8"):
        absolute_address("--uri", f"{SQLITE}{tmp_path}/" + os.fsdecode(b"\xff.db"))


@pytest.mark.parametrize("name", ["orders", "team/orders", "a b", "ü", "50 %", "..x", "x" * 255])
def test_names_of_experiments(name: str) -> None:
    check_experiment("tracking.experiment", name)


LONG = ["x" * 256, "ü" * 128, "/".join(["x" * 100] * 6)]


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "../x", "a/../b", "/x", "x/", "a//b", "a\nb", "\x1b[", "\udcff", *LONG]
)
def test_names_that_are_no_experiments(name: str) -> None:
    with pytest.raises(UserError, match=r"^tracking\.experiment='.*' cannot name an MLflow experiment") as refused:
        check_experiment("tracking.experiment", name)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "words",
    [
        TINY,
        ("-m", "seed=0,1", "sweep.check=false", *TINY),
        ("-m", "tracking.system_metrics_seconds=0,1", *TINY),
        ("task=knn", "checkpoint=mlflow:0123"),
    ],
)
@pytest.mark.parametrize("value", [f"uri=http://ada:{SECRET}@127.0.0.1:9", "experiment=../x"])
def test_a_run_that_would_store_a_password_writes_nothing(
    words: tuple[str, ...], value: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_here(tmp_path, *words, f"tracking.{value}") == 2
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert err.startswith(f"error: tracking.{value.partition('=')[0]}")
    assert err.count("\n") == 1
    assert list(tmp_path.rglob("*")) == []


def test_a_password_in_one_of_the_swept_stores(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    swept = f"tracking.uri=sqlite:///x.db,'http://ada:{SECRET}@127.0.0.1:9'"
    assert run_here(tmp_path, "-m", swept, *TINY) == 2
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert err.startswith("error: tracking.uri contains a user or password")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "words",
    [
        ("check", "tracking.uri={uri}"),
        ("check", "-m", "tracking.uri={uri},sqlite:///x.db"),
        ("report", "--uri", "{uri}"),
        ("sync", "run", "--uri", "{uri}"),
        ("rm", "run", "--yes", "--uri", "{uri}"),
        ("export", "run", "--mlflow", "--uri", "{uri}"),
        ("sync", "run"),
        ("rm", "run", "--yes"),
    ],
)
def test_no_command_shows_or_stores_a_password(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last two commands find it in the folder of an old run."""
    uri = f"http://ada:{SECRET}@127.0.0.1:9"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("a: 1\n")
    if "{uri}" not in " ".join(words):
        (tmp_path / "run" / "mlflow.json").write_text(
            f'{{"uid": "x", "uri": "{uri}", "run_id": "x", "sent": 0, "experiment": "x"}}'
        )
    before = contents(tmp_path)
    assert main([word.replace("{uri}", uri) for word in words]) == 2
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    assert "MLFLOW_TRACKING_USERNAME" in out + err
    assert contents(tmp_path) == before
