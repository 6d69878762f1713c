"""Runs the code of those who coined a method, where no library has it, and writes `authors.npz`.

    python -m pip install -e ".[torch]" torchvision timm einops scikit-learn scikit-image opencv-python-headless tqdm
    python -m pip install --no-deps open_clip_torch==2.23.0 ftfy regex
    python -m tests.golden.make_authors FOLDER     # from the root of the repository; half a minute

FOLDER holds clones of the repositories of `CLONES`, each at its commit. The transformer is `timm_vit` of
`architectures.json`, of which no weight is stored; the other model and its images are those of `metrics.npz`. What is
drawn is drawn by jaxcam; `test_authors.py` first checks that it is drawn again. Where the code has a choice that jaxcam
makes otherwise, it is steered to a setting in which both must agree; the comments say which.
"""

import contextlib
import importlib
import json
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxcam.attribution import decomposition, perturbation, sensitivity

from . import rebuild
from .make_cam_family import images as cam_images
from .make_cam_family import model as cam_model
from .make_golden import import_torchvision
from .make_metrics import Small, to_torch

PATH = Path(__file__).parent / "authors.npz"
CLONES = {
    "samiraabnar/attention_flow": "8044f5312f4ced18d4cf66ffe28f6c045629b4ed",
    "jacobgil/vit-explain": "15a81d355a5aa6128ea4e71bbd56c28888d0f33b",
    "hila-chefer/Transformer-Explainability": "c3e578f76b954e8528afeaaee26de3f07e3fe559",
    "hila-chefer/Transformer-MM-Explainability": "58eaea85ac9c34aff052f368514b35d2e4c8dd3c",
    "WalBouss/LeGrad": "a9edb031422d5f5829d9e6238a1e21feb1972c92",
    "eclique/RISE": "d91ea006d4bb9b7990347fe97086bdc0f5c1fe10",
    "fel-thomas/Sobol-Attribution-Method": "f4103ed184799dbffd4f862989e52117c62f760e",
}
SEED, SIZE, CLASSES = 13, 48, 7  # as in make_architectures.py
SIZES = {"embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5, "num_classes": CLASSES}
TARGET, KEY = 3, 5
RISE = {"num_samples": 60, "cells": (3, 3), "fraction": 0.4}
GRID, SOBOL_SAMPLES, HSIC_SAMPLES, SETS = 4, 16, 40, 24


def find(folder: Path, repository: str, clones: dict[str, str] = CLONES) -> Path:
    """The clone, whose commit is checked."""
    path = folder / repository.partition("/")[2]
    commit = subprocess.run(["git", "-C", path, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    if commit.stdout.strip() != clones[repository]:
        raise SystemExit(f"{path} is at {commit.stdout.strip()}, and the numbers are of {clones[repository]}.")
    return path


@contextlib.contextmanager
def imported(path: Path, *names: str, stubs: dict | None = None):
    """Modules of a clone; `stubs` take the place of what it imports and does not need here: a module, or its names."""
    import_torchvision()
    before, stubs = set(sys.modules), stubs or {}
    for name, given in stubs.items():
        if not isinstance(given, types.ModuleType):
            names_of_stub, given = given.split(), types.ModuleType(name)
            vars(given).update(dict.fromkeys(names_of_stub))
        sys.modules[name] = given
    sys.path.insert(0, str(path))
    try:
        yield tuple(importlib.import_module(name) for name in names)
    finally:
        sys.path.remove(str(path))
        for name in [*stubs, *(set(sys.modules) - before)]:
            if name in stubs or str(path) in str(getattr(sys.modules.get(name), "__file__", "")):
                sys.modules.pop(name, None)


@contextlib.contextmanager
def changed(owner, **values):
    """The owner's attributes are these, for a while."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def on_this_device():
    """Code that asks for a GPU stays where it is."""
    return changed(torch.Tensor, cuda=lambda self: self)


def vit_tensors() -> dict[str, np.ndarray]:
    shapes = json.loads((PATH.parent / "architectures.json").read_text())["timm_vit"]
    return rebuild.random_tensors(shapes, SEED)


def vit_images() -> torch.Tensor:
    return torch.from_numpy(rebuild.rebuild_images(SIZE, SIZE, (1, 2))).permute(0, 3, 1, 2).contiguous()


def attention_rollout(folder):
    """By Abnar and Zuidema, and by the library for vision transformers, which scales each map to its maximum."""
    import_torchvision()
    import timm

    module = timm.models.vision_transformer.VisionTransformer(SIZE, 16, **SIZES).eval()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in vit_tensors().items()})
    for block in module.blocks:
        block.attn.fused_attn = False
    with imported(find(folder, "jacobgil/vit-explain"), "vit_rollout") as (library,):
        explain = library.VITAttentionRollout(module, discard_ratio=0)
        attention = []
        for fusion in ("mean", "max", "min"):
            explain.head_fusion, maps = fusion, []
            for image in vit_images():
                # It divides columns by the sums of rows, so that rows sum to one for the mean of the heads alone.
                with changed(torch.Tensor, sum=lambda self, dim: torch.sum(self, dim, keepdim=True)):
                    maps.append(explain(image[None]))
                attention.append(torch.stack(explain.attentions)[:, 0].numpy())
            yield f"attention_rollout/vit_explain/{fusion}", maps
    unused = dict.fromkeys(("networkx", "tensorflow", "matplotlib", "matplotlib.pyplot"), "")
    path = find(folder, "samiraabnar/attention_flow")
    with imported(path, "attention_graph_util", stubs=unused) as (library,):
        maps = [library.compute_joint_attention(each.mean(1))[-1, 0, 1:] for each in attention[:2]]
    yield "attention_rollout/attention_flow", np.reshape(maps, (2, 3, 3))


def attention_relevance(folder):
    """The function of the notebook, on the authors' own transformer."""
    notebook = find(folder, "hila-chefer/Transformer-MM-Explainability") / "Transformer_MM_explainability_ViT.ipynb"
    cells = ["".join(each["source"]) for each in json.loads(notebook.read_text())["cells"]]
    rules = next(each for each in cells if "def generate_relevance" in each)
    names = {"np": np, "torch": torch}
    exec(rules, names)
    options = {"qkv_bias": True, "norm_layer": lambda width: torch.nn.LayerNorm(width, eps=1e-6)}
    path = find(folder, "hila-chefer/Transformer-Explainability")
    with imported(path, "baselines.ViT.ViT_new") as (library,):
        module = library.VisionTransformer(SIZE, 16, **SIZES, **options).eval()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in vit_tensors().items()})
    with on_this_device():
        for name, target in (("predicted", None), ("given", TARGET)):
            maps = [names["generate_relevance"](module, image[None], target) for image in vit_images()]
            yield f"attention_relevance/chefer/{name}", torch.stack(maps).detach().numpy().reshape(2, 3, 3)


def le_grad(folder):
    """On a CLIP whose image tower is the transformer, its position embedding holding the bias of the patches."""
    import open_clip

    given = {name: torch.from_numpy(value) for name, value in vit_tensors().items()}
    vision = {"image_size": SIZE, "patch_size": 16, "width": 128, "layers": 2, "head_width": 64, "mlp_ratio": 1.5}
    clip = open_clip.model.CLIP(CLASSES, vision, {"width": 8, "heads": 1, "layers": 1, "vocab_size": 9}).eval()
    visual, state = clip.visual, {}
    positions = given["pos_embed"][0].clone()
    positions[1:] += given["patch_embed.proj.bias"]
    names = {"attn.qkv.": "attn.in_proj_", "attn.proj.": "attn.out_proj.", "mlp.fc1.": "mlp.c_fc.", "norm": "ln_"}
    names |= {"mlp.fc2.": "mlp.c_proj."}
    for name, value in given.items():
        if name.startswith("blocks."):
            name = name.replace("blocks.", "transformer.resblocks.")
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            state[name] = value
    state |= {"conv1.weight": given["patch_embed.proj.weight"], "class_embedding": given["cls_token"][0, 0]}
    state |= {"positional_embedding": positions, "proj": given["head.weight"].T}
    state |= {"ln_post.weight": given["norm.weight"], "ln_post.bias": given["norm.bias"]}
    visual.ln_pre = torch.nn.Identity()
    visual.load_state_dict(state)
    for each in visual.modules():
        if isinstance(each, torch.nn.LayerNorm):
            each.eps = 1e-6  # that of timm
    with imported(find(folder, "WalBouss/LeGrad"), "legrad") as (library,):
        wrapped = library.LeWrapper(clip, layer_index=0)
        text = torch.from_numpy(text_of_classes())
        maps = [wrapped.compute_legrad(text[[TARGET]], image[None])[0, 0] for image in vit_images()]
    yield "le_grad/LeGrad", torch.stack(maps).detach().numpy()[:, ::5, ::5]


def text_of_classes() -> np.ndarray:
    """An embedding of each class, of length one."""
    text = np.random.default_rng(8).standard_normal((CLASSES, CLASSES)).astype(np.float32)
    return text / np.linalg.norm(text, axis=1, keepdims=True)


def small():
    """The model of `metrics.npz`, its images and the predicted classes."""
    with np.load(PATH.parent / "metrics.npz") as given:
        module, images, targets = Small(given).eval(), given["images"], given["logits"].argmax(1)
    return module.requires_grad_(False), images, targets


def rise(folder):
    module, images, targets = small()
    space, key = images.shape[1:3], jax.random.key(KEY)
    cells, count = RISE["cells"], RISE["num_samples"]
    grids, offsets = map(np.asarray, perturbation._rise_draws(key, RISE["fraction"], count, cells, space))
    yield "rise/draws/grids", grids.astype(bool)
    yield "rise/draws/offsets", offsets
    draws = iter(offsets.ravel().tolist())
    with imported(find(folder, "eclique/RISE"), "explanations") as (library,), on_this_device():
        resize = library.resize
        # Masks are mirrored at the edge there; here the outermost cells go on.
        library.resize = lambda grid, shape, mode, **options: resize(grid, shape, mode="edge", **options)
        library.np = types.SimpleNamespace(**vars(np))
        library.np.random = types.SimpleNamespace(rand=lambda *_: 1.0 - grids, randint=lambda *_: next(draws))
        library.np.save = lambda *_: None
        explain = library.RISE(torch.nn.Sequential(module, torch.nn.Softmax(1)), space)
        explain.generate_masks(count, cells[0], RISE["fraction"])
        masks = explain.masks[:, 0].numpy()
        maps = [explain(x[None])[target] for x, target in zip(to_torch(images), targets, strict=True)]
    # It divides by the expected sum of the masks; here it is the sum itself, and the lowest pixel zero.
    means = torch.stack(maps).numpy() * count * RISE["fraction"] / masks.sum(0)
    yield "rise/RISE", means - means.min((1, 2), keepdims=True)


def sobol(folder):
    module, images, targets = small()
    d = GRID * GRID
    plan = sensitivity.total_indices(jax.random.key(KEY), jnp.ones((1, d)), SOBOL_SAMPLES)
    rows = np.asarray(plan.keep(jnp.arange(plan.num_samples))).reshape(SOBOL_SAMPLES, d + 2, d)
    design = rows.transpose(1, 0, 2).reshape(-1, d)  # all of A, all of B, and A with each column of B
    yield "sobol/draws", rows
    path, name = find(folder, "fel-thomas/Sobol-Attribution-Method"), "sobol_attribution_method"
    with imported(path, f"{name}.torch_explainer") as (library,), on_this_device():
        library.resize = lambda indices, _: indices
        estimator, seen = library.JansenEstimator(), []

        def estimate(masks, outputs, nb_design):
            seen.append(outputs)
            return estimator(masks, outputs, nb_design)

        options = {"grid_size": GRID, "nb_design": SOBOL_SAMPLES, "sampler": lambda *_: design}
        explain = library.SobolAttributionMethod(module, **options, estimator=estimate)
        found = np.stack(explain(to_torch(images), targets.tolist())).reshape(-1, GRID, GRID)
    # The variance there is that of A alone, less one degree of freedom; here it is that of A and B.
    shares = [each[:SOBOL_SAMPLES].var(ddof=1) / each[: 2 * SOBOL_SAMPLES].var() for each in seen]
    yield "sobol/Sobol", found * np.reshape(shares, (-1, 1, 1))


def factors(_folder):
    """pytorch-grad-cam's class, whose factors start where jaxcam's do: its own start is random."""
    import_torchvision()
    import sklearn.decomposition
    from pytorch_grad_cam.feature_factorization import deep_feature_factorization as library

    module, count, steps = cam_model(hidden=True), 3, 100

    class Started(sklearn.decomposition.NMF):
        def __init__(self, n_components, **_):
            super().__init__(n_components=n_components, init="custom", max_iter=steps, tol=0)

        def fit_transform(self, X):
            scale = X.max()
            cells = X.T / scale  # [p, k]: where concepts are is updated first, and then what they are
            concepts = decomposition._apart(jnp.asarray(cells), count)
            where = decomposition._least_squares(jnp.asarray(cells), concepts)
            start = {"W": np.array(where, np.float64), "H": np.array(concepts, np.float64)}
            where = super().fit_transform(cells.astype(np.float64), **start)
            peaks = where.max(0)  # the scale, which the start decides: one where a concept is strongest
            concepts, self.components_ = self.components_.T * peaks, (where / peaks).T
            return concepts * scale

    errors = []
    plain = library.NMF

    class Plain(plain):
        def fit_transform(self, X):
            found = super().fit_transform(X)
            errors.append(self.reconstruction_err_)
            return found

    for name, nmf in (("started", Started), ("random", Plain)):
        library.NMF, maps, scores = nmf, [], []
        classify = torch.nn.Sequential(module.hidden, torch.nn.Tanh(), module.fc)
        dff = library.DeepFeatureFactorization(module, module.late, computation_on_concepts=classify)
        for image in cam_images():
            concepts, explanations, outputs = dff(image[None], count)
            maps.append(explanations[0])
            scores.append(outputs)
        if name == "started":
            low, high = (each(np.stack(maps), (2, 3), keepdims=True) for each in (np.min, np.max))
            # Maps are scaled to [0, 1] before they are resized, and here once more.
            yield "deep_feature_factorization/pytorch_grad_cam/maps", (np.stack(maps) - low) / (high - low)
            yield "deep_feature_factorization/pytorch_grad_cam/scores", scores
    yield "deep_feature_factorization/error", errors
    library.NMF = plain


def random_cam(_folder):
    import pytorch_grad_cam as library

    module, key = cam_model(hidden=True), jax.random.key(KEY)
    weights = np.asarray(jax.random.uniform(key, (8,), jnp.float32, -1, 1))
    given = changed(np.random, uniform=lambda low, high, size: np.broadcast_to(weights, size))
    with given, library.RandomCAM(module, [module.late]) as cam:
        yield "random_cam/pytorch_grad_cam", cam(cam_images(), None)
    yield "random_cam/draws", weights


def draws_for_xplique(_folder):
    """What `make_xplique.py` needs of jaxcam: masks, and orders in which patches leave the image."""
    plan = sensitivity._dependence(jax.random.key(KEY), jnp.ones((1, GRID * GRID)), HSIC_SAMPLES)
    yield "hsic/draws", np.asarray(plan.keep(jnp.arange(HSIC_SAMPLES)))
    keys = jax.random.split(jax.random.key(KEY), SETS)
    yield "mu_fidelity/draws", jax.vmap(lambda key: jax.random.permutation(key, GRID * GRID))(keys)


def write(path: Path, packages: tuple[str, ...], clones: dict[str, str], families: tuple) -> None:
    """What each family gives of the clones in the folder that the command line names, with all versions."""
    versions = [*(f"{each} {version(each)}" for each in packages), *map("@".join, clones.items())]
    contents = {"versions": np.array(versions)}
    for family in families:
        for name, value in family(Path(sys.argv[1])):
            value = np.asarray(value)
            contents[name] = value if value.dtype.kind in "bi" else value.astype(np.float32)
    np.savez_compressed(path, **contents)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, {len(contents)} arrays")


def main() -> None:
    methods = (attention_rollout, attention_relevance, le_grad, rise, sobol, draws_for_xplique, factors, random_cam)
    write(PATH, ("torch", "timm", "open_clip_torch", "grad-cam", "scikit-learn"), CLONES, methods)


if __name__ == "__main__":
    main()
