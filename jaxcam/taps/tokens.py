"""How the tokens of a vision transformer lie on the image."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Tokens:
    """Turns a vision transformer's tokens `[n, t, k]` into maps `[n, *grid, k]`. Made by `jaxcam.tokens`.

    Attributes:
      grid: patches along each axis of space.
      drop: leading tokens that are no patches.
    """

    grid: tuple[int, ...]
    drop: int

    def __call__(self, tokens):
        count = self.drop + prod(self.grid)
        if tokens.ndim != 3 or tokens.shape[1] != count:
            raise ValueError(
                f"The layer returns {tokens.shape}, and {self} reads [n, {count}, k]: "
                f"{self.drop} leading tokens and {' x '.join(map(str, self.grid))} patches. "
                "Tap a layer that returns the token sequence, and give its grid."
            )
        return tokens[:, self.drop :].reshape(tokens.shape[0], *self.grid, tokens.shape[2])


def tokens(grid: tuple[int, ...], *, drop: int = 1) -> Tokens:
    """How the tokens of a vision transformer lie on the image: the `reshape` of `jaxcam.tap`.

    Args:
      grid: patches along each axis of space: `(14, 14)`, rows and columns, for 224 x 224 pixels in patches of 16.
      drop: leading tokens that are no patches: 1 for a class token, 0 where there is none, more with registers.

    Raises:
      ValueError: at the first call, where the layer does not return `drop + rows * columns` tokens.

    Example:
      >>> import jax.numpy as jnp, jaxcam
      >>> jaxcam.tokens((14, 14))(jnp.ones((2, 197, 768))).shape
      (2, 14, 14, 768)
    """
    return Tokens(tuple(map(int, grid)), int(drop))
