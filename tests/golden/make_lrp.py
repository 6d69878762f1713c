"""Computes `lrp.npz`: relevance by zennit's composites, on the network of `make_rules.py` and on the bundled ResNet-18.

    python -m pip install -e ".[torch]" torchvision "zennit==0.5.1"
    python -m tests.golden.make_lrp                # seconds

`test_rules.py` reads the file without torch. Zennit starts from what it is given, here the logit, as `jaxcam.lrp` does.
"""

from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import torch

import jaxcam

from .make_golden import import_torchvision
from .make_rules import network

torchvision = import_torchvision()

from zennit.attribution import Gradient  # noqa: E402
from zennit.composites import COMPOSITES, LayerMapComposite, SpecialFirstLayerMapComposite, layer_map_base  # noqa: E402
from zennit.rules import Epsilon, Gamma, WSquare  # noqa: E402
from zennit.torchvision import ResNetCanonizer  # noqa: E402
from zennit.types import Convolution, Linear  # noqa: E402

HERE = Path(__file__).parent
BOX = {"epsilon_gamma_box": {"low": torch.full((1, 3, 1, 1), -3.0), "high": torch.full((1, 3, 1, 1), 3.0)}}
NAMES = ("epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat")


def composites(canonizers):
    """The named ones, and one of rules that none of these has."""
    found = {name: COMPOSITES[name](canonizers=canonizers, **BOX.get(name, {})) for name in NAMES}
    found["own"] = SpecialFirstLayerMapComposite(
        [*layer_map_base(), (Convolution, Gamma(0.6)), (torch.nn.Linear, Epsilon(0.1))],
        first_map=[(Linear, WSquare())],
        canonizers=canonizers,
    )
    found["epsilon"] = LayerMapComposite([*layer_map_base(), (Linear, Epsilon())], canonizers=canonizers)
    return found


def relevance(module, images, targets, canonizers=()):
    """`{composite: [n, h, w, c]}`."""
    images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    results = {}
    for name, composite in composites(list(canonizers)).items():
        with Gradient(model=module, composite=composite) as attributor:
            one_hot = torch.eye(module(images).shape[1])[torch.from_numpy(targets).long()]
            _, found = attributor(images, lambda output, one_hot=one_hot: output * one_hot)
        results[name] = found.detach().numpy().transpose(0, 2, 3, 1)
    return results


def bundled():
    """The bundled ResNet-18 in torch."""
    classifier = jaxcam.load("resnet18_cifar10")
    module = torchvision.models.resnet18(num_classes=10)
    sizes = {"conv1": torch.nn.Conv2d(3, 32, 3, padding=1, bias=False), "maxpool": torch.nn.Identity()}
    module = narrowed(module, 32)
    for name, each in sizes.items():
        setattr(module, name, each)
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(classifier.variables):
        *parts, last = (each.key for each in path[1:])
        value = np.asarray(leaf, np.float32)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[".".join([*parts, names[last]])] = torch.from_numpy(np.ascontiguousarray(value))
    result = module.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and all("num_batches" in name for name in result.missing_keys), result
    return classifier, module.eval()


def narrowed(module, width):
    """Half as wide as torchvision's."""
    for name, each in list(module.named_modules()):
        parent = module.get_submodule(name.rpartition(".")[0])
        if isinstance(each, torch.nn.Conv2d):
            new = torch.nn.Conv2d(
                each.in_channels // 2, each.out_channels // 2, each.kernel_size, each.stride, each.padding, bias=False
            )
        elif isinstance(each, torch.nn.BatchNorm2d):
            new = torch.nn.BatchNorm2d(each.num_features // 2)
        elif isinstance(each, torch.nn.Linear):
            new = torch.nn.Linear(each.in_features // 2, each.out_features)
        else:
            continue
        setattr(parent, name.rpartition(".")[2], new)
    return module


def main():
    rules = np.load(HERE / "rules.npz")
    plain = relevance(network(), rules["images"], rules["targets"])
    classifier, module = bundled()
    images = np.asarray(classifier.preprocess(jaxcam.sample()))
    targets = np.asarray([3], np.int32)
    residual = relevance(module, images, targets, [ResNetCanonizer()])
    arrays = {"images": images, "targets": targets}
    arrays |= {f"plain.{name}": each for name, each in plain.items()}
    arrays |= {f"residual.{name}": each for name, each in residual.items()}
    arrays["versions"] = np.array([f"{name} {version(name)}" for name in ("torch", "zennit")])
    np.savez_compressed(HERE / "lrp.npz", **arrays)


if __name__ == "__main__":
    main()
