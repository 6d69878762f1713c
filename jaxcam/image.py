"""Files in, model-ready batches out.

An image is a path, a PIL image or an array; whatever its mode, it becomes upright RGB, is resized, cropped and
normalised exactly as torchvision does it with PIL images, and leaves as one `float32[n, crop, crop, 3]` batch.

Conventions:
- Arrays are `[h, w, 3]`, channels last: uint8 in 0..255, or floating point in [0, 1]. Nothing else is guessed at.
- "Images" is one image, a list of images of any sizes, or one array `[n, h, w, 3]`.
- Transparent images lie on white. Of an animation, the first frame counts. Colour profiles are ignored, as in training.
- An error names the file, or the image's place in the list, and says what to do.
"""

import contextlib
import io
import logging
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxcam import _files, _progress
from jaxcam._errors import shown, unknown

ASSETS = Path(__file__).parent / "assets"
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it has to say of a file, an error says in a sentence
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
VIEW_SIDE = 640  # pixels: enough for any figure
SLACK = 1e-3  # by which floats may leave [0, 1]: other people's resizing overshoots
MOST_BYTES = 2**30  # of an image file
STRIP = 512  # rows that are laid on white at once
LIMIT = "Scale it down, or raise the limit if you trust the file: --max-pixels, PIL.Image.MAX_IMAGE_PIXELS in Python"


def sample() -> Path:
    """The path of the photograph that comes with the package: a cat, 451 x 300 pixels (CC0).

    Example:
      >>> open_image(sample()).size
      (451, 300)
    """
    return ASSETS / "chelsea.jpg"


def open_image(path: str | os.PathLike) -> Image.Image:
    """Reads an image file as an upright RGB image, whatever its format, mode and EXIF orientation.

    Args:
      path: of any format that Pillow reads without another program. Alpha is composited on white; 16-bit grey is scaled
        to 8 bits. `PIL.Image.MAX_IMAGE_PIXELS`, 89 million, is the most pixels that are decoded; of a JPEG with up to
        twice as many, each second one in each direction.

    Raises:
      OSError: the file is missing, a folder, a pipe, or cannot be read.
      ValueError: the file is empty, truncated, damaged, no image, or far too large.

    Example:
      >>> Image.new("CMYK", (60, 40)).save("photo.jpg")
      >>> open_image("photo.jpg").mode
      'RGB'
    """
    return decode_image(_files.read(path, MOST_BYTES), f"'{shown(os.fspath(path))}'")


def decode_image(content: bytes, name: str = "The image") -> Image.Image:
    """The content of an image file as an upright RGB image; `name` is what errors call it.

    Raises:
      ValueError: the content is empty, truncated, damaged, no image, or far too large.

    Example:
      >>> decode_image(sample().read_bytes()).size
      (451, 300)
    """
    if not content:
        raise ValueError(f"{name} is empty (0 bytes).")
    return _upright_rgb(_opened(content, name), name)


