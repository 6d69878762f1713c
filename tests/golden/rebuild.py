"""What the golden files need not store, because a seed and a rule rebuild it: weights, images, and the list of cases.

NumPy alone, because two sides use it: `make_golden.py`, which computes the cases with PyTorch libraries, and
`test_golden.py`, which computes them with jaxcam. Only what PyTorch measured is stored: running statistics and results.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

SEEDS = {"resnet18": 2, "resnet50": 50}
NUM_CLASSES = 1000
STATISTICS = ("running_mean", "running_var")
MEASURED = (*STATISTICS, "num_batches_tracked")  # what a rebuilt state lacks
_STAGE_SIZES = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
_KERNELS = {"resnet18": (3, 3), "resnet50": (1, 3, 1)}
_EXPANSION = {"resnet18": 1, "resnet50": 4}


@dataclass(frozen=True)
class Case:
    """One attribution: `method` and `options` as jaxcam spells them; the reference library follows from `method`.

    Several layers stand in the order in which the model runs them.
    """

    method: str
    layers: tuple[str, ...] = ()
    images: str = "wide"
    given: bool = False  # explained class: TARGETS where given, else the predicted one
    options: dict = field(default_factory=dict)
    tolerance: float = 1e-4  # absolute for heatmaps, else relative to the image's largest absolute value

    def __str__(self) -> str:
        words = [self.method, "+".join(self.layers), self.images, "given" if self.given else "predicted"]
        words += [f"{key}={value}" for key, value in self.options.items()]
        return "-".join(filter(None, words))


# Height and width, such that not every stage divides evenly: layer4 has 3 x 5 cells for "wide", 3 x 3 for "medium".
# Gradients with respect to the pixels want "small": the fewer units, the easier to find an image whose gradient float32
# settles (see `make_golden.settled`).
SIZES = {"wide": (96, 136), "medium": (66, 96), "small": (26, 36)}
TARGETS = {"wide": (285, 817), "medium": (815,), "small": (330, 642)}  # one per image

_CAMS = ("grad_cam", "grad_cam_plus_plus", "x_grad_cam", "hires_cam", "layer_cam")
CASES = {
    "resnet18": [
        *(Case(method, ("layer4",)) for method in _CAMS),
        # Pooling follows layer4 and makes its gradient the same in all cells; further inside all methods differ.
        *(Case(method, ("layer3",), given=True) for method in _CAMS),
        Case("grad_cam", ("layer3",), given=True, options={"raw": True}),
        Case("grad_cam", ("layer3", "layer4")),
        *(Case("saliency", images="small", given=given) for given in (False, True)),
        Case("grad_cam", ("layer4.1.conv2",)),
        Case("layer_cam", ("layer2", "layer3.1.conv1"), given=True),
        Case("score_cam", ("layer4",), images="medium"),
        Case("score_cam", ("layer1",), images="small", given=True),
        # Among 50 points of 2 paths some unit lies within rounding of zero, so Captum itself moves by 1e-4 to 1e-3
        # when a pixel moves by its last bit. One step more or less, or another rule, moves it by 4e-2.
        Case("integrated_gradients", images="small", tolerance=5e-3),
        Case("integrated_gradients", images="small", given=True, options={"num_steps": 5, "baseline": "flipped"}),
    ],
    "resnet50": [  # what its bottlenecks can change; each case traces the network once more
        Case("grad_cam", ("layer4",)),
        Case("layer_cam", ("layer3",), given=True),
        Case("grad_cam", ("layer3", "layer4")),
        Case("grad_cam", ("layer4.2.conv3",)),
        Case("saliency", images="small", given=True),
        Case("score_cam", ("layer1.0.conv2",), images="small", given=True),
        Case("integrated_gradients", images="small", options={"num_steps": 2}),
    ],
}
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")  # whose activations are compared


def rebuild_images(height: int, width: int, seeds: Iterable[int]) -> np.ndarray:
    """One picture per seed, smooth colours with a bar and a disc, normalised as for ImageNet: float32[n, h, w, 3]."""
    return np.stack([_picture(height, width, seed) for seed in seeds])


def _picture(height, width, seed):
    random = np.random.Generator(np.random.PCG64(seed))
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    image = np.zeros((height, width, 3))
    for frequency in (1, 2, 4, 8, 16):
        angle, phase = random.uniform(0, 2 * np.pi, (2, 3))
        wave = y[..., None] * np.sin(angle) + x[..., None] * np.cos(angle)
        image += np.sin(2 * np.pi * frequency * wave + phase) / frequency**0.5
    centre_y, centre_x, radius, bar = random.uniform((0.2, 0.2, 0.1, 0), (0.8, 0.8, 0.3, 0.8))
    image[np.hypot(y - centre_y, x - centre_x) < radius] += random.uniform(-3, 3, 3)
    image[np.abs(y - bar - 0.3 * x) < 0.05] += random.uniform(-3, 3, 3)
    pixels = 1 / (1 + np.exp(-image))
    return ((pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).astype(np.float32)


def baseline(case: Case, images: np.ndarray) -> np.ndarray:
    """Where integrated gradients starts: zeros, or for the option `baseline="flipped"` the images upside down."""
    return images[:, ::-1] if "baseline" in case.options else 0 * images


def sample(case: Case, maps: np.ndarray) -> np.ndarray:
    """The part of a case's map that is stored: every fifth row and column, so all phases of every stride.

    A coarse map is stored whole.
    """
    step = 1 if case.options.get("raw") else 5
    return np.ascontiguousarray(maps[:, ::step, ::step], dtype=np.float32)


def summary(activations: np.ndarray) -> np.ndarray:
    """Mean, deviation and 14 single values of each image's `[h, w, k]`: float32[n, 16]."""
    flat = np.ascontiguousarray(activations, dtype=np.float32).reshape(len(activations), -1)
    values = flat[:, np.linspace(0, flat.shape[1] - 1, 14).astype(int)]
    return np.column_stack([flat.mean(1, dtype=np.float64), flat.std(1, dtype=np.float64), values]).astype(np.float32)


