"""How torchvision, timm and transformers name the tensors of each architecture: one table, read in both directions.

A tensor has a name of our own: the path of its module, and PyTorch's word for what it is, `layer4.1.conv2.weight`. A
layout is a list of rules, each of which says what a library calls some of them; `*` stands for the same part of a name
on both sides. `load` looks for the layout that knows all names of a file and reads the rules forwards; `save` and the
checks read them backwards.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxcam.models._families import CONVNEXT, DENSENET, EFFICIENTNET, MOBILENET, RESNET, VGG, VIT, Family
from jaxcam.models.efficientnet import MOBILENET as MOBILENET_STAGES


class Rule(NamedTuple):
    """What a library calls a tensor; `*` stands for one part of a dotted name, or a piece of it.

    `#` stands for a block: its number among all blocks in their name, its stage and its place there in ours.

    Attributes:
      theirs: the name in the file.
      ours: our names; where they are several, the file's tensor is theirs in a row, along the first axis.
      shape: of the axes after the first in the file, where it is not PyTorch's usual one; -1 for what is left.
    """

    theirs: str
    ours: tuple[str, ...]
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """The names that a library gives to the tensors of a family.

    Attributes:
      library: whose names they are.
      family: of the modules.
      rules: one or several for each tensor.
      config: what no tensor shows and all these modules have in common.
      named: whether the library has other networks with the same tensors, so that something else must tell them apart.
      stages: of the file's tensors, the stage of each block, where blocks are numbered through: for `#` in the rules.
    """

    library: str
    family: Family
    rules: tuple[Rule, ...]
    config: Mapping = field(default_factory=dict)
    named: bool = False
    stages: Callable[[Mapping[str, Any]], list[int]] = lambda tensors: []

    def __str__(self) -> str:
        return f"{self.library}'{'' if self.library.endswith('s') else 's'} {self.family.name}"

    @cached_property
    def _theirs(self) -> list[tuple[re.Pattern, Rule]]:
        return [(_pattern(rule.theirs, r"(\d+)"), rule) for rule in self.rules]

    @cached_property
    def _ours(self) -> list[tuple[re.Pattern, Rule]]:
        return [(_pattern(name, r"(\d+\.\d+)"), rule) for rule in self.rules for name in rule.ours]

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of the file's names that the layout does not have."""
        return [name for name in names if _match(self._theirs, name) is None]

    def has_all(self, names: Iterable[str]) -> bool:
        """Whether each of our names has one of theirs."""
        return all(_match(self._ours, name) for name in names)

    def ours(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The file's tensors by our names, without those that the layout does not know."""
        stages, found = self.stages(tensors), {}
        places = {str(n): f"{stage}.{stages[:n].count(stage)}" for n, stage in enumerate(stages)}
        for name, tensor in tensors.items():
            if match := _match(self._theirs, name):
                rule, parts = match
                parts = _placed(rule.theirs, parts, places)
                names = [_filled(each, parts) for each in rule.ours]
                found |= dict(zip(names, _cut(tensor, len(names), rule.shape), strict=True))
        return found

    def theirs(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors of our names as they stand in a file; of NumPy, or traced.

        Raises:
          KeyError: the layout does not know one of them.
        """
        found, rest = {}, dict(tensors)
        blocks = {match[1] for name in rest if (match := _BLOCK.match(name))}
        numbers = {place: str(n) for n, place in enumerate(sorted(blocks, key=_stage_and_block))}
        while rest:
            name = next(iter(rest))
            match = _match(self._ours, name)
            if match is None:
                raise KeyError(name)
            rule, parts = match
            pieces = [rest.pop(_filled(each, parts)) for each in rule.ours]
            tensor = pieces[0] if len(pieces) == 1 else _module_of(pieces[0]).concatenate(pieces)
            name = _filled(rule.theirs, _placed(rule.theirs, parts, numbers))
            found[name] = tensor if rule.shape is None else tensor.reshape(tensor.shape[0], *rule.shape)
        return found


_WILD = re.compile("[*#]")
_BLOCK = re.compile(r"blocks\.(\d+\.\d+)\.")


def _stage_and_block(place: str) -> tuple[int, ...]:
    return tuple(map(int, place.split(".")))


def _pattern(template: str, block: str) -> re.Pattern:
    wild = {"*": "([^.]+)", "#": block}
    return re.compile("".join(wild.get(each, re.escape(each)) for each in re.split("([*#])", template)))


def _placed(template: str, parts: Iterable[str], places: Mapping[str, str]) -> list[str]:
    """The parts of a name, with the place of the block in that of its number, or the other way round."""
    return [
        places.get(part, part) if wild == "#" else part
        for wild, part in zip(_WILD.findall(template), parts, strict=True)
    ]


def _match(patterns, name: str) -> tuple[Rule, tuple[str, ...]] | None:
    for pattern, rule in patterns:
        if match := pattern.fullmatch(name):
            return rule, match.groups()
    return None


def _filled(template: str, parts: Iterable[str]) -> str:
    first, *rest = _WILD.split(template)
    return first + "".join(part + each for part, each in zip(parts, rest, strict=True))


def _cut(tensor, count: int, shape: tuple[int, ...] | None) -> list:
    """The tensors that stand in a row; what has a wrong shape stays as it is, for the check to find."""
    size: tuple[int, ...] = getattr(tensor, "shape", ())
    if (
        shape is not None
        and len(size) == len(shape) + 1
        and all(there in (-1, here) for here, there in zip(size[1:], shape, strict=True))
    ):
        return [tensor.reshape(tensor.shape[0], -1)]
    return np.split(tensor, count) if count > 1 and size and size[0] % count == 0 else [tensor] * count


def _module_of(array):
    return np if isinstance(array, np.ndarray) else jnp


# --- The table -------------------------------------------------------------------------------------------------------


def _layouts(family: Family, libraries: Mapping[str, Mapping], rows: Iterable[tuple]) -> tuple[Layout, ...]:
    """One layout for each column: a row has our names, and then what each library calls them.

    An entry is a name, a name and the shape that the tensor has in the file, or a list of names, one for each of ours.
    """
    rows = list(rows)
    layouts = []
    for column, (library, options) in enumerate(libraries.items(), 1):
        rules = [rule for row in rows for rule in _rules(row[0], row[column])]
        layouts.append(Layout(library, family, tuple(rules), **options))
    return tuple(layouts)


def _rules(ours, theirs) -> list[Rule]:
    ours = (ours,) if isinstance(ours, str) else tuple(ours)
    if isinstance(theirs, list):
        return [Rule(name, (each,)) for name, each in zip(theirs, ours, strict=True)]
    if isinstance(theirs, tuple):
        return [Rule(theirs[0], ours, theirs[1])]
    return [Rule(theirs, ours)]


def _resnet_rows():
    yield "conv1.weight", "conv1.weight", "resnet.embedder.embedder.convolution.weight"
    yield "bn1.*", "bn1.*", "resnet.embedder.embedder.normalization.*"
    for stage in (1, 2, 3, 4):
        ours, theirs = f"layer{stage}.*", f"resnet.encoder.stages.{stage - 1}.layers.*"
        for index in (1, 2, 3):
            conv, norm = f"{ours}.conv{index}.weight", f"{ours}.bn{index}.*"
            yield conv, conv, f"{theirs}.layer.{index - 1}.convolution.weight"
            yield norm, norm, f"{theirs}.layer.{index - 1}.normalization.*"
        conv, norm = f"{ours}.downsample.0.weight", f"{ours}.downsample.1.*"
        yield conv, conv, f"{theirs}.shortcut.convolution.weight"
        yield norm, norm, f"{theirs}.shortcut.normalization.*"
    yield "fc.*", "fc.*", "classifier.1.*"


def _vit_rows():
    """torchvision, its files of before version 0.14, timm, transformers and its modules since version 5."""
    hub, block = "vit.embeddings.", "encoder.layers.encoder_layer_*."
    old, new = "vit.encoder.layer.*.", "vit.layers.*."
    yield "class_token.token", "class_token", "class_token", "cls_token", *[f"{hub}cls_token"] * 2
    positions = "encoder.pos_embedding"
    yield f"{positions}.positions", positions, positions, "pos_embed", *[f"{hub}position_embeddings"] * 2
    yield (
        "conv_proj.*",
        "conv_proj.*",
        "conv_proj.*",
        "patch_embed.proj.*",
        *[f"{hub}patch_embeddings.projection.*"] * 2,
    )
    for ours, mine, legacy, timm, before, now in (
        ("ln_1", "ln_1", "ln_1", "norm1", "layernorm_before", "layernorm_before"),
        (
            "self_attention.out",
            *["self_attention.out_proj"] * 2,
            "attn.proj",
            "attention.output.dense",
            "attention.o_proj",
        ),
        ("ln_2", "ln_2", "ln_2", "norm2", "layernorm_after", "layernorm_after"),
        ("mlp.0", "mlp.0", "mlp.linear_1", "mlp.fc1", "intermediate.dense", "mlp.fc1"),
        ("mlp.3", "mlp.3", "mlp.linear_2", "mlp.fc2", "output.dense", "mlp.fc2"),
    ):
        yield (
            f"{block}{ours}.*",
            *(f"{block}{each}.*" for each in (mine, legacy)),
            f"blocks.*.{timm}.*",
            f"{old}{before}.*",
            f"{new}{now}.*",
        )
    for leaf in ("weight", "bias"):
        attention = f"{block}self_attention."
        yield (
            [f"{attention}{each}.{leaf}" for each in ("query", "key", "value")],
            *[f"{attention}in_proj_{leaf}"] * 2,
            f"blocks.*.attn.qkv.{leaf}",
            [f"{old}attention.attention.{each}.{leaf}" for each in ("query", "key", "value")],
            [f"{new}attention.{each}_proj.{leaf}" for each in "qkv"],
        )
    yield "encoder.ln.*", "encoder.ln.*", "encoder.ln.*", "norm.*", *["vit.layernorm.*"] * 2
    yield "heads.head.*", "heads.head.*", "heads.head.*", "head.*", *["classifier.*"] * 2


def _convnext_rows():
    """torchvision, timm, transformers, and the files of the paper's authors."""
    hub = "convnext."
    yield (
        "features.0.0.*",
        "features.0.0.*",
        "stem.0.*",
        f"{hub}embeddings.patch_embeddings.*",
        "downsample_layers.0.0.*",
    )
    yield "features.0.1.*", "features.0.1.*", "stem.1.*", f"{hub}embeddings.layernorm.*", "downsample_layers.0.1.*"
    for stage in (0, 1, 2, 3):
        place, there = f"features.{2 * stage}.*.*", f"{hub}encoder.stages.{stage}."
        if stage:
            authors = f"downsample_layers.{stage}.*.*"
            yield place, place, f"stages.{stage}.downsample.*.*", f"{there}downsampling_layer.*.*", authors
        ours, timm = f"features.{2 * stage + 1}.*.", f"stages.{stage}.blocks.*."
        there, authors = f"{there}layers.*.", f"stages.{stage}.*."
        for mine, his, theirs, first in (
            ("block.0", "conv_dw", "dwconv", "dwconv"),
            ("block.2", "norm", "layernorm", "norm"),
            ("block.3", "mlp.fc1", "pwconv1", "pwconv1"),
            ("block.5", "mlp.fc2", "pwconv2", "pwconv2"),
        ):
            yield f"{ours}{mine}.*", f"{ours}{mine}.*", f"{timm}{his}.*", f"{there}{theirs}.*", f"{authors}{first}.*"
        scale = f"{ours}layer_scale", (1, 1)
        yield f"{ours}layer_scale.weight", scale, f"{timm}gamma", f"{there}layer_scale_parameter", f"{authors}gamma"
    yield "classifier.0.*", "classifier.0.*", "head.norm.*", f"{hub}layernorm.*", "norm.*"
    yield "classifier.2.*", "classifier.2.*", "head.fc.*", "classifier.*", "head.*"


_EFFICIENTNET_PYTORCH = (  # a part of a block here, and there
    ("expand.conv.weight", "_expand_conv.weight"),
    ("expand.bn.*", "_bn0.*"),
    ("depthwise.conv.weight", "_depthwise_conv.weight"),
    ("depthwise.bn.*", "_bn1.*"),
    ("squeeze_excite.reduce.*", "_se_reduce.*"),
    ("squeeze_excite.expand.*", "_se_expand.*"),
    ("project.conv.weight", "_project_conv.weight"),
    ("project.bn.*", "_bn2.*"),
)


def _efficientnet_rows():
    """This package, and timm and torchvision, which number the parts of a block, and so the first stage's otherwise."""
    yield "stem.conv.weight", "stem.conv.weight", "conv_stem.weight", "features.0.0.weight"
    yield "stem.bn.*", "stem.bn.*", "bn1.*", "features.0.1.*"
    yield "head.conv.weight", "head.conv.weight", "conv_head.weight", "features.8.0.weight"
    yield "head.bn.*", "head.bn.*", "bn2.*", "features.8.1.*"
    yield "fc.*", "fc.*", "classifier.*", "classifier.1.*"
    for stage in range(7):
        parts = ["expand", "depthwise", "squeeze_excite", "project"]
        timm = [("conv_pw", "bn1"), ("conv_dw", "bn2"), None, ("conv_pwl", "bn3")]
        if stage == 0:
            parts, timm = parts[1:], [("conv_dw", "bn1"), None, ("conv_pw", "bn2")]
        for place, (part, names) in enumerate(zip(parts, timm, strict=True)):
            ours, timms, theirs = (
                f"blocks.{stage}.*.{part}",
                f"blocks.{stage}.*",
                f"features.{stage + 1}.*.block.{place}",
            )
            if names is None:
                yield f"{ours}.reduce.*", f"{ours}.reduce.*", f"{timms}.se.conv_reduce.*", f"{theirs}.fc1.*"
                yield f"{ours}.expand.*", f"{ours}.expand.*", f"{timms}.se.conv_expand.*", f"{theirs}.fc2.*"
            else:
                yield f"{ours}.conv.weight", f"{ours}.conv.weight", f"{timms}.{names[0]}.weight", f"{theirs}.0.weight"
                yield f"{ours}.bn.*", f"{ours}.bn.*", f"{timms}.{names[1]}.*", f"{theirs}.1.*"


def _mobilenet_rows():
    """torchvision, which numbers the blocks of all stages through."""
    places = [f"{stage}.{block}" for stage, (*_, size) in enumerate(MOBILENET_STAGES) for block in range(size)]
    yield from (("stem.conv.weight", "features.0.0.weight"), ("stem.bn.*", "features.0.1.*"))
    for number, place in enumerate(places, 1):
        parts = ("depthwise", "project") if number == 1 else ("expand", "depthwise", "project")
        for index, part in enumerate(parts):
            conv, norm = (f"{index}", f"{index + 1}") if part == "project" else (f"{index}.0", f"{index}.1")
            yield f"blocks.{place}.{part}.conv.weight", f"features.{number}.conv.{conv}.weight"
            yield f"blocks.{place}.{part}.bn.*", f"features.{number}.conv.{norm}.*"
    head = f"features.{len(places) + 1}"
    yield from (("head.conv.weight", f"{head}.0.weight"), ("head.bn.*", f"{head}.1.*"), ("fc.*", "classifier.1.*"))


def _efficientnet_pytorch_rows():
    stem = ("stem.conv.weight", "_conv_stem.weight"), ("stem.bn.*", "_bn0.*")
    head = ("head.conv.weight", "_conv_head.weight"), ("head.bn.*", "_bn1.*"), ("fc.*", "_fc.*")
    yield from (*stem, *head)
    yield from ((f"blocks.#.{ours}", f"_blocks.#.{theirs}") for ours, theirs in _EFFICIENTNET_PYTORCH)


def _efficientnet_stages(tensors: Mapping[str, Any]) -> list[int]:
    """The stage of each block: a new one begins where the kernel, the features or the expansion are others."""
    stages, last = [], None
    while (name := f"_blocks.{len(stages)}.") + "_project_conv.weight" in tensors:
        kernel, features = (
            getattr(tensors.get(f"{name}_{part}_conv.weight"), "shape", ()) for part in ("depthwise", "project")
        )
        kind = kernel[2:], features[:1], f"{name}_expand_conv.weight" in tensors
        stages.append(stages[-1] + (kind != last) if stages else 0)
        last = kind
    return stages


def _vgg_rows():
    """torchvision, and timm, which makes convolutions of the first two dense layers."""
    yield "features.*.*", "features.*.*", "features.*.*"
    for ours, timm, shape in (("0", "fc1", (-1, 7, 7)), ("3", "fc2", (-1, 1, 1))):
        weight, bias = f"classifier.{ours}.weight", f"classifier.{ours}.bias"
        yield weight, weight, (f"pre_logits.{timm}.weight", shape)
        yield bias, bias, f"pre_logits.{timm}.bias"
    yield "classifier.6.*", "classifier.6.*", "head.fc.*"


def _densenet_rows():
    """torchvision and timm, and torchvision's files of before version 0.3."""
    yield "features.*.weight", "features.*.weight", "features.*.weight"
    yield "features.norm*.*", "features.norm*.*", "features.norm*.*"
    yield "features.transition*.*.*", "features.transition*.*.*", "features.transition*.*.*"
    for part in ("norm", "conv"):
        for number in (1, 2):
            ours, older = (f"features.denseblock*.denselayer*.{part}{dot}{number}.*" for dot in ("", "."))
            yield ours, ours, older
    yield "classifier.*", "classifier.*", "classifier.*"


_TORCHVISION = {"config": {"numerics": "torchvision"}}
_TENSORFLOW = {"config": {"numerics": "tensorflow"}}
_HUB = {"config": {"epsilon": 1e-12}}  # of transformers, unless its config says another
LAYOUTS = (  # of each family the first is what `save` writes
    *_layouts(RESNET, {"torchvision": {}, "transformers": {}}, _resnet_rows()),
    *_layouts(
        VIT,
        {"torchvision": {}, "an older torchvision": {}, "timm": {}, "transformers": _HUB, "transformers 5": _HUB},
        _vit_rows(),
    ),
    *_layouts(
        EFFICIENTNET,
        {"jaxcam": {"named": True}, "timm": {"named": True}, "torchvision": _TORCHVISION},
        _efficientnet_rows(),
    ),
    *_layouts(MOBILENET, {"torchvision": _TORCHVISION}, _mobilenet_rows()),
    *_layouts(
        EFFICIENTNET,
        {"efficientnet_pytorch": {"stages": _efficientnet_stages} | _TENSORFLOW},
        _efficientnet_pytorch_rows(),
    ),
    *_layouts(VGG, {"torchvision": {}, "timm": {}}, _vgg_rows()),
    *_layouts(DENSENET, {"torchvision": {}, "an older torchvision": {}}, _densenet_rows()),
    *_layouts(CONVNEXT, {"torchvision": {}, "timm": {}, "transformers": _HUB, "the authors": {}}, _convnext_rows()),
)


def closest(names: Iterable[str], architecture: str | None = None) -> Layout:
    """The layout that knows all the names, or else uses most of their words; of the architecture, if there is one."""
    names = list(names)
    words = _words(names)

    def distance(layout):
        known = _words([rule.theirs for rule in layout.rules])
        return bool(layout.unknown(names)), -len(words & known) / len(words | known)

    fitting = [each for each in LAYOUTS if architecture is None or architecture in each.family.architectures]
    return min(fitting, key=distance)


def _words(names: Iterable[str]) -> set[str]:
    """What tells libraries apart; that tensors are weights and biases they all say."""
    words = {word for name in names for word in name.split(".") if not word.isdigit() and "*" not in word}
    return words - {"weight", "bias"}