def _opened(content: bytes, name: str) -> Image.Image:
    """The image in a file's bytes, its header read and no more pixels to come than are allowed."""
    try:
        with _quiet():
            image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {shown(error)} {LIMIT}.") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that Pillow can read, or its header is damaged.") from None
    except (Exception, MemoryError) as error:  # on damaged bytes a decoder may raise anything
        raise _damaged(name, error) from error
    if image.format == "EPS":
        raise ValueError(f"{name} is PostScript, a program that another would have to run. Save it as PNG first.")
    most = Image.MAX_IMAGE_PIXELS or math.inf
    if image.format == "JPEG" and not image.info.get("progressive") and _pixels(image) > most:
        image.draft(None, (image.width // 2, image.height // 2))  # what is progressive is held whole all the same
    if _pixels(image) > most:
        raise ValueError(f"{name} is too large: it has {_pixels(image):,} pixels, and the limit is {most:,}. {LIMIT}.")
    return image


def _pixels(image: Image.Image) -> int:
    return image.width * image.height


@contextlib.contextmanager
def _quiet():
    """Pillow warns of broken EXIF blocks, odd tags and large images; what matters of it is an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@dataclass(frozen=True)
class Preprocess:
    """What a classifier expects of its images: short side to `resize`, centre `crop`, `(x - mean) / std`.

    Resizing is antialiased, with torchvision's rounding of sizes and offsets: a uint8 image comes out bit for bit as
    from `Resize`, `CenterCrop`, `ToTensor` and `Normalize` there. Floating-point images are resized in float32 by the
    same filter, and clipped to [0, 1] where it overshoots. A crop of the share `crop / resize` that is resized
    afterwards, as TensorFlow's models are described, is the same up to rounding and the filter's reach at the edge.

    Attributes:
      resize: the short side after resizing, in pixels.
      crop: the side of the square that is cut from the centre, in pixels, at most `resize`.
      mean: per channel (RGB), of images in [0, 1].
      std: per channel (RGB), of images in [0, 1].
      interpolation: `"bilinear"`, `"bicubic"` or `"lanczos"`.

    Raises:
      ValueError: `crop` exceeds `resize`, a size or standard deviation is not positive, or an unknown interpolation.

    Example:
      >>> preprocess = Preprocess(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
      >>> preprocess([np.zeros((300, 451, 3), np.uint8), Image.new("L", (500, 400))]).shape
      (2, 224, 224, 3)
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def __post_init__(self):
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"crop is {self.crop} and resize is {self.resize}; they must satisfy 0 < crop <= resize.")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every channel's must be positive.")
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)

    def __call__(self, images: Any, *, progress: bool = True) -> Float[Array, "n h w 3"]:
        """The normalised batch `float32[n, crop, crop, 3]` of one image, a list of images, or an array `[n, h, w, 3]`.

        A bar shows how far it is, if that takes more than two seconds; `progress=False` turns it off.

        Raises:
          OSError: a file cannot be opened.
          ValueError: an image cannot be decoded, or an array is not uint8 or floating point in [0, 1], `[h, w, 3]`.

        Example:
          >>> preprocess = Preprocess(32, 32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
          >>> float(preprocess(np.ones((48, 64, 3), np.float32)).max())
          1.0
        """
        return jnp.asarray(self.on_host(images, progress=progress))

    def on_host(self, images: Any, *, progress: bool = False) -> Float[np.ndarray, "n h w 3"]:
        """The same batch as a NumPy array, without a device: what the processes that read a data set call.

        Example:
          >>> preprocess = Preprocess(32, 32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
          >>> type(preprocess.on_host(sample())).__name__
          'ndarray'
        """
        named, batch = _named(images), []
        with _progress.shown("preparing images", len(named), enabled=progress) as advance:
            for name, image in named:
                batch.append(self._resized(image, name))
                advance()
        return (np.stack(batch) - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def view(self, images: Any) -> list[np.ndarray]:
        """For display: the square that the model sees of each image, uint8 `[s, s, 3]` at the image's own resolution.

        The region is the centre crop carried back to the original pixels. It is never enlarged, and scaled down only
        where a side would exceed 640 pixels. Raises as `__call__` does.

        Example:
          >>> preprocess = Preprocess(256, 224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
          >>> preprocess.view(Image.new("RGB", (600, 400)))[0].shape
          (350, 350, 3)
        """
        return [self._region(image, name) for name, image in _named(images)]

    def restore(self, images: Any) -> Float[np.ndarray, "*n h w 3"]:
        """The inverse of the normalisation: `images * std + mean`, float32, clipped to [0, 1].

        Raises:
          ValueError: the last axis does not hold 3 channels.

        Example:
          >>> preprocess = Preprocess(32, 32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
          >>> float(preprocess.restore(np.zeros((1, 32, 32, 3)))[0, 0, 0, 0])
          0.5
        """
        images = np.asarray(images, np.float32)
        if images.ndim < 3 or images.shape[-1] != 3:
            raise ValueError(f"restore takes images [n, h, w, 3]; these have shape {images.shape}.")
        return np.clip(images * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32), 0, 1)

    def _resized(self, image, name) -> np.ndarray:
        planes, top, left, (width, height) = self._layout(image, name)
        box = left, top, left + self.crop, top + self.crop
        kind = INTERPOLATIONS[self.interpolation]
        pixels = np.dstack([np.asarray(plane.resize((width, height), kind).crop(box)) for plane in planes])
        return pixels / np.float32(255) if pixels.dtype == np.uint8 else np.clip(pixels, 0, 1)

    def _region(self, image, name) -> np.ndarray:
        planes, top, left, (width, height) = self._layout(image, name)
        across, down = planes[0].width / width, planes[0].height / height  # original pixels per resized pixel
        right = min((left + self.crop) * across, planes[0].width)  # rounding may reach beyond the edge
        bottom = min((top + self.crop) * down, planes[0].height)
        box = left * across, top * down, right, bottom
        side = max(1, round(min(VIEW_SIDE, self.crop * min(across, down))))
        resized = (plane.resize((side, side), Image.Resampling.BICUBIC, box=box) for plane in planes)
        pixels = np.dstack([np.asarray(each) for each in resized])
        return pixels if pixels.dtype == np.uint8 else np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)

    def _layout(self, image, name):
        """The image's planes, and torchvision's rounding of the crop's offset and the resized size."""
        planes = _planes(image, name)
        width, height = planes[0].size
        short = min(width, height)
        width, height = self.resize * width // short, self.resize * height // short
        if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(
                f"{name} is {planes[0].width} pixels wide and {planes[0].height} high: too narrow to resize "
                f"its short side to {self.resize}. Crop it first."
            )
        return planes, round((height - self.crop) / 2), round((width - self.crop) / 2), (width, height)


