"""Weights by name, by path or from the Hugging Face hub: found, verified, converted and checked.

Whatever the source, loading is one pipeline: find the file (bundled, local, cached, else downloaded), verify its
sha256, read `{name: array}`, recognise whose names they are, read the module off the tensors, rename and transpose by
the table of `layouts`, and compare with the module's own shapes; what does not fit exactly is an error, never a model.
`save` reads the same table backwards. Nothing needs torch, nothing that a file
asks for is executed, and a cached file is used without asking the network.

Environment: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` as everywhere on the hub; `JAXCAM_CACHE` (default
`~/.cache/jaxcam`), the folder for files from torchvision's address; `HF_HUB_ETAG_TIMEOUT` (default 2.5), the seconds
that each address has to answer.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxcam import _files
from jaxcam._errors import shown, unknown
from jaxcam.image import Preprocess
from jaxcam.models import _labels, _read
from jaxcam.models._convert import grouped, state_dict, variables_of
from jaxcam.models._families import ARCHITECTURES, FAMILIES
from jaxcam.models._find import Found, find, recognised
from jaxcam.models.layouts import Layout, closest
from jaxcam.taps import Tap, tap
from jaxcam.taps.tap import size


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

    def __repr__(self):
        """In a line, not weight by weight."""
        held = size(self.variables)
        facts = f"{len(self.labels)} classes, layer {self.layer!r}, {self.preprocess.crop} pixels, {held}"
        return f"Classifier({self.name!r}: {type(self.module).__name__}, {facts})"

    def __call__(self, images: Any) -> jax.Array:
        return self.tap()(self.preprocess(images))

    def tap(self, layer: str | Sequence[str] | None = None, **options) -> Tap:
        """`jaxcam.tap(module, variables, layer, **options)`; `layer=None` is the classifier's own.

        A vision transformer's `reshape` comes with it; a layer that returns maps, not tokens, wants `reshape=None`.

        Example:
          >>> load("resnet18_cifar10").tap().layers
          ('layer4',)
        """
        options = {"reshape": getattr(self.module, "reshape", None)} | options
        return tap(self.module, self.variables, layer or self.layer, **options)


OWN = "Of a network of your own, read the file yourself: jaxcam.tap takes any module with its variables."
ASSUMED = "as usual for such a model; nothing beside the tensors says how images are prepared"


# --- The pipeline -----------------------------------------------------------------------------------------------------


def load(
    name_or_path: str | os.PathLike, *, architecture: str | None = None, num_classes: int | None = None
) -> Classifier:
    """Loads a classifier by registered name, from a local file or from the Hugging Face hub.

    The names of the tensors say whose they are (ResNet, ResNeXt, ViT, DeiT, ConvNeXt of torchvision, timm or
    transformers, EfficientNet, MobileNetV2, VGG, DenseNet of the first two), and their shapes how deep and wide the
    network is, how many classes it has, and what its stem is: a 3x3 `conv1` is CIFAR's (stride 1, no max-pool). What
    training wraps around a state dict is taken off; of a checkpoint with a moving average, that is what is loaded, and
    `about["weights"]` says so.

    Args:
      name_or_path: a name of `models()`; the path of a `.safetensors` file, of a state dict that `torch.save` wrote
        (`.pth`, `.bin`, of any version of PyTorch since 0.2), or of variables in Flax's `.msgpack`; that of a folder
        with such a file, with shards and their index, or with an Orbax checkpoint of variables or of `jaxcam.train`;
        or `"hf:owner/repo"`, `"hf:owner/repo@revision"`.
      architecture: a key of `ARCHITECTURES` that the tensors must be; it may be left out.
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
    found, called = find(name, architecture), shown(name)
    tensors, header, sha256, averaged = _contents(found)
    facts = {**recognised(found.path.name, sha256), **header, **found.facts}
    known = architecture or facts.get("architecture")
    if known in {family.name for family in FAMILIES}:  # as `about` says of a network of no usual size
        known = None
    if known is not None and known not in ARCHITECTURES:  # as a header says
        raise unknown("architecture", known, ARCHITECTURES)
    layout = _layout(tensors, known, facts.get("network"), facts.get("config", {}), called)
    shapes = {key: getattr(tensor, "shape", ()) for key, tensor in layout.ours(tensors).items()}
    config = {**layout.config, **facts.get("config", {})}
    module = layout.family.make(shapes, config, known)
    if odd := layout.family.contradiction(module, shapes, config):
        raise ValueError(f"{called} is {layout}, which has {odd} as in a {known}; leave architecture out.")
    if num_classes not in (None, module.num_classes):
        raise ValueError(f"{called} has {module.num_classes} classes, not num_classes={num_classes}; leave it out.")
    variables = variables_of(tensors, module, layout, f"{called} as {known or layout}")
    about = {"source": str(found.path), "sha256": sha256, **facts.get("about", {})}
    about |= {"weights": averaged} if averaged else {}
    about |= {} if facts.get("preprocess") else {"preprocess": ASSUMED}
    about["architecture"] = layout.family.name_of(module) or layout.family.name
    about |= {"numerics": config["numerics"]} if "numerics" in config and layout.family.told else {}
    preprocess = _labels.preprocess(layout.family.preprocess(module), facts.get("preprocess", {}))
    labels = _labels.labels(module, facts.get("labels"), called)
    return Classifier(module, variables, preprocess, labels, module.layer, name, about)


