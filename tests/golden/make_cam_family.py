"""Computes maps of the CAM family with pytorch-grad-cam, torch-cam and scikit-learn, and writes `cam_family.npz`.

    python -m pip install -e ".[torch]" torchvision scikit-learn && python -m pip install --no-deps torchcam
    python -m tests.golden.make_cam_family

The model is small enough to be stored with its weights: two convolutions with BatchNorm (`early` and `late`), global
average pooling, and a head of one dense layer, or of two with a tanh between them. `test_cam_family.py` builds the same
in Flax. Where a library has a choice that jaxcam makes otherwise, the reference is steered to a setting in which both
must agree; the comments say which.
"""

from pathlib import Path

import jax
import numpy as np
import torch
from sklearn.decomposition import non_negative_factorization
from torch import nn

from .make_golden import import_torchvision

PATH = Path(__file__).parent / "cam_family.npz"
TARGETS = [2, 0, 1]
NOISE = 0.5


class Tiny(nn.Module):
    def __init__(self, hidden: bool):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.early, self.late = nn.ReLU(), nn.ReLU()
        self.hidden = nn.Linear(8, 7) if hidden else None
        self.fc = nn.Linear(7 if hidden else 8, 5)

    def forward(self, x):
        x = self.late(self.bn2(self.conv2(self.early(self.bn1(self.conv1(x)))))).mean((2, 3))
        return self.fc(x if self.hidden is None else torch.tanh(self.hidden(x)))


def model(hidden: bool) -> Tiny:
    torch.manual_seed(3)
    module = Tiny(hidden)
    for norm in (module.bn1, module.bn2):
        for values in (norm.weight, norm.running_var):
            values.data.uniform_(0.5, 1.5)
        for values in (norm.bias, norm.running_mean):
            values.data.normal_(0, 0.3)
    for dense in filter(None, (module.hidden, module.fc)):
        dense.weight.data.normal_(0, 3)  # so that what libraries add to denominators is small
    return module.eval()


def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).normal(size=(3, 3, 12, 16)).astype(np.float32))


def positive_targets(module) -> list[int]:
    """The largest logit of each image: a positive one, as Ablation-CAM's libraries need it."""
    logits = module(images())
    assert (logits.max(1).values > 0).all()
    return logits.argmax(1).tolist()


def pytorch_grad_cam_maps(contents: dict) -> None:
    import_torchvision()
    import pytorch_grad_cam as library
    from pytorch_grad_cam.utils import svd_on_activations as svd
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputTarget

    x, module = images(), model(hidden=True)
    targets = [ClassifierOutputTarget(each) for each in TARGETS]
    both = [module.late, module.early]

    def run(cam, targets, layers, **options):
        return getattr(library, cam)(module, layers)(x, targets, **options)

    contents["grad_cam_elementwise"] = run("GradCAMElementWise", targets, both)
    predicted = [ClassifierOutputTarget(each) for each in positive_targets(module)]
    contents["ablation_cam"] = run("AblationCAM", predicted, [module.late])
    contents["shapley_cam"] = run("ShapleyCAM", [ClassifierOutputReST(each) for each in TARGETS], [module.late])
    contents["finer_cam"] = run("FinerCAM", None, [module.late])
    contents["finer_cam_half"] = run("FinerCAM", None, both, alpha=0.5, comparison_categories=[1, 2])
    contents["fem"] = run("FEM", targets, both)
    # The score is multiplied, so that the 1e-7 that is added when each channel is scaled does not count.
    contents["full_grad"] = library.FullGrad(module, [])(x.clone(), [lambda o, t=t: 1e5 * o[t] for t in TARGETS])

    cam = library.GradCAM(module, [module.late])
    cam(x, targets)
    A, G = (
        each[0].detach().numpy()
        for each in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
    )
    contents["eigen_cam"] = svd.get_2d_projection(A)
    contents["eigen_grad_cam"] = svd.get_2d_projection(A * G)
    for kernel in ("sigmoid", "rbf", "linear"):
        contents[f"kpca_cam_{kernel}"] = svd.get_2d_projection_kernel(A, kernel)
    contents["kpca_cam_gamma"] = svd.get_2d_projection_kernel(A, "rbf", 0.3)


def torch_cam_maps(contents: dict) -> None:
    from torchcam import methods as library

    x, key = images(), jax.random.key(0)

    def run(cam, module, *args, hook=lambda extractor: None, scores=False, **options):
        with getattr(library, cam)(module, *args, **options) as extractor:
            hook(extractor)
            output = module(x.clone().requires_grad_())
            return extractor(TARGETS, output if scores else None, normalized=False)[0].detach().numpy()

    contents["cam"] = run("CAM", model(hidden=False), "late", "fc")

    def same_noise(fields):
        """Replaces the library's random numbers by jaxcam's, which are the same for every image."""
        fields = iter(fields)

        def hook(extractor):
            extractor._distrib.sample = lambda size: torch.from_numpy(np.broadcast_to(next(fields), size).copy())

        return hook

    def normal(shape, *path):
        where = key
        for each in path:
            where = jax.random.fold_in(where, each)
        return NOISE * np.asarray(jax.random.normal(where, shape))

    # `early` has the images' size: that torch-cam scales before it upsamples makes no difference.
    masks = [np.stack([normal((12, 16), channel, sample) for channel in range(6)]) for sample in range(3)]
    contents["ss_cam"] = run("SSCAM", model(True), "early", num_samples=3, std=NOISE, hook=same_noise(masks))
    contents["is_cam"] = run("ISCAM", model(True), "early", num_samples=3)
    # One sample, as torch-cam takes the gradient of the last one; `late`, before global average pooling, where the
    # gradient is the same in every cell, so that it does not matter whether it is inside of the sum; and the library's
    # weights on the image's own activations, where the library takes those of the last noisy copy.
    field = normal((12, 16, 3), 0).transpose(2, 0, 1)
    module = model(hidden=True)
    with library.SmoothGradCAMpp(module, "late", num_samples=1, std=NOISE) as extractor:
        same_noise([field])(extractor)
        module(x)
        A = extractor.hook_a[0].clone()
        weights = extractor._get_weights(TARGETS)[0]
    contents["smooth_grad_cam_plus_plus"] = torch.einsum("nk,nkhw->nhw", weights, A).detach().numpy()


def factors(contents: dict) -> None:
    random = np.random.default_rng(7)
    X, H, W = (random.uniform(0.1, 1, shape).astype(np.float64) for shape in ((20, 9), (20, 3), (3, 9)))
    options = {"solver": "cd", "init": "custom", "max_iter": 60, "tol": 0}
    H_end, W_end, _ = non_negative_factorization(X, H.copy(), W.copy(), n_components=3, **options)
    contents |= {"nmf/X": X, "nmf/H": H, "nmf/W": W, "nmf/H_end": H_end, "nmf/W_end": W_end}


def main() -> None:
    contents = {"images": images().permute(0, 2, 3, 1).numpy(), "predicted": np.array(positive_targets(model(True)))}
    for name, hidden in (("deep", True), ("plain", False)):
        module = model(hidden)
        contents |= {f"{name}/{key}": value.numpy() for key, value in module.state_dict().items() if value.ndim}
        contents[f"{name}/logits"] = module(images()).detach().numpy()
    pytorch_grad_cam_maps(contents)
    torch_cam_maps(contents)
    factors(contents)
    np.savez_compressed(PATH, **{key: np.asarray(value, np.float32) for key, value in contents.items()})
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB, {len(contents)} arrays")


if __name__ == "__main__":
    main()
