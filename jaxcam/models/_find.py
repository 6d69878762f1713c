"""Where a model's files are: in this package, in a local file or folder, in a cache, on a hub.

What is found is a list of files with the digits that their sha256 must begin with, and what is known of the model
beside its tensors: from the table of registered models, or from the configurations that lie beside the weights.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jaxcam._errors import unknown
from jaxcam.image import Preprocess
from jaxcam.models import _download, _labels
from jaxcam.models._families import CIFAR10, IMAGENET
from jaxcam.models._read import ORBAX

ASSETS = Path(__file__).parents[1] / "assets"
INDEX = ".index.json"  # of a model in several files
HUB_FILES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".msgpack")
CONFIGS = {"config.json": _labels.config_facts, "preprocessor_config.json": _labels.preprocessor_facts}


@dataclass(frozen=True)
class Registered:
    """One row of the table of models that have a name.

    Attributes:
      name: what `load` takes.
      architecture: a key of `ARCHITECTURES`.
      data: what the model was trained on.
      top1: accuracy in percent on the test or validation images, where known.
      licence: of the weights.
      preprocess: what these weights expect of an image.
      file: torchvision's file, whose name ends in the first digits of its sha256; or the file in this package.
      repository: the same weights on the Hugging Face hub; None for a file in this package.
    """

    name: str
    architecture: str
    data: str
    top1: float | None
    licence: str
    preprocess: Preprocess
    file: str
    repository: str | None

    @property
    def sha256(self) -> str:
        """The digits of the sha256 that the file's name promises."""
        found = re.search(r"-([0-9a-f]{8,64})\.pth$", self.file)
        return found[1] if found else ""


def _table() -> dict[str, Registered]:
    rows = [  # architecture, tag on the hub, torchvision's file, top-1, resize; V1 before V2
        ("resnet18", "tv", "resnet18-f37072fd.pth", 69.758, 256),
        ("resnet34", "tv", "resnet34-b627a593.pth", 73.314, 256),
        ("resnet50", "tv", "resnet50-0676ba61.pth", 76.130, 256),
        ("resnet50", "tv2", "resnet50-11ad3fa6.pth", 80.858, 232),
        ("resnet101", "tv", "resnet101-63fe2227.pth", 77.374, 256),
        ("resnet101", "tv2", "resnet101-cd907fc2.pth", 81.886, 232),
        ("resnet152", "tv", "resnet152-394f9c45.pth", 78.312, 256),
        ("resnet152", "tv2", "resnet152-f82ba261.pth", 82.284, 232),
    ]
    bundled = Registered(
        "resnet18_cifar10", "resnet18", "CIFAR-10", None, "MIT", CIFAR10, "resnet18_cifar10.safetensors", None
    )
    short, tagged = {}, {}
    for architecture, tag, file, top1, resize in rows:
        name, preprocess = f"{architecture}.{tag}_in1k", dataclasses.replace(IMAGENET, resize=resize)
        row = Registered(name, architecture, "ImageNet-1k", top1, "BSD-3-Clause", preprocess, file, f"timm/{name}")
        tagged[name] = row
        short[architecture] = dataclasses.replace(row, name=architecture)  # the later row wins: V2 where there is one
    return {bundled.name: bundled} | short | tagged


MODELS = _table()


def models() -> dict[str, Registered]:
    """The models that `load` knows by name, in the order to list them.

    Example:
      >>> models()["resnet50"].top1, models()["resnet50"].repository
      (80.858, 'timm/resnet50.tv2_in1k')
    """
    return {
        name: row if row.repository else dataclasses.replace(row, top1=_recorded(row).get("top1"))
        for name, row in MODELS.items()
    }


@dataclass(frozen=True)
class Found:
    """A model at hand: its files (or Orbax folder), what their sha256s begin with, and what is known of it besides."""

    parts: tuple[tuple[Path, str], ...]
    facts: dict = field(default_factory=dict)  # architecture, network, preprocess (some fields), labels, config, about
    names: tuple[str, ...] | None = None  # of all tensors, where an index lists them

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
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return _local(path)
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        raise FileNotFoundError(f'There is no file {name}. (A model on the hub is "hf:owner/repo".)')
    raise unknown("model", name, MODELS, 'A file is given by its path, a model on the hub as "hf:owner/repo".')


def recognised(filename: str, sha256: str) -> dict:
    """What is known of a file that is one of torchvision's, by content or, if converted, by name."""
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
    steps = [path for path in folder.iterdir() if path.name.isdigit() and (path / ORBAX).is_file()]
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
    missing = [file for file in files if not path.with_name(file).is_file()]
    if missing:
        raise FileNotFoundError(f"{path} names {len(files)} files, of which {', '.join(missing)} are not beside it.")
    return Found(tuple((path.with_name(file), "") for file in files), facts, names)


def _indexed(path: Path) -> tuple[tuple[str, ...], list[str]]:
    """The tensors that an index lists, and the files that hold them."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
        plain = all(Path(file).name == file for file in files)
    except Exception as error:  # anybody's file: anything can be in it
        raise ValueError(f"{path} is not an index of weight files that can be understood ({error!r}).") from error
    if not files or not plain:
        raise ValueError(f"{path} must name weight files beside it, and names {', '.join(files) or 'none'}.")
    return tuple(places), files


def _facts_of(configs: dict[str, Path]) -> dict:
    """What the configurations beside the weights say; what two say is joined."""
    facts = {}
    for name, path in configs.items():
        try:
            found = CONFIGS[name](json.loads(path.read_text(encoding="utf-8")))
        except Exception as error:  # anybody's file: anything can be in it
            raise ValueError(f"{path} is not a {name} that can be understood ({error!r}).") from error
        for key, value in found.items():
            facts[key] = {**facts.get(key, {}), **value} if isinstance(value, dict) else value
    return facts


# --- Registered models and the hub -----------------------------------------------------------------------------------


def _registered(row: Registered) -> Found:
    facts = _row_facts(row)
    if row.repository is None:
        recorded = _recorded(row)
        facts["about"] |= {"source": "part of jaxcam", **recorded}
        return Found(((ASSETS / row.file, recorded.get("sha256", "")),), facts)
    # All caches come before all networks.
    sources = [
        partial(_download.hub_cached, row.repository, HUB_FILES, "main"),
        partial(_download.torchvision_cached, row.file, row.sha256),
        partial(_download.hub_download, row.repository, HUB_FILES, "main"),
        partial(_download.torchvision_download, row.file, row.sha256),
    ]
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


def _recorded(row: Registered) -> dict:
    """What is recorded beside a bundled file: its sha256, accuracy and settings."""
    path = (ASSETS / row.file).with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _on_hub(name: str) -> Found:
    spec = re.fullmatch(r"hf:([^/@\s]+/[^/@\s]+)(?:@(\S+))?", name)
    if not spec:
        raise ValueError(f'{name!r} is not of the form "hf:owner/repo" or "hf:owner/repo@revision".')
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
