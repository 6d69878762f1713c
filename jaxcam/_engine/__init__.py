"""What happens to a user's program; README.md beside this file says what, where, and why it is correct."""

from jaxcam._engine.compiled import by_itself, config, engine, spread
from jaxcam._engine.loops import chunked_fold, chunked_map, chunked_sum, scan
from jaxcam._engine.memory import fitted
from jaxcam._engine.steps import repeated

__all__ = [
    "by_itself",
    "chunked_fold",
    "chunked_map",
    "chunked_sum",
    "config",
    "engine",
    "fitted",
    "repeated",
    "scan",
    "spread",
]
