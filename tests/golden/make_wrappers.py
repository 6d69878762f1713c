"""Computes what pytorch-grad-cam puts around its CAMs on the model of `make_cam_family.py`: `wrappers.npz`.

    python -m pip install -e ".[torch]" torchvision
    python -m tests.golden.make_wrappers           # from the root of the repository; seconds

Weights and images are in `cam_family.npz`. The projections of eigen-smoothing are stored before the library keeps their
positive part, as their sign is chance.
"""

from pathlib import Path

import numpy as np

from .make_cam_family import TARGETS, images, model
from .make_golden import import_torchvision

PATH = Path(__file__).parent / "wrappers.npz"
CLASSES = [3, 4]


def main() -> None:
    import_torchvision()
    import pytorch_grad_cam as library
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget

    x, module = images(), model(hidden=True)
    targets = [ClassifierOutputTarget(each) for each in TARGETS]
    both = [module.late, module.early]
    contents = {}
    for name in ("GradCAM", "LayerCAM", "GradCAMPlusPlus"):
        with getattr(library, name)(module, [module.early]) as cam:
            cam(x, targets)
            inside = cam.activations_and_grads
            A, G = inside.activations[0].numpy(), inside.gradients[0].numpy()
            contents[f"eigen_smooth/{name}"] = cam.get_cam_image(x, module.early, targets, A, G, eigen_smooth=True)
    for name in ("GradCAM", "LayerCAM"):
        with getattr(library, name)(module, both) as cam:
            contents[f"aug_smooth/{name}"] = cam(x, targets, aug_smooth=True)
    for name in ("GradCAMPlusPlus", "LayerCAM"):
        cam = library.RefineCAM(module, both, base_method=getattr(library, name))
        contents[f"refine_cam/{name}"] = cam(x, targets)
    chosen = [FinerWeightedTarget(each, CLASSES, 0.7) for each in TARGETS]
    for name in ("LayerCAM", "GradCAMPlusPlus"):
        cam = library.FinerCAM(module, [module.early], base_method=getattr(library, name))
        contents[f"finer_cam/{name}"] = cam(x, chosen)
    np.savez_compressed(PATH, **{key: np.asarray(value, np.float32) for key, value in contents.items()})
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB, {len(contents)} arrays")


if __name__ == "__main__":
    main()
