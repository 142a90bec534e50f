"""Transformers without what it imports in vain."""

from __future__ import annotations


def import_lean() -> None:
    """To be called before the first model or tokenizer is made. Every process of a run makes one.

    transformers imports scikit-learn, and scipy and pandas with it, for one kind of assisted generation: measured, a
    quarter of the CPU time that a process takes to its first model.
    """
    from transformers import utils

    setattr(utils, "is_sklearn_available", lambda: False)  # noqa: B010  # its types do not export it
