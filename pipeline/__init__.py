"""A Constitutional AI pipeline: a written constitution in, an aligned and evaluated checkpoint out."""

__version__ = "0.1.0"
