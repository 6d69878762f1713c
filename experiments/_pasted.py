"""Photographs in which it is known where the class is: two objects, cut out by hand, on a third photograph.

Five photographs come with scikit-image: a cat, an espresso, a motorcycle; a rocket and bricks as backgrounds. A folder
adds two photographs with three more objects and two backgrounds, where it holds files of these names.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jaxcam.image import open_image

CATS = ("tabby", "tiger cat", "Egyptian cat")


class Cutout(NamedTuple):
    """An object of a photograph."""

    file: str
    labels: tuple[str, ...]  # what an ImageNet model may rightly call it
    outline: str  # corners, x and y in hundredths of the sides


CUTOUTS = {
    "cat": Cutout("chelsea.png", CATS, "9,3 80,0 83,20 80,45 76,62 68,85 55,97 35,97 12,85 3,60 6,30"),
    "espresso": Cutout(
        "coffee.png",
        ("espresso", "cup", "coffee mug"),
        "28,22 33,13 40,6 48,4 58,6 66,13 70,20 70,26 75,35 80,50 79,68 73,82 62,92 48,96 34,93 23,82 "
        "15,67 13,50 18,35",
    ),
    "motorcycle": Cutout(
        "motorcycle_left.png",
        ("moped", "motor scooter"),
        "12,43 18,36 20,33 29,34 39,42 43,40 52,31 61,27 66,18 69,16 74,21 79,26 76,31 76,40 77,51 86,58 "
        "90,68 92,78 90,87 85,90 77,85 71,75 68,66 63,73 46,86 43,74 31,80 23,78 17,70 17,58 18,51 13,45",
    ),
    "bulldog": Cutout(
        "dog-and-cat.png",
        ("bull mastiff", "boxer", "French bulldog", "American Staffordshire terrier"),
        "35,12 37,8 41,7 49,6 55,7 59,9 60,13 59,16 58,21 62,27 66,31 72,35 74,41 73,48 72,53 68,54 "
        "63,53 59,50 58,56 58,64 52,64 52,58 51,52 45,51 44,56 44,62 39,63 37,60 39,58 39,50 37,39 36,31 "
        "37,25 36,18",
    ),
    "tabby": Cutout(
        "dog-and-cat.png",
        CATS,
        "21,66 24,65 25,70 32,72 38,69 46,66 56,65 63,67 64,62 63,54 66,55 70,58 76,54 77,60 77,67 79,73 "
        "80,81 83,87 89,96 87,98 82,96 77,89 74,91 75,98 71,99 66,96 62,94 58,99 46,99 37,94 29,100 21,99 "
        "25,94 29,85 32,77 26,75 21,71",
    ),
    "puppy": Cutout(
        "dog-cat-small.jpg",
        ("golden retriever", "Labrador retriever"),
        "17,23 19,18 25,8 32,5 42,6 49,8 54,15 57,20 58,25 54,28 53,37 52,53 53,68 53,93 42,99 7,99 "
        "6,88 10,77 1,68 1,62 9,53 19,46 17,37",
    ),
}
BACKGROUNDS = ["horses.jpg", "swan.jpg", "rocket.jpg", "brick.png"]


class Pasted(NamedTuple):
    images: np.ndarray  # uint8[n, size, size, 3]
    masks: np.ndarray  # bool[n, 2, size, size], of the left object and the right one
    names: list[tuple[str, str]]  # of the objects


def pasted(folder: Path | None, *, size: int = 224) -> Pasted:
    """Every ordered pair of objects whose labels differ; size, height and background change from pair to pair."""
    files = photographs(folder)
    rng = np.random.default_rng(0)
    cutouts = {name: cut for name, cut in CUTOUTS.items() if cut.file in files}
    backgrounds = [files[name] for name in BACKGROUNDS if name in files]
    names = [(a, b) for a in cutouts for b in cutouts if cutouts[a].labels != cutouts[b].labels]
    images, masks = [], []
    for index, pair in enumerate(names):
        image = square(open_image(backgrounds[index % len(backgrounds)]).convert("RGB"), size)
        there = []
        for left, name in zip((0, size // 2), pair, strict=True):
            photo, outline = cut_out(open_image(files[cutouts[name].file]).convert("RGB"), cutouts[name].outline)
            scale = rng.uniform(0.4, 0.5) * size / max(photo.size)
            sides = [round(scale * side) for side in photo.size]
            corner = left + (size // 2 - sides[0]) // 2, int(rng.integers(0, size - sides[1]))
            mask = Image.new("L", image.size)
            mask.paste(outline.resize(sides, Image.Resampling.BICUBIC), corner)
            whole = Image.new("RGB", image.size)
            whole.paste(photo.resize(sides, Image.Resampling.BICUBIC), corner)
            image = Image.composite(whole, image, mask.filter(ImageFilter.GaussianBlur(1)))  # no sharp edge
            there.append(np.asarray(mask) > 127)
        images.append(np.asarray(image))
        masks.append(there)
    return Pasted(np.stack(images), np.array(masks), names)


def photographs(folder: Path | None) -> dict[str, Path]:
    """The files at hand, by name: those of the folder, and what scikit-image ships."""
    folders = [Path(folder)] if folder else []
    if spec := find_spec("skimage"):
        folders.append(Path(spec.origin).parent / "data")
    wanted = [cut.file for cut in CUTOUTS.values()] + BACKGROUNDS
    return {name: each / name for each in reversed(folders) for name in wanted if (each / name).exists()}


def cut_out(photo: Image.Image, outline: str) -> tuple[Image.Image, Image.Image]:
    """The rectangle around an outline, and which of its pixels lie inside."""
    corners = [tuple(map(float, corner.split(","))) for corner in outline.split()]
    mask = Image.new("L", photo.size)
    points = [(x / 100 * photo.width, y / 100 * photo.height) for x, y in corners]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    box = mask.getbbox()
    return photo.crop(box), mask.crop(box)


def square(photo: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle, resized."""
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return photo.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
