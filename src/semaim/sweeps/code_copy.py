"""The code of a submission: a copy that its jobs import (`sweep.snapshot`), or checksums that tell what has changed.

<sweep>/code/<checksum>/         a copy: this package, and the modules of the configuration's own `_target_`s
             <checksum>.json     checksums of this package's files, where there is no copy
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from semaim.core.files import write_json, writing
from semaim.core.formatting import count, quoted
from semaim.errors import UserError
from semaim.runs.provenance import COPIED_FROM, PACKAGE, CodeVersion, checksum, checksums, code_version

MAX_BYTES = 200e6  # of a copy
INSTALLED = ("site-packages", "dist-packages")
IGNORED = shutil.ignore_patterns("__pycache__", ".*")


def fix_code(sweep: Path, configs: Sequence[Mapping[str, Any]], copy: bool) -> tuple[dict[str, Any], str | None]:
    """Copy the code, or store its checksums.

    Args:
        sweep: folder of the sweep.
        configs: configurations of its runs.
        copy: whether to copy it.

    Returns:
        its version, and the folder of the copy.

    Raises:
        UserError: if a module of the configuration's own is too large to be copied.
        CannotWrite: if the copy cannot be written.
    """
    version = code_version()
    if not copy:
        file = checksums_file(sweep, version)
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, checksums())
        return dict(version), None
    plugin = "hydra_plugins/semaim_launchers.py"
    sources = {plugin: PACKAGE.parent / plugin, PACKAGE.name: PACKAGE}
    sources |= {path.name: path for path in _own_modules(configs)}
    files = {name: list(_files(path)) for name, path in sources.items()}
    for name, paths in files.items():
        if (size := sum(path.stat().st_size for path in paths)) > MAX_BYTES:
            raise UserError(f"{quoted(sources[name])} has {count(size, 'B')}, too much to be copied for the jobs: keep "
                            f"its data elsewhere, or set sweep.snapshot=false")  # fmt: skip
    contents = [f"{name} {path} {checksum(path.read_bytes())}" for name, paths in files.items() for path in paths]
    folder = sweep / "code" / checksum("\n".join(contents).encode())
    if not folder.is_dir():
        _copy(sources, folder, version)
    return dict(version), str(folder)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for parent, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(set(folders) - IGNORED(parent, folders))
        yield from (Path(parent, name) for name in sorted(set(names) - IGNORED(parent, names)))


def _copy(sources: Mapping[str, Path], folder: Path, version: CodeVersion) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with writing(folder):
        try:
            for name, path in sources.items():
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, target, ignore=IGNORED)
                else:
                    shutil.copy2(path, target)
            write_json(temporary / COPIED_FROM, version)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _own_modules(configs: Sequence[Mapping[str, Any]]) -> Iterator[Path]:
    """The modules and packages of `_target_`s that are not installed."""
    targets = {value for config in configs for value in _targets(config)}
    places = [str(Path.cwd()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    for name in sorted({target.split(".")[0] for target in targets} - {PACKAGE.name}):
        spec = PathFinder.find_spec(name, places)
        found = () if spec is None else spec.submodule_search_locations or (spec.origin,)
        for path in (Path(each) for each in found if each is not None):
            if path.exists() and not {*INSTALLED} & {*path.parts}:
                yield path


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (str(target) for key, target in value.items() if key == "_target_")
        for each in value.values():
            yield from _targets(each)
    elif isinstance(value, list):
        for each in value:
            yield from _targets(each)


def checksums_file(sweep: Path, version: Mapping[str, Any]) -> Path:
    """File of the checksums of a version of this package."""
    return sweep / "code" / f"{version.get('sources', 'unknown')}.json"
