"""Tiny models that several files build reward models on."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.models.tiny import tiny_encoder, tiny_model


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder and an encoder."""
    return {
        "decoder": tiny_model(tmp_path_factory.mktemp("decoder")),
        "encoder": tiny_encoder(tmp_path_factory.mktemp("encoder")),
    }
