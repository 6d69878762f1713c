"""Computes the methods of `jaxcam.attribution.rules` with Captum on a small seeded network, and writes `rules.npz`.

    python -m pip install -e ".[torch]"
    python tests/golden/make_rules.py              # a second

The file holds weights (torch's names and layout), images and results; `test_rules.py` reads it without torch.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from captum.attr import LRP, Deconvolution, DeepLift, GuidedBackprop, GuidedGradCam
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule

TARGETS = torch.tensor([2, 0])


class Network(torch.nn.Module):
    """Two convolutions, two max-pools and two dense layers; with `overlap`, the windows of the second pool overlap."""

    def __init__(self, overlap: bool = False):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 5, 3, padding=1)
        self.relu1 = torch.nn.ReLU()
        self.pool1 = torch.nn.MaxPool2d(2)
        self.conv2 = torch.nn.Conv2d(5, 6, 3, padding=1)
        self.relu2 = torch.nn.ReLU()
        self.pool2 = torch.nn.MaxPool2d(2, 1) if overlap else torch.nn.MaxPool2d(2)
        self.fc1 = torch.nn.Linear(6 * (20 if overlap else 6), 7)
        self.relu3 = torch.nn.ReLU()
        self.fc2 = torch.nn.Linear(7, 4)

    def forward(self, x):
        # Times one: where a pool follows a ReLU at once, Captum hooks one tensor twice, and DeepLift loses the pool.
        x = self.pool1(1 * self.relu1(self.conv1(x)))
        x = self.pool2(1 * self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))


def network(*, overlap: bool = False, conv_bias: bool = True) -> Network:
    torch.manual_seed(3)
    module = Network(overlap).eval()
    with torch.no_grad():
        for each in (module.conv1, module.conv2, module.fc1, module.fc2):
            each.weight.mul_(3)  # so that signals neither die nor are drowned by the biases
        for each in (module.conv1, module.conv2):
            each.bias.mul_(conv_bias)
    return module


def lrp(module: Network, images, conv_rule, dense_rule=EpsilonRule):
    for name, each in module.named_children():
        if not name.startswith("relu"):
            each.rule = conv_rule() if name.startswith("conv") else dense_rule()
    return LRP(module).attribute(images, target=TARGETS)


def main():
    random = np.random.Generator(np.random.PCG64(5))
    images = torch.from_numpy(random.uniform(0, 1, (2, 3, 12, 10)).astype(np.float32))
    baseline = images.flip(2) * 0.5
    plain, overlapping = network(), network(overlap=True)
    results = {
        "guided_backprop": GuidedBackprop(network()).attribute(images, target=TARGETS),
        "deconvnet": Deconvolution(network()).attribute(images, target=TARGETS),
        "guided_grad_cam": (lambda m: GuidedGradCam(m, m.relu2).attribute(images, target=TARGETS))(network()),
        "deep_lift": DeepLift(network()).attribute(images, target=TARGETS),
        "deep_lift_baseline": DeepLift(network()).attribute(images, baseline, target=TARGETS),
        "deep_lift_overlap": DeepLift(network(overlap=True)).attribute(images, target=TARGETS),
        "lrp_epsilon": lrp(network(), images, EpsilonRule),
        "lrp_gamma": lrp(network(conv_bias=False), images, GammaRule),
        "lrp_z_plus": lrp(network(conv_bias=False), images, Alpha1_Beta0_Rule),
    }
    arrays = {"images": images, "baseline": baseline} | {f"result.{name}": each for name, each in results.items()}
    arrays = {name: each.detach().numpy().transpose(0, 2, 3, 1) for name, each in arrays.items()}
    arrays["targets"] = TARGETS.numpy().astype(np.int32)
    arrays |= {f"plain.{name}": each.numpy() for name, each in plain.state_dict().items()}
    arrays |= {f"overlap.{name}": each.numpy() for name, each in overlapping.state_dict().items()}
    arrays["versions"] = np.array([f"{name} {version(name)}" for name in ("torch", "captum")])
    np.savez_compressed(Path(__file__).parent / "rules.npz", **arrays)


if __name__ == "__main__":
    main()
