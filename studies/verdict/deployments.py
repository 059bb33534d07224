"""Deployments and their generations.

A deployment is replaced atomically; each generation is kept in the home folder, and so is what another home had put to
the same place, so that it can be rolled back. A rollback is a new generation with old content. Generation numbers only
grow at a place, whichever home writes there. MLflow's registry is told afterwards: its champion is what stands.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from personalization.deployment import CONFIG, read_config, write_files
from personalization.errors import UsageError
from personalization.files import clear_drafts, copy_atomic, locked, refuse_closed, write_atomic
from personalization.manifest import seal_of
from personalization.stages.chain import Fitted
from studies.study import OpenStudy, find_study, stored_spec
from tracking.deployed import config_digest
from tracking.parts import flat
from tracking.spool import FLUSH_S, OFF, Sender, Spool, tracking_uri
from tracking.urls import tracking_environment

log = logging.getLogger(__name__)

FILES = "files-[0-9a-f]{16}"
"""Names of folders of files."""
OURS = re.compile(rf"\.?{FILES}|\.{re.escape(CONFIG)}\.|lost\+found$")
"""Names in a place for a deployment that are no one else's: files, drafts, and what a disk has in its root."""
SHOWN = 3
"""Foreign names that are listed."""


def _kept(home: Path, out: Path) -> Path:
    """Where the generations of a deployment are kept."""
    place = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:12]
    return home / "deployments" / f"{out.stem}-{place}"


def kept_generations(kept: Path) -> dict[int, Path]:
    """The generations that a folder keeps, oldest first; one without a config was never finished, and is none."""
    found = [path for path in kept.glob("*") if path.name.isdecimal() and (path / CONFIG).is_file()]
    return dict(sorted((int(path.name), path) for path in found))


def _generations(home: Path, out: Path) -> dict[int, Path]:
    """The kept generations of a place, oldest first."""
    return kept_generations(_kept(home, out))


def generations(home: Path, out: Path) -> list[dict[str, Any]]:
    """What stood at a place, oldest first, JSON-able: generation, study, when it was promoted, what it restored."""
    found = []
    for number, path in _generations(home, out).items():
        config = read_config(path, to_answer=False)
        told = config["provenance"]
        restored = config.get("restored_from")
        row = {"generation": number, "study": told.get("study"), "at": told.get("promoted_at")}
        found.append({**row, "restored_from": restored, "config": config_digest(config)})
    return found


def _write(home: Path, out: Path, config: dict[str, Any], files: Path, replaced: dict[str, Any] | None) -> int:
    """Put a config with its folder of files to a place, and keep it and what it replaces; its generation.

    Its kept config comes last: whatever is kept has stood. Until then its files are there, so that the place cannot be
    changed and the home be full.
    """
    kept = _kept(home, out)
    standing = 0 if replaced is None else int(replaced["generation"])
    known = _generations(home, out)
    generation = max(standing, *known, 0) + 1
    if replaced is not None and standing not in known:
        _place(kept / str(standing), replaced, out / replaced["folder"])
    new = {"generation": generation, **config}
    _place_files(kept / str(generation), new, files)
    _place(out, new, files)
    _place(kept / str(generation), new, files)
    _clear(out, config["folder"], (replaced or config)["folder"])
    _clear(kept / str(generation), config["folder"])
    return generation


def _clear(folder: Path, *needed: str) -> None:
    for path in folder.glob("files-*"):
        if path.name not in needed:
            shutil.rmtree(path)


