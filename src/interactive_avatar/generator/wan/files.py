# SPDX-License-Identifier: Apache-2.0
"""A wan model on disk: ``config.json``, ``model.safetensors``, identities and its components.

Imports no torch, so that a wrong path is refused before anything heavy is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from interactive_avatar.generator.model import (
    CONFIG_NAME,
    IDENTITIES_NAME,
    WEIGHTS_NAME,
    ModelError,
)
from interactive_avatar.generator.wan.config import ARCHITECTURE, WanConfig

COMPONENTS = {
    'vae': 'the VAE in the diffusers layout (config.json, diffusion_pytorch_model.safetensors)',
    'text_encoder': 'UMT5 in the transformers layout',
    'tokenizer': "UMT5's tokenizer",
    'audio_encoder': 'Wav2Vec2 in the transformers layout'}


def is_wan(root: Path | str) -> bool:
    """Whether a model folder says that it is of this architecture."""
    try:
        values = json.loads((Path(root).expanduser() / CONFIG_NAME).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get('architecture') == ARCHITECTURE


@dataclass(frozen=True)
class WanFiles:
    """Paths of a checked wan model folder."""

    root: Path
    config: WanConfig

    @classmethod
    def open(cls, root: Path | str) -> WanFiles:
        """Read the config and see that every file and component is there.

        Raises:
            ModelError: says what is missing and how to bring it in.
        """
        root = Path(root).expanduser()
        try:
            config = WanConfig.from_json((root / CONFIG_NAME).read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f'{str(root)!r} cannot be read as a wan model: {error}; make one '
                             f"with 'avatar import-weights'") from error
        files = cls(root, config)
        if not files.weights.is_file():
            raise ModelError(f'{str(files.weights)!r} is missing; run '
                             f"'avatar import-weights' again")
        for name in COMPONENTS:
            if name != 'audio_encoder' or config.audio.enabled:
                files.component(name)
        return files

    @property
    def weights(self) -> Path:
        """The transformer's weights, safetensors."""
        return self.root / WEIGHTS_NAME

    def component(self, name: str) -> Path:
        """Folder of a component.

        Raises:
            ModelError: if the config names none or it is not there.
        """
        given = self.config.components.get(name)
        option = f'--{name.replace("_", "-")}'
        if not given:
            raise ModelError(f'the model {str(self.root)!r} has no {name}: run '
                             f"'avatar import-weights' with {option}, "
                             f'{COMPONENTS.get(name, "its folder")}')
        path = self.root / Path(given).expanduser()
        if not path.exists():
            raise ModelError(f'the {name} of {str(self.root)!r} is not at {str(path)!r} any more: '
                             f"put it back, or run 'avatar import-weights' with {option}")
        return path

    @cached_property
    def identities(self) -> dict[str, Path]:
        """Named reference pictures kept with the model."""
        return {path.stem: path for path in sorted((self.root / IDENTITIES_NAME).glob('*.png'))}
