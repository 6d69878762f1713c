"""Computes Captum's influence of training images on the model of `make_cam_family.py`: `influence.npz`.

    python -m pip install -e ".[torch]" torchvision
    python -m tests.golden.make_influence           # from the root of the repository; seconds

Weights are in `cam_family.npz`; the training images are drawn here and in `test_influence.py`. The second checkpoint is
one half of the weights. Captum's learning rates are what its function that loads a checkpoint returns.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from captum.influence import SimilarityInfluence, TracInCP
from captum.influence._core.similarity_influence import cosine_similarity, euclidean_distance

from .make_cam_family import TARGETS, images, model

PATH = Path(__file__).parent / "influence.npz"
RATES = {1.0: 0.1, 0.5: 0.03}  # by the factor of the checkpoint
NUM_TRAINING = 16
LAYERS = ["late", "early"]  # with a single one this version fails


def main() -> None:
    x, module, labels = images(), model(hidden=True), torch.arange(NUM_TRAINING) % 5
    values = np.random.default_rng(7).normal(size=(NUM_TRAINING, 3, 12, 16)).astype(np.float32)
    training = torch.utils.data.TensorDataset(torch.from_numpy(values), labels)
    weights = {name: value.clone() for name, value in module.named_parameters()}

    def load(module, factor):
        for name, value in module.named_parameters():
            value.data.copy_(weights[name] * factor)
        return RATES[factor]

    contents = {"torch": torch.__version__}
    for name, layers in {"all": None, "fc": ["fc"]}.items():
        loss = torch.nn.CrossEntropyLoss(reduction="none")
        tracin = TracInCP(
            module, training, list(RATES), load, layers, loss_fn=loss, batch_size=5, sample_wise_grads_per_batch=False
        )
        contents[f"tracin/{name}"] = tracin.influence((x, torch.tensor(TARGETS))).detach().numpy()
    load(module, 1.0)
    inputs = torch.utils.data.TensorDataset(torch.from_numpy(values))
    for name, metric in {"cosine": cosine_similarity, "euclidean": euclidean_distance}.items():
        with TemporaryDirectory() as folder:
            direction = "max" if name == "cosine" else "min"
            similarity = SimilarityInfluence(module, LAYERS, inputs, folder, "", metric, direction, 8)
            found = similarity.influence(x, top_k=4)["late"]
        contents |= {f"{name}/{part}": each.numpy() for part, each in zip(("numbers", "values"), found, strict=True)}
    np.savez_compressed(PATH, **contents)
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.1f} kB, {len(contents)} arrays")


if __name__ == "__main__":
    main()
