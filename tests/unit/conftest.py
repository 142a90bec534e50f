"""Fixtures of several files: tiny models to build reward models on, and databases for feedback."""

from __future__ import annotations

from pathlib import Path

import pytest
from feedback_stores import clock, postgres, store, url

from rlhf_ray.models.tiny import tiny_encoder, tiny_model

__all__ = ["bases", "clock", "postgres", "store", "url"]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder and an encoder."""
    return {
        "decoder": tiny_model(tmp_path_factory.mktemp("decoder")),
        "encoder": tiny_encoder(tmp_path_factory.mktemp("encoder")),
    }
