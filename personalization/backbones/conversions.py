"""GGUF files, each converted once into a folder that is read like any other model's.

The folder lies in the user's cache, as the models of the hub do: `$XDG_CACHE_HOME/chamtune/models`, or
`~/.cache/chamtune/models`. All homes and all that serve share it. It is named by the file's SHA-256, which is the
model's fingerprint on every machine, and by what converted it. It is there as a whole or not at all: one process makes
it, the others wait, and what a killed one has left is never read.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from personalization.errors import DataError, UnavailableError, first_line
from personalization.files import locked, sha256_of, write_atomic

log = logging.getLogger(__name__)

SUFFIX = ".gguf"
NOTE = "conversion.json"
"""Names the files of a conversion, each with size and SHA-256; written last."""


def is_gguf(path: Path) -> bool:
    """Whether a path can only be that of a GGUF file."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


def converted(file: Path) -> Path:
    """The folder of a GGUF file's conversion, which is made where there is none."""
    try:
        digest = sha256_of(file)
    except OSError as error:
        raise DataError(f"GGUF file {file}: {error.strerror}; give the path of one that can be read") from None
    folder = _folder() / f"{digest}-{_converter()}"
    if not _is_whole(folder):
        _make(file, folder)
    return folder


def digest_of_source(folder: Path) -> str | None:
    """SHA-256 of the GGUF file that a folder was made from, None for a folder of any other model.

    DataError where the folder is not as it was made.
    """
    if not (folder / NOTE).is_file() or folder.resolve().parent != _folder().resolve():
        return None
    noted = _noted(folder)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {NOTE}
    odd = there ^ set(noted) or {name for name, (_, digest) in noted.items() if sha256_of(folder / name) != digest}
    if odd:
        raise DataError(f"{folder / min(odd)} is missing or changed; remove the folder, and it is made again")
    return folder.resolve().name.partition("-")[0]


def _folder() -> Path:
    """Where conversions lie."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (cache if cache.is_absolute() else Path.home() / ".cache") / "chamtune" / "models"
    except RuntimeError:
        raise UnavailableError(
            "a GGUF file is converted into the user's cache, and this user has no home; set XDG_CACHE_HOME"
        ) from None


def _converter() -> str:
    """What converts: another version reads a file anew."""
    return f"{version('transformers')}-{sha256_of(Path(__file__).with_name('gguf.py'))[:8]}"


def _make(file: Path, folder: Path) -> None:
    """Convert, unless another process has done so meanwhile."""
    from safetensors import SafetensorError

    from personalization.backbones.gguf import convert

    try:
        with locked(folder.with_name(f".{folder.name}.lock")):
            if _is_whole(folder):
                return
            draft = folder.with_name(f".{folder.name}.draft")
            for left in (draft, folder):
                if left.exists():
                    shutil.rmtree(left)
            draft.mkdir()
            log.warning("%s is converted once, which may take a minute, into %s", file, folder)
            try:
                convert(file, draft)
                _write_note(draft)
                draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UnavailableError(
            f"GGUF file {file} cannot be converted into {folder}: {first_line(error)}; "
            "make room there, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error


def _write_note(folder: Path) -> None:
    noted = {}
    for path in sorted(folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file)
        noted[str(path.relative_to(folder))] = (path.stat().st_size, sha256_of(path))
    write_atomic(folder / NOTE, json.dumps(noted, indent=1))


def _noted(folder: Path) -> dict[str, tuple[int, str]]:
    """The files of a conversion; none where its note cannot be read."""
    try:
        return {name: (size, digest) for name, (size, digest) in json.loads((folder / NOTE).read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _is_whole(folder: Path) -> bool:
    """Whether all files of a conversion are there, each of its size."""
    noted = _noted(folder)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()} if noted else {}
    return bool(noted) and all(sizes.get(name) == size for name, (size, _) in noted.items())