def rebuild_state_dict(architecture: str, seed: int) -> dict[str, np.ndarray]:
    """A random ResNet in torchvision's layout (names, OIHW, OI), without running statistics.

    Convolutions are Kaiming normal (fan-out); BatchNorm's scales and shifts scatter, so that nothing is degenerate.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    state = {}

    def normal(*shape, mean=0.0, std=1.0):
        return np.float32(mean) + np.float32(std) * random.standard_normal(shape, dtype=np.float32)

    def conv(name, norm, features_in, features, kernel, scale=1.0):
        std = (2 / (features * kernel * kernel)) ** 0.5
        state[f"{name}.weight"] = normal(features, features_in, kernel, kernel, std=std)
        state[f"{norm}.weight"] = normal(features, mean=scale, std=0.2 * scale)
        state[f"{norm}.bias"] = normal(features, std=0.2)

    conv("conv1", "bn1", 3, 64, 7)
    features_in = 64
    for stage, size in enumerate(_STAGE_SIZES[architecture]):
        width = 64 * 2**stage
        features_out = width * _EXPANSION[architecture]
        for block in range(size):
            prefix, features = f"layer{stage + 1}.{block}", features_in
            kernels = _KERNELS[architecture]
            for index, kernel in enumerate(kernels, start=1):
                last = index == len(kernels)
                features_next = features_out if last else width
                # As in trained networks, a block adds little to its shortcut; else rounding grows from block to block.
                scale = 0.3 if last else 1.0
                conv(f"{prefix}.conv{index}", f"{prefix}.bn{index}", features, features_next, kernel, scale)
                features = features_next
            if block == 0 and features_in != features_out:
                conv(f"{prefix}.downsample.0", f"{prefix}.downsample.1", features_in, features_out, 1)
            features_in = features_out
    weight = normal(NUM_CLASSES, features_in, std=10 / features_in**0.5)
    state["fc.weight"] = weight - weight.mean(axis=1, keepdims=True)  # what all images share would outweigh the rest
    state["fc.bias"] = normal(NUM_CLASSES, std=0.1)
    return state


def noisy_copies(images: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ten noisy copies of three images and of their maps, so that some are alike."""
    random = np.random.Generator(np.random.PCG64(4))
    return tuple(
        np.tile(each, (4, *(1,) * (each.ndim - 1)))[:10]
        + np.float32(noise) * random.standard_normal((10, *each.shape[1:]), dtype=np.float32)
        for each, noise in ((images, 1.0), (maps, 0.3))
    )


def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two pictures of bytes, a map of each, the pixels that are known from the start, and what a model looks for."""
    images = rebuild_images(40, 48, (1, 2))
    low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
    images = np.round(255 * (images - low) / (high - low)).astype(np.uint8)
    random = np.random.Generator(np.random.PCG64(6))
    edges = images / 255 - sum(np.roll(images / 255, step, axis) for step in (-1, 1) for axis in (1, 2)) / 4
    weights = 12 * edges.sum(0) / (edges * images / 255).sum((1, 2, 3)).mean()
    maps = np.abs(edges).sum(-1) + 0.2 * random.random((2, 40, 48))
    return images, maps.astype(np.float32), random.random((40, 48)) < 0.01, weights.astype(np.float32)


def fingerprint(state: dict[str, np.ndarray]) -> np.ndarray:
    """One number per tensor, float64: it tells when NumPy's generator no longer draws the stored model's weights."""
    positions = (tensor.ravel() @ np.cos(np.arange(tensor.size)) for tensor in state.values())
    return np.array(list(positions), dtype=np.float64)


def flax_variables(state: dict[str, np.ndarray]) -> dict:
    """The same tensors as Flax variables: OIHW becomes HWIO, OI becomes IO, and the names become Flax's."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    variables = {"params": {}, "batch_stats": {}}
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        tree = variables["batch_stats" if leaf.startswith("running") else "params"]
        for key in path:
            tree = tree.setdefault(key, {})
        kernel = tensor.ndim > 1
        tree["kernel" if kernel else names[leaf]] = (
            tensor.T if tensor.ndim == 2 else (tensor.transpose(2, 3, 1, 0) if kernel else tensor)
        )
    return variables


def random_tensors(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """A random state dict with these names and shapes, in which nothing is degenerate: no scale is zero or one."""
    random = np.random.Generator(np.random.PCG64(seed))
    return {name: _random_tensor(name, tuple(shape), random) for name, shape in shapes.items()}


def _random_tensor(name, shape, random):
    if np.prod(shape[1:]) == 1:  # one number for each feature: biases and means about zero, scales and variances one
        if name.endswith(("bias", "running_mean")):
            return np.float32(0.2) * random.standard_normal(shape, dtype=np.float32)
        return random.random(shape, dtype=np.float32) + np.float32(0.5)
    fan_in = 4 if shape[0] == 1 else np.prod(shape[1:])  # the first axis of tokens and embeddings is no output
    return random.standard_normal(shape, dtype=np.float32) / np.sqrt(fan_in, dtype=np.float32)
