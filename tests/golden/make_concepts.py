"""Computes Captum's TCAV on the model of `make_cam_family.py`: `concepts.npz`.

    python -m pip install -e ".[torch]" torchvision scikit-learn
    python -m tests.golden.make_concepts            # from the root of the repository; seconds

Weights are in `cam_family.npz`; the examples are drawn here and in `test_concepts.py`. Captum leaves the classifier to
its user: it is scikit-learn's logistic regression with the penalty that jaxcam has, without every third example of each
set. The sign of the score's derivative is that of the plain gradient, as in the paper.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import captum
import numpy as np
import torch
from captum.attr import LayerGradientXActivation
from captum.concept import TCAV, Classifier, Concept
from sklearn.linear_model import LogisticRegression

from .make_cam_family import model

PATH = Path(__file__).parent / "concepts.npz"
PENALTY = 0.01
TARGET = 3


def examples() -> torch.Tensor:
    """One set of a concept, then three of anything, the last of which is explained: nine images each."""
    values = np.random.default_rng(9).normal(size=(4, 9, 3, 12, 16))
    values[0, :, 0] += 0.5
    return torch.from_numpy(values.astype(np.float32))


class Regression(Classifier):
    def __init__(self):
        self.found = None

    def train_and_eval(self, dataloader, **kwargs):
        x, y = (torch.cat(each).numpy().astype(np.float64) for each in zip(*dataloader, strict=True))
        numbers = np.empty(len(y), int)  # of each example among those of its label
        for label in set(y):
            numbers[y == label] = np.arange((y == label).sum())
        used = numbers % 3 != 0
        scale = np.mean(((x - x[used].mean(0)) ** 2).sum(1))
        self.found = LogisticRegression(C=1 / (used.sum() * PENALTY * scale), tol=1e-10, max_iter=10_000)
        self.found.fit(x[used], y[used])
        return {"accs": torch.tensor(self.found.score(x[~used], y[~used]))}

    def weights(self):
        return torch.from_numpy(np.concatenate([-self.found.coef_, self.found.coef_]).astype(np.float32))

    def classes(self):
        return list(self.found.classes_)


def main() -> None:
    module = model(hidden=True)
    concept, *sets = [
        Concept(number, f"set{number}", torch.utils.data.DataLoader(values, batch_size=9))
        for number, values in enumerate(examples())
    ]
    contents = {"versions": np.array([f"torch {torch.__version__}", f"captum {captum.__version__}"])}
    with TemporaryDirectory() as folder:
        gradient = LayerGradientXActivation(module, None, multiply_by_inputs=False)
        tcav = TCAV(module, "late", classifier=Regression(), layer_attr_method=gradient, save_path=folder)
        explained = examples()[3]
        scores = tcav.interpret(explained, [[each, concept] for each in sets], TARGET)
        for each in sets:
            key = f"{each.id}-{concept.id}"
            stats = tcav.cavs[key]["late"].stats
            row = list(stats["classes"]).index(concept.id)
            direction = stats["weights"][row].numpy()
            contents[f"{each.id}/direction"] = direction / np.linalg.norm(direction)
            slopes = gradient.attribute(explained, TARGET)
            along = slopes.detach().flatten(1).numpy() @ contents[f"{each.id}/direction"]
            contents[f"{each.id}/sensitivities"] = along
            contents[f"{each.id}/score"] = scores[key]["late"]["sign_count"][1].numpy()  # in the order above
            contents[f"{each.id}/accuracy"] = np.float32(stats["accs"])
    np.savez_compressed(PATH, **contents)
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.1f} kB, {len(contents)} arrays")
    print({name: value for name, value in contents.items() if value.size == 1})


if __name__ == "__main__":
    main()