def _place(folder: Path, config: dict[str, Any], files: Path) -> None:
    """A config and its files in a folder: first the files, under their own name, then the config in one step."""
    _place_files(folder, config, files)
    write_atomic(folder / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _place_files(folder: Path, config: dict[str, Any], files: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    clear_drafts(folder, f"{FILES}|{re.escape(CONFIG)}")
    target = folder / config["folder"]
    if not target.exists():
        copy_atomic(files, target)


def stands(out: Path) -> bool:
    """Whether a deployment is at a place, be it damaged; UsageError where the place is taken by something else, OSError
    where it cannot be written.

    An empty folder, or one with what a promotion left that was killed before its config, is free.
    """
    if out.is_file():
        raise UsageError(
            f"{out} is a file, and a deployment is a folder; give --out FOLDER. A config of an earlier version is "
            "still served where it stands"
        )
    refuse_closed(out)
    if not out.exists():
        return False
    if (out / CONFIG).exists():
        return True
    foreign = sorted(path.name for path in out.iterdir() if not OURS.match(path.name))
    if foreign:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise UsageError(
            f"{out} is no deployment: it holds {', '.join(foreign[:SHOWN])}{more} and no {CONFIG}; give --out another "
            "folder, a new or an empty one"
        )
    return False


def set_aside(out: Path) -> None:
    """Give a deployment that cannot be read another name; UsageError where its folder cannot be renamed."""
    target = out.with_name(f"{out.name}.unreadable")
    try:
        out.rename(target)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be renamed to {target.name} ({error.strerror}), as a mount cannot; take what is in the way "
            "away yourself, and promote again"
        ) from None


def publish(home: Path, out: Path, config: dict[str, Any], fitted: Fitted) -> int:
    """Write a new generation of a deployment; its number. The one it replaces is noted in it, and kept."""
    replaced = read_config(out) if stands(out) else None
    previous = None if replaced is None else replaced["generation"]
    digest = None if replaced is None else config_digest(replaced)
    with tempfile.TemporaryDirectory() as name:
        described = write_files(fitted, Path(name))
        whole = {"previous_generation": previous, "previous_digest": digest, **config, **described}
        whole["seal"] = seal_of(whole)
        return _write(home, out, whole, Path(name) / described["folder"], replaced)


def published(home: Path, out: Path, state: str) -> int | None:
    """The newest generation in which the result of a study in this state was written to this place, if it was."""
    for generation, path in reversed(_generations(home, out).items()):
        config = read_config(path, to_answer=False)
        if config["provenance"].get("state") == state and "restored_from" not in config:
            return generation
    return None


@contextmanager
def located(place: str, home: Path, tracking: str | None = None) -> Iterator[Path]:
    """A deployment's folder: at this path, or a `models:/` version of MLflow's registry, which is fetched."""
    if not place.startswith("models:/"):
        yield Path(place)
        return
    uri = tracking_uri(home, tracking)
    os.environ.update(tracking_environment(uri))
    from tracking.registry import download

    with tempfile.TemporaryDirectory() as name:
        yield download(place, uri, Path(name))


def registry_name(home: Path, out: Path) -> str:
    """The registered model of a deploy config: one for each place, with the letters that a registry takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"chamtune-{_kept(home, out).name}")


def roll_back(home: Path, out: Path, to: int | None = None) -> tuple[int, int]:
    """Bring back what the deployment replaced, or the kept generation `to`: (new generation, the restored one)."""
    current = read_config(out, to_answer=False)
    known = _generations(home, out)
    kept = _predecessor(home, out, current) if to is None else known.get(to)
    if kept is None:
        others = ", ".join(str(number) for number in known if number != current["generation"])
        why = _nothing_before(current, home) if to is None else f"generation {to} is not kept in {home}"
        raise UsageError(f"{out}: {why}{f'; --to brings back one of {others}' if others else ''}")
    restored = read_config(kept)
    previous = int(restored.pop("generation"))
    files = kept / restored["folder"]
    return _write(home, out, {**restored, "restored_from": previous}, files, current), previous


def _nothing_before(config: dict[str, Any], home: Path) -> str:
    """Why a config cannot give way to what it replaced, for a message."""
    number, origin = config["generation"], config.get("restored_from")
    content = "" if origin is None else f" has the content of generation {origin}, which"
    previous = config.get("previous_generation")
    what = "nothing" if previous is None else f"generation {previous}, which is not kept in {home}"
    return f"generation {number}{content} replaced {what}"


def _predecessor(home: Path, out: Path, current: dict[str, Any]) -> Path | None:
    """What a config replaced. A moved one has left its generations at its old place, where the digest finds them."""
    previous, digest = current.get("previous_generation"), current.get("previous_digest")
    if previous is None:
        return None
    elsewhere = sorted((home / "deployments").glob(f"*/{previous}"))
    for path in [_kept(home, out) / str(previous), *elsewhere]:
        if (path / CONFIG).is_file() and config_digest(read_config(path)) == digest:
            return path
    return None


def untracked(opened: OpenStudy, out: Path, generation: int, trial: int) -> bool:
    """Whether a generation that this home wrote to a place never got to the spool: its promotion died before that."""
    place = _kept(opened.home, out) / str(generation)
    if opened.spec.tracking == OFF or not place.exists() or "restored_from" in read_config(out):
        return False
    known = Spool(opened.home, opened.spec.name, opened.record["id"]).records()
    key = _key(trial, generation)
    return not any(record["kind"] == "model" and record["key"] == key for record, _ in known)


def _key(trial: int, generation: int) -> str:
    """Tells the run of a promotion from others of the study."""
    return f"promoted-{trial}-{generation}"


def track(opened: OpenStudy, out: Path, result: dict[str, Any], generation: int) -> None:
    """Spool a promoted result and its registry version, and let MLflow have them. Call it without a lock: it waits."""
    if opened.spec.tracking == OFF:
        return
    spool = Spool(opened.home, opened.spec.name, opened.record["id"])
    folder = opened.home / "results" / opened.spec.name / "confirm"
    kept = _kept(opened.home, out) / str(generation)
    shutil.rmtree(folder / "deploy", ignore_errors=True)
    shutil.copytree(kept if (kept / CONFIG).exists() else out, folder / "deploy")
    confirm, key = result["confirm"], _key(result["trial"], generation)
    tests = {"delta_accuracy": confirm["delta_accuracy"], "p_value": confirm["p_accuracy"]}
    metrics = {**confirm["metrics"], **tests, **_told(confirm)}
    tags = {"measured_on": "confirm", "generation": str(generation)}
    spool.append_result("promoted", key, folder, result["params"], metrics, tags)
    place = {"name": registry_name(opened.home, out), "out": str(out.resolve())}
    digest = config_digest(read_config(folder / "deploy"))
    spool.append({"kind": "model", **place, "key": key, "generation": generation, "digest": digest})
    Sender(spool, tracking_uri(opened.home, opened.spec.tracking)).finish(FLUSH_S)


def _told(confirm: dict[str, Any]) -> dict[str, float]:
    """The parts of the gain and the cost, of a look that has them."""
    cost = {name: value for name, value in confirm.get("cost", {}).items() if value is not None}
    return {**(flat(confirm["parts"]) if "parts" in confirm else {}), **cost}


def roll_back_deployment(
    home: Path, out: Path, storage: str | None = None, tracking: str | None = None, to: int | None = None
) -> tuple[int, int]:
    """Bring back the config that the present one replaced, or that of the kept generation `to`, and move the
    registry's alias: (generation, restored).

    MLflow is told at the place of the study that is rolled back. Where that study is not known here, it is said.
    """
    provenance = read_config(out, to_answer=False)["provenance"]
    kept = home / "deployments"
    with locked(kept / ".lock") if kept.is_dir() else nullcontext():  # a home that keeps nothing is not made
        generation, restored = roll_back(home, out, to)
        digest = config_digest(read_config(out))
    try:
        uri = tracking or stored_spec(find_study(provenance["study"], home, storage)).tracking
    except UsageError as error:
        log.warning("MLflow's champion is not moved: %s", error)
        return generation, restored
    if uri != OFF:
        spool = Spool(home, provenance["study"], provenance["study_id"])
        place = {"name": registry_name(home, out), "out": str(out.resolve())}
        spool.append({"kind": "rollback", **place, "digest": digest})
        Sender(spool, tracking_uri(home, uri)).finish(FLUSH_S)
    return generation, restored
