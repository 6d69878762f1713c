"""The other side of the benchmarks: pytorch-grad-cam, Captum and Quantus, each prepared once, then run again and again.

`Peer` is the same network with the same weights, as it is or at its best: compiled, with its channels last. Imported
only where the libraries are installed; Quantus may be missing.
"""

import contextlib
import os
from collections.abc import Callable

import numpy as np
import torch
from captum import attr

from experiments import _torch

_torch.import_torchvision()  # before what imports it
import pytorch_grad_cam  # noqa: E402
from pytorch_grad_cam.metrics.road import ROADCombined  # noqa: E402
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget  # noqa: E402


class Peer:
    """A network, images and targets, and functions of no arguments that explain them.

    Args:
      classifier: whose weights the network gets.
      layer: what the CAM methods read.
      images: normalised, `float32[n, h, w, 3]`.
      targets: the explained classes.
      compiled: `torch.compile` with channels-last memory, in place of the network as it is.
      half: bfloat16, by automatic mixed precision.
    """

    def __init__(self, classifier, layer: str, images: np.ndarray, targets: list[int], *, compiled: bool, half: bool):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = _torch.load(classifier).to(device)
        self.images, self.targets, self.half = _torch.tensor(images).to(device), list(targets), half
        self.layer = network.get_submodule(layer)
        self.reshape = getattr(classifier.module, "reshape", None) and _as_maps
        self.network = network
        self.release = lambda: None
        if compiled:
            network = network.to(memory_format=torch.channels_last)
            self.images = self.images.contiguous(memory_format=torch.channels_last)
            torch._functorch.config.donated_buffer = False  # pytorch-grad-cam keeps the graph after its backward pass
            self.network = torch.compile(network)

    def clear(self) -> None:
        """Takes off the last method's hooks, which slow down the next, and forgets what was compiled with them.

        `torch.compile` gives up after eight variants of a function, and each method's hooks make new ones.
        """
        self.release()
        torch._dynamo.reset()

    def forward(self) -> Callable:
        def run():
            with torch.no_grad():
                return self.network(self.images)

        return self._ready(run)

    def cam(self, name: str) -> Callable:
        """A class of pytorch-grad-cam."""
        method = getattr(pytorch_grad_cam, name)(self.network, [self.layer], self.reshape)
        self.release = method.activations_and_grads.release
        targets = [ClassifierOutputTarget(index) for index in self.targets]
        return self._ready(lambda: method(self.images, targets))

    def attribute(self, name: str, **options) -> Callable:
        """A class of Captum."""
        method, targets = getattr(attr, name)(self.network), torch.tensor(self.targets, device=self.images.device)
        return self._ready(lambda: method.attribute(self.images.clone().requires_grad_(), target=targets, **options))

    def road(self, heatmaps: np.ndarray, fractions) -> Callable:
        """ROAD by pytorch-grad-cam, least and most relevant pixels first."""
        metric = ROADCombined([100 * (1 - each) for each in fractions])
        targets = [ClassifierOutputSoftmaxTarget(index) for index in self.targets]
        return self._ready(lambda: metric(self.images, heatmaps, targets, self.network))

    def deletion(self, heatmaps: np.ndarray, num_steps: int) -> Callable:
        """The area under the deletion curve, by Quantus, whose own integral does not run under NumPy 2.4."""
        import quantus

        images = self.images.cpu().numpy()
        step = images[0].size // num_steps
        metric = quantus.PixelFlipping(step, normalise=False, disable_warnings=True)
        options = {"softmax": True, "device": str(self.images.device)}
        given = self.network, images, np.asarray(self.targets), heatmaps[:, None]
        return self._ready(lambda: np.trapezoid(metric(*given, **options), dx=1 / num_steps))

    def _ready(self, run: Callable) -> Callable:
        def timed():
            with (
                torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.half),
                open(os.devnull, "w") as silence,
                contextlib.redirect_stderr(silence),  # progress bars
            ):
                run()
            if self.images.device.type == "cuda":
                torch.cuda.synchronize()

        return timed


def _as_maps(tokens: torch.Tensor) -> torch.Tensor:
    """A vision transformer's `[n, 1 + side * side, c]`, its class token first, as `[n, c, side, side]`."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].unflatten(1, (side, side)).movedim(3, 1)
