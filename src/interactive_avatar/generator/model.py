# SPDX-License-Identifier: Apache-2.0
"""A model on disk: ``config.json``, ``model.safetensors``, graphs and a manifest with hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from interactive_avatar.generator.config import GeneratorConfig

CONFIG_NAME = 'config.json'
WEIGHTS_NAME = 'model.safetensors'
MANIFEST_NAME = 'manifest.json'
IDENTITIES_NAME = 'identities'
GRAPH_NAMES = ('encode_audio', 'encode_image', 'encode_text', 'embed_reference', 'denoise',
               'compress', 'decode')


class ModelError(RuntimeError):
    """A model directory is missing something, corrupt, or of another version."""


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class ModelFiles:
    """Paths of a checked model directory.

    Attributes:
        root: the directory.
        config: sizes of the networks.
        sha256: file name -> hash, from the manifest.
    """

    root: Path
    config: GeneratorConfig
    sha256: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path | str, verify: bool = True) -> ModelFiles:
        """Check a model directory and read its config.

        Raises:
            ModelError: if the directory, a file or a hash is wrong; says which and what to do.
        """
        root = Path(root).expanduser()
        manifest_path = root / MANIFEST_NAME
        if not root.is_dir():
            raise ModelError(f'there is no model directory {str(root)!r}; give the parameter '
                             f"'model' a directory that holds {MANIFEST_NAME}, as models/compact")
        if not manifest_path.is_file():
            raise ModelError(f'{str(root)!r} is not a model: it has no {MANIFEST_NAME}; make one '
                             f"with 'avatar export'")
        try:
            manifest = json.loads(manifest_path.read_text())
            hashes: dict[str, str] = manifest['sha256']
            config = GeneratorConfig.from_json((root / CONFIG_NAME).read_text())
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f'{str(root)!r} cannot be read as a model: {error}; restore the '
                             f"files or run 'avatar export' again") from error
        for name, expected in hashes.items():
            path = root / name
            if not path.is_file():
                raise ModelError(f'model file {str(path)!r} is missing; restore it (git checkout '
                                 f"or 'avatar export')")
            if verify and sha256_of(path) != expected:
                raise ModelError(f'model file {str(path)!r} is corrupt: its sha256 is not the '
                                 f"manifest's; restore it (git checkout or 'avatar export')")
        return cls(root, config, hashes)

    @property
    def weights(self) -> Path:
        """All weights, safetensors."""
        return self.root / WEIGHTS_NAME

    def graph(self, name: str) -> Path:
        """ONNX graph by name; its weights lie in `weights`."""
        return self.root / f'{name}.onnx'

    @cached_property
    def identities(self) -> dict[str, Path]:
        """Named reference pictures shipped with the model."""
        folder = self.root / IDENTITIES_NAME
        return {path.stem: path for path in sorted(folder.glob('*.png'))}


def write_manifest(root: Path, note: dict[str, object] | None = None) -> None:
    """Hash every file that a loader needs and write the manifest last."""
    names = [CONFIG_NAME, WEIGHTS_NAME, *sorted(path.name for path in root.glob('*.onnx'))]
    hashes = {name: sha256_of(root / name) for name in names}
    text = json.dumps({'sha256': hashes, **(note or {})}, indent=2)
    (root / MANIFEST_NAME).write_text(text + '\n')
