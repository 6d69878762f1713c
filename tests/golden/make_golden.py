"""Computes the cases of `rebuild.py` with pytorch-grad-cam, Captum and torchvision, and writes the golden files.

    python -m pip install -e ".[torch]" torchvision
    python -m tests.golden.make_golden              # from the root of the repository; about a minute

It writes `resnet18.npz` and `resnet50.npz` beside itself. `test_golden.py` reads them without torch, and where torch is
installed it also calls `reference` and `state_dict` of this file and compares whole maps instead of samples.
"""

import contextlib
import copy
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from . import rebuild

FOLDER = Path(__file__).parent
LIBRARIES = ("torch", "torchvision", "grad-cam", "captum", "numpy")
MARGIN = 6
CAMS = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "x_grad_cam": "XGradCAM",
    "hires_cam": "HiResCAM",
    "layer_cam": "LayerCAM",
    "score_cam": "ScoreCAM",
}


def import_torchvision():
    """Imports torchvision, also where its compiled operators do not fit the installed torch.

    A CPU wheel of torch beside torchvision from PyPI lacks `torchvision::nms`, and the import fails on it although no
    ResNet needs it; declaring the operator is enough.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        # Operators live as long as the library object that declares them.
        import_torchvision.library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            import_torchvision.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def reference_model(architecture: str, state: dict[str, np.ndarray] | None = None) -> torch.nn.Module:
    """torchvision's ResNet in inference mode; without a `state`, with rebuilt weights and measured statistics."""
    module = getattr(import_torchvision().models, architecture)(num_classes=rebuild.NUM_CLASSES)
    tensors = state or rebuild.rebuild_state_dict(architecture, rebuild.SEEDS[architecture])
    result = module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()}, strict=False)
    missing = [name for name in result.missing_keys if name.rpartition(".")[2] not in rebuild.MEASURED]
    if missing or result.unexpected_keys:
        raise ValueError(f"{architecture}: missing {missing}, unexpected {result.unexpected_keys}.")
    if state is None:
        measure_statistics(module)
    return module.eval()


