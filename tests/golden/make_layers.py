"""Computes layer and neuron attributions with Captum, and writes `layers.npz`.

    python -m pip install -e ".[torch]"
    python -m tests.golden.make_layers

The model is small enough to be stored with its weights, and smooth, so that integrals converge. Conductance is Captum's
with so many steps that its sum is the integral to five digits; the others take the same quadrature as jaxcam.
"""

from pathlib import Path

import numpy as np
import torch
from captum.attr import (
    InternalInfluence,
    LayerConductance,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    NeuronGradient,
    NeuronIntegratedGradients,
)
from torch import nn

PATH = Path(__file__).parent / "layers.npz"
TARGETS = [2, 0]
NUM_STEPS = 12
NEURON = (3, 2, 4)  # channel, row, column


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.early = nn.Conv2d(3, 5, 3, padding=1), nn.Tanh()
        self.conv2, self.late = nn.Conv2d(5, 6, 3, stride=2, padding=1), nn.Softplus()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.late(self.conv2(self.early(self.conv1(x)))).mean((2, 3)))


def main() -> None:
    torch.manual_seed(0)
    module = Tiny().double().eval()
    rng = np.random.default_rng(0)
    x, x0 = (torch.from_numpy(rng.normal(size=(2, 3, 6, 8))) * scale for scale in (1, 0.3))
    given = {"baselines": x0, "target": TARGETS, "n_steps": NUM_STEPS}
    found = {
        "integrated_gradients": LayerIntegratedGradients(module, module.early).attribute(x, **given),
        "internal_influence": InternalInfluence(module, module.early).attribute(x, **given),
        "conductance": LayerConductance(module, module.early).attribute(
            x, **given | {"n_steps": 50_000, "method": "riemann_trapezoid", "internal_batch_size": 4096}
        ),
        "gradient_x_activation": LayerGradientXActivation(module, module.early).attribute(x, target=TARGETS),
        "neuron_gradient": NeuronGradient(module, module.early).attribute(x, NEURON),
        "neuron_integrated_gradients": NeuronIntegratedGradients(module, module.early).attribute(
            x, NEURON, baselines=x0, n_steps=NUM_STEPS
        ),
    }
    arrays = {name: each.detach().numpy().transpose(0, 2, 3, 1) for name, each in found.items()}
    arrays |= {"images": x.numpy().transpose(0, 2, 3, 1), "baseline": x0.numpy().transpose(0, 2, 3, 1)}
    for name in ("conv1", "conv2"):
        arrays[f"{name}/kernel"] = getattr(module, name).weight.detach().numpy().transpose(2, 3, 1, 0)
        arrays[f"{name}/bias"] = getattr(module, name).bias.detach().numpy()
    arrays |= {"fc/kernel": module.fc.weight.detach().numpy().T, "fc/bias": module.fc.bias.detach().numpy()}
    np.savez_compressed(PATH, **{name: each.astype(np.float32) for name, each in arrays.items()})


if __name__ == "__main__":
    main()
