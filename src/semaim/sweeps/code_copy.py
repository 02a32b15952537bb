"""The code of a submission: a copy that its jobs import (`sweep.snapshot`), and checksums that tell what has changed.

<sweep>/code/<checksum>/         a copy: this package, the modules of the configuration's own `_target_`s, and those
                                 which these import
             <checksum>.json     checksums of this package's files
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from semaim.core.files import write_json, writing
from semaim.core.formatting import count, quoted
from semaim.errors import UserError
from semaim.runs.provenance import COPIED_FROM, PACKAGE, CodeVersion, checksum, checksums, code_version

MAX_BYTES = 200e6  # of a copy
PLUGIN = "hydra_plugins/semaim_launchers.py"
INSTALLED = ("site-packages", "dist-packages")
IGNORED = shutil.ignore_patterns("__pycache__", ".*")


def fix_code(sweep: Path, configs: Sequence[Mapping[str, Any]], copy: bool) -> tuple[dict[str, Any], str | None]:
    """Store the checksums of the code, and a copy of it.

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
    file = checksums_file(sweep, version)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, checksums())
    if not copy:
        return dict(version), None
    files = [(PACKAGE.parent, path) for path in (PACKAGE.parent / PLUGIN, *_files(PACKAGE))]
    files += [(path.parent, each) for path in _own_modules(configs) for each in _files(path)]
    contents = [f"{path.relative_to(place)} {path} {checksum(path.read_bytes())}" for place, path in files]
    folder = sweep / "code" / checksum("\n".join(contents).encode(errors="surrogateescape"))
    if not folder.is_dir():
        _copy(files, folder, version)
    return dict(version), str(folder)


def _files(module: Path) -> list[Path]:
    """The files of a module or package; of links, what they lead to, if there is something.

    Raises:
        UserError: if they are too large to be copied.
    """
    found = [module]
    for parent, folders, names in os.walk(module, followlinks=True):
        folders[:] = sorted(set(folders) - IGNORED(parent, folders))
        found += [Path(parent, name) for name in sorted(set(names) - IGNORED(parent, names))]
    found = [path for path in found if path.is_file()]
    if (size := sum(path.stat().st_size for path in found)) > MAX_BYTES:
        raise UserError(f"{quoted(module)} has {count(size, 'B')}, too much to be copied for the jobs: keep its data "
                        f"elsewhere, or set sweep.snapshot=false")  # fmt: skip
    return found


def _copy(files: Iterable[tuple[Path, Path]], folder: Path, version: CodeVersion) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with writing(folder):
        try:
            for place, path in files:
                target = temporary / path.relative_to(place)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
            write_json(temporary / COPIED_FROM, version)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _own_modules(configs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The modules and packages of `_target_`s, and what these import, that are not installed."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    places = [each for each in (Path(name).absolute() for name in ("", *named)) if not {*INSTALLED} & {*each.parts}]
    names = targets = {target.split(".")[0] for config in configs for target in _targets(config)}
    seen = {PACKAGE.name}
    modules: list[Path] = []
    while new := names - seen:
        seen |= new
        specs = [PathFinder.find_spec(name, [*map(str, places), *sys.path]) for name in sorted(new)]
        found = [Path(each) for spec in specs if spec is not None
                 for each in spec.submodule_search_locations or (spec.origin,) if each is not None]  # fmt: skip
        found = [path for path in found if path.parent in places  # a folder without modules may hold images
                 and (path.is_file() or path.name in targets or any(path.glob("*.py")))]  # fmt: skip
        modules += found
        names = {name for path in found for file in _files(path) if file.suffix == ".py" for name in _imports(file)}
    return modules


def _imports(file: Path) -> Iterator[str]:
    """The packages that a source file imports by their names."""
    with suppress(SyntaxError, ValueError):  # Python says so when it is imported
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0]


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