def _named(images) -> list[tuple[str, Any]]:
    """Each single image, with the name that errors call it by."""
    if isinstance(images, np.ndarray | jax.Array) and images.ndim == 4:
        images = list(np.asarray(images))
    if not isinstance(images, list | tuple):
        return [("The image", images)]
    if not images:
        raise ValueError("There are no images: the list is empty.")
    return [(f"Image {index} of {len(images)}", image) for index, image in enumerate(images, 1)]


def _planes(image, name) -> list[Image.Image]:
    """One RGB image, or the three float32 planes of a floating-point image: what PIL can resize."""
    if isinstance(image, str | os.PathLike):
        return [open_image(image)]
    if isinstance(image, Image.Image):
        return [_upright_rgb(image, name)]
    if isinstance(image, np.ndarray | jax.Array):
        array = _checked(np.asarray(image), name)
        if array.dtype == np.uint8:
            return [Image.fromarray(array)]
        return [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(array, -1, 0)]
    raise ValueError(f"{name} is of type {type(image).__name__}; give a path, a PIL image or an array [h, w, 3].")


def _checked(array, name) -> np.ndarray:
    """The array, uint8 or float32, or the error that says what is wrong with it."""
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"{name} has shape {array.shape}; expected [h, w, 3]. {_shape_advice(array.shape)}")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: it has no pixels.")
    if array.dtype == np.uint8:
        return array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} holds {array.dtype}; expected uint8 or floating point. "
            "Use .astype(np.uint8) where the values are 0..255, or divide by their maximum as floats."
        )
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite pixels. Look at the step that made it.")
    low, high = array.min(), array.max()
    if low < -SLACK:
        raise ValueError(
            f"{name} has negative pixels (down to {low:.3g}); floats must lie in [0, 1]. "
            "Is it normalised already? Give the original image."
        )
    if high > 1 + SLACK:
        advice = "Divide by 255, or pass uint8." if high <= 255 else "Divide by the largest possible value."
        raise ValueError(f"{name} has pixels up to {high:.4g}; floats must lie in [0, 1]. {advice}")
    return np.clip(array, 0, 1)


def _shape_advice(shape) -> str:
    if len(shape) == 2:
        return "It looks grey: use np.stack([image] * 3, axis=-1)."
    if len(shape) != 3:
        return "Several images are one array [n, h, w, 3] or a list of arrays [h, w, 3]."
    if shape[0] == 3:
        return "The channels come first: use np.moveaxis(image, 0, -1)."
    advice = {1: "It looks grey: use np.repeat(image, 3, axis=-1).", 4: "Drop the alpha channel: use image[..., :3]."}
    return advice.get(shape[-1], "The last axis must be the channels red, green, blue.")


def _damaged(name, error) -> ValueError:
    said = shown(error).rstrip(".") or type(error).__name__
    return ValueError(f"{name} is truncated or damaged: {said}.")


TURNS = {  # by EXIF's number of how the camera was held
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright_rgb(image, name) -> Image.Image:
    """The image as it should be seen; itself where it is so already."""
    if not (image.width and image.height):
        raise ValueError(f"{name} is {image.width} pixels wide and {image.height} high: it has no pixels.")
    try:
        with _quiet():
            image.load()
    except (Exception, MemoryError) as error:  # on damaged bytes a decoder may raise anything
        raise _damaged(name, error) from error
    with _quiet(), contextlib.suppress(Exception):  # an EXIF block that cannot be read says nothing
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        if turn is not None:
            kept = {key: value for key, value in image.info.items() if key == "transparency"}  # not the EXIF block
            image = image.transpose(turn)
            image.info = kept
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image, name)
    try:
        if image.has_transparency_data:
            return _on_white(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} has the mode {image.mode}, which cannot become RGB: {shown(error)}.") from None
    except (Exception, MemoryError) as error:  # such as a palette that is missing
        raise _damaged(name, error) from error


def _strips(image):
    """The place and the pixels of some rows after others: what is computed of them takes less memory than of all."""
    for top in range(0, image.height, STRIP):
        yield top, image.crop((0, top, image.width, min(top + STRIP, image.height)))


def _on_white(image) -> Image.Image:
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        strip = strip.convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return result


def _eight_bits(image, name) -> Image.Image:
    """Grey of higher precision: 16-bit integers (which Pillow may hold in 32), or floats in [0, 1]."""
    highest = 1 if image.mode == "F" else 65535
    result = np.empty((image.height, image.width), np.uint8)
    for top, strip in _strips(image):
        with np.errstate(invalid="ignore"):  # of NaN, which is refused next
            values = np.asarray(strip, np.float64)
        if not (values.min() >= 0 and values.max() <= highest):
            outside = f"the mode {image.mode} and grey values outside 0..{highest}"
            raise ValueError(f"{name} has {outside}. Rescale them first.")
        result[top : top + STRIP] = np.round(values * (255 / highest))
    return Image.fromarray(result)