@torch.no_grad()
def measure_statistics(module: torch.nn.Module) -> None:
    """Sets the running statistics of BatchNorm to their average over three passes in training mode."""
    norms = [each for each in module.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average over the passes, not an exponential one
        norm.reset_running_stats()
    module.train()
    for seeds in (range(8), range(8, 16), range(16, 24)):
        module(to_torch(rebuild.rebuild_images(96, 136, seeds)))


def statistics(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items() if name.endswith(rebuild.STATISTICS)}


def to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def logits(module: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(to_torch(images)).numpy()


def activations(module: torch.nn.Module, layer: str, images: np.ndarray) -> np.ndarray:
    kept = []
    handle = module.get_submodule(layer).register_forward_hook(lambda *args: kept.append(to_numpy(args[2]).copy()))
    logits(module, images)
    handle.remove()
    return kept[0]


def reference(module: torch.nn.Module, case: rebuild.Case, images: np.ndarray) -> np.ndarray:
    """The case's map by the library that the method is compared with, at full size: [n, h, w] or [n, h, w, c]."""
    from captum.attr import IntegratedGradients, LayerGradCam, Saliency

    x = to_torch(images).requires_grad_()
    targets = rebuild.TARGETS[case.images] if case.given else logits(module, images).argmax(1).tolist()
    layers = [module.get_submodule(layer) for layer in case.layers]
    match case.method:
        case "saliency":
            return to_numpy(Saliency(module).attribute(x, torch.tensor(targets), abs=False))
        case "integrated_gradients":
            options = {
                "n_steps": case.options.get("num_steps", 50),
                "baselines": to_torch(rebuild.baseline(case, images)),
            }
            return to_numpy(IntegratedGradients(module).attribute(x, target=torch.tensor(targets), **options))
        case "grad_cam" if case.options.get("raw"):
            return to_numpy(LayerGradCam(module, layers[0]).attribute(x, torch.tensor(targets)))[..., 0]
    return _pytorch_grad_cam(module, layers, x, CAMS[case.method], targets if case.given else None)


def _pytorch_grad_cam(module, layers, x, name, targets):
    import_torchvision()
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = targets and [ClassifierOutputTarget(target) for target in targets]
    with (
        getattr(pytorch_grad_cam, name)(model=module, target_layers=layers) as cam,
        open(os.devnull, "w") as silence,
        contextlib.redirect_stderr(silence),  # Score-CAM's progress bar
    ):
        return cam(input_tensor=x, targets=targets)


def find_seeds(architecture: str, module: torch.nn.Module, name: str) -> list[int]:
    """For each image of the set `name`, the first unused seed whose picture is settled for the cases that use it."""
    cases = {
        (case.layers[:1], case.method == "integrated_gradients", str(case.options)): case
        for case in rebuild.CASES[architecture]
        if case.images == name and case.tolerance < 1e-3 and case.method != "score_cam"  # which takes no gradient
    }
    exact = copy.deepcopy(module).double()
    found = []
    for seed in range(10_000):
        image = rebuild.rebuild_images(*rebuild.SIZES[name], [seed])
        if all(settled(module, exact, case, image) for case in cases.values()):
            found.append(seed)
            if len(found) == len(rebuild.TARGETS[name]):
                return found
    raise RuntimeError(f"{architecture}: fewer than {len(rebuild.TARGETS[name])} settled pictures for {name!r}.")


def settled(module, exact, case: rebuild.Case, image: np.ndarray) -> bool:
    """Whether float32 rounding can neither change the predicted class nor flip a ReLU on the gradient's way.

    A ReLU network's gradient jumps where a unit's input crosses zero or a max-pool changes its winner. Among a million
    units rounding alone makes some cross, and then two correct programs differ by a percent. So a picture is taken only
    if, in float64, every unit is `MARGIN` standard deviations of its layer's rounding error away from that.
    """
    first, second = np.sort(logits(module, image)[0])[:-3:-1]
    if first - second < 0.1:
        return False
    start = rebuild.baseline(case, image)
    x = to_torch(image)
    if case.method == "integrated_gradients":
        nodes = np.polynomial.legendre.leggauss(case.options.get("num_steps", 50))[0]
        x = torch.cat([to_torch(start + np.float32((1 + node) / 2) * (image - start)) for node in nodes])
    pairs = zip(decisions(module, case, x), decisions(exact, case, x.double()), strict=True)
    return all(bool(z.abs().min() > MARGIN * (rounded - z).std()) for rounded, z in pairs)


@torch.no_grad()
def decisions(module, case: rebuild.Case, x: torch.Tensor) -> list[torch.Tensor]:
    """The numbers whose signs decide the gradient at the case's first layer (or the pixels).

    These are the input of every ReLU, and the lead of the winner of every max-pool window.
    """
    kept = []

    def record(submodule, inputs):
        z = inputs[0]
        if isinstance(submodule, torch.nn.MaxPool2d):
            windows = torch.nn.functional.unfold(z, 3, padding=1, stride=2).unflatten(1, (z.shape[1], 9))
            first, second = windows.topk(2, dim=2).values.unbind(2)
            z = torch.where(first > 0, first - second, 1.0)  # among zeros no winner passes a gradient on
        kept.append(z.clone())

    kinds = (torch.nn.ReLU, torch.nn.MaxPool2d)
    handles = [each.register_forward_pre_hook(record) for each in module.modules() if isinstance(each, kinds)]
    for layer in case.layers[:1]:
        handles.append(module.get_submodule(layer).register_forward_hook(lambda *_: kept.clear()))
    module(x)
    for handle in handles:
        handle.remove()
    return kept


def golden(architecture: str) -> dict[str, np.ndarray]:
    """All that one golden file holds, by name."""
    module = reference_model(architecture)
    contents = {
        "versions": np.array([f"{library} {version(library)}" for library in LIBRARIES]),
        "fingerprint": rebuild.fingerprint(rebuild.rebuild_state_dict(architecture, rebuild.SEEDS[architecture])),
        **{f"state/{name}": value for name, value in statistics(module).items()},
    }
    images = {}
    for name, size in rebuild.SIZES.items():
        seeds = find_seeds(architecture, module, name)
        images[name] = rebuild.rebuild_images(*size, seeds)
        contents |= {f"seeds/{name}": np.array(seeds), f"logits/{name}": logits(module, images[name])}
        print(f"{architecture} {name}: seeds {seeds}, classes {contents[f'logits/{name}'].argmax(1)}", flush=True)
    for layer in rebuild.LAYERS:
        contents[f"activations/{layer}"] = rebuild.summary(activations(module, layer, images["wide"]))
    for case in rebuild.CASES[architecture]:
        contents[f"map/{case}"] = rebuild.sample(case, reference(module, case, images[case.images]))
        print(f"{architecture} {case}", flush=True)
    return contents


def main() -> None:
    torch.set_num_threads(1)  # the order of summation then depends on nothing
    torch.use_deterministic_algorithms(True)
    for architecture in rebuild.CASES:
        path = FOLDER / f"{architecture}.npz"
        np.savez_compressed(path, **golden(architecture))
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
