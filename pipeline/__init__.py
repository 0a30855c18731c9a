"""A Constitutional AI pipeline: a written constitution in, an aligned and evaluated checkpoint out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.daily.run import Run as Run

__version__ = "0.1.0"
__all__ = ["Run"]


def __getattr__(name: str) -> Any:
    """``Run`` is imported when it is first asked for, because it reads the whole configuration."""
    if name == "Run":
        from pipeline.daily.run import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