def _contents(found: Found) -> tuple[dict, dict, str, str | None]:
    """The tensors of a model's files, a header's facts, the first file's sha256, and the average that they are."""
    if found.path.is_dir():
        return *_read.unwrapped(_read.read_orbax(found.path), str(found.path))[:1], {}, "", None
    merged, digests = {}, []
    for path, promised in found.parts:
        data = _files.read(path)
        digests.append(hashlib.sha256(data).hexdigest())
        if not digests[-1].startswith(promised):
            raise ValueError(
                f"{path} is truncated or altered: its sha256 is {digests[-1]}, and should begin with {promised}. "
                f"{found.remedy or f'Delete {os.path.realpath(path)} and load it again'}."
            )
        state, header = _read.read(data, shown(str(path)))
        if len(found.parts) == 1:
            tensors, averaged = _read.unwrapped(state, shown(str(path)))
            return tensors, header, digests[0], averaged
        merged |= state
    if found.names is not None and set(found.names) != set(merged):
        differing = sorted(set(found.names) ^ set(merged))
        raise ValueError(
            f"The index beside {found.path} and its files differ in {len(differing)} tensors: {grouped(differing[:8])}."
        )
    tensors, averaged = _read.unwrapped(merged, str(found.path))
    return tensors, {}, hashlib.sha256("".join(digests).encode()).hexdigest(), averaged


def _layout(tensors: Mapping, architecture: str | None, network: str | None, config: Mapping, name: str) -> Layout:
    """Whose names these are.

    Raises:
      ValueError: nobody's whom the table knows, or those of a network that only looks like one that is known.
    """
    layout = closest(tensors, architecture)
    odd = layout.unknown(sorted(tensors))
    if odd and (architecture is None or 2 * len(odd) > len(tensors)):
        other = closest(tensors)
        if not other.unknown(tensors):
            raise ValueError(f"{name} has the names of {other}, not those of a {architecture}; leave architecture out.")
        first = ", ".join(repr(shown(each)) for each in odd[:3])
        raise ValueError(
            f"{name} is of no known layout. Most like it is {layout}, in which {len(odd)} of its {len(tensors)} names "
            f"have no place: {first}{', ...' if len(odd) > 3 else ''}. {OWN}"
        )
    if architecture is None and network is not None and not layout.family.matches(network):
        raise ValueError(
            f"{name} is a {shown(network)!r}, says its config.json, which jaxcam does not have, though its tensors "
            f"have the names of {layout}. If it is one, pass architecture=, such as "
            f"{next(iter(layout.family.architectures))!r}."
        )
    if architecture is None and layout.named and "numerics" not in config:
        raise ValueError(
            f"{name} has the names of {layout}, and {layout.library} has other networks with the same tensors. Load a "
            "folder with its config.json, or if it is one of jaxcam's, pass architecture=, such as "
            f"{next(iter(layout.family.architectures))!r}."
        )
    return layout


# --- Saving ----------------------------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike, variables: Mapping, *, dtype: Any = np.float32, metadata: Mapping | None = None
) -> None:
    """Writes variables as safetensors, in torchvision's layout where it has one: torch and `load` read the file.

    An EfficientNet's or MobileNetV2's padding does not show in its tensors: the file has this package's names, and
    `load` goes by `metadata["architecture"]` or `["numerics"]` (`"pytorch"`, `"tensorflow"`; both are in what
    `Classifier.about` holds), and else wants `architecture=`.

    Args:
      path: is replaced only when the whole file is written.
      variables: of a module of this package, or of any whose submodules are named as in PyTorch.
      dtype: of the tensors in the file; `load` gives float32 again.
      metadata: goes into the header as JSON. `load` uses `"architecture"`, `"preprocess"` (a `Preprocess`) and
        `"labels"`; the rest comes back in `Classifier.about`.

    Raises:
      ValueError: a variable has no counterpart in torchvision, or is not finite in `dtype`.

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
    _files.write(path, serialize(tensors, metadata={"format": "pt", "jaxcam": header}))
