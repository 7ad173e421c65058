# SPDX-License-Identifier: Apache-2.0
"""A model on disk: ``config.json``, ``model.safetensors``, graphs and a manifest with hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.signatures import GraphSignature, graph_signatures

CONFIG_NAME = 'config.json'
WEIGHTS_NAME = 'model.safetensors'
MANIFEST_NAME = 'manifest.json'
IDENTITIES_NAME = 'identities'
MANIFEST_FORMAT = 2


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
        version: of the weights; every graph of the model was made for it.
        graphs: graph -> its inputs and outputs.
    """

    root: Path
    config: GeneratorConfig
    sha256: dict[str, str] = field(default_factory=dict)
    version: str = ''
    graphs: dict[str, GraphSignature] = field(default_factory=dict)

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
            if manifest.get('format') != MANIFEST_FORMAT:
                raise ValueError(f'its manifest has format {manifest.get("format")}, this version '
                                 f'reads {MANIFEST_FORMAT}')
            hashes: dict[str, str] = manifest['sha256']
            version = str(manifest['model_version'])
            graphs = {str(name): (str(entry['model_version']), GraphSignature.from_dict(entry))
                      for name, entry in manifest['graphs'].items()}
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
        for name, wanted in graph_signatures(config).items():
            if name not in graphs or f'{name}.onnx' not in hashes:
                raise ModelError(f'model {str(root)!r} has no graph {name!r} in its manifest; run '
                                 f"'avatar export' again")
            made_for, found = graphs[name]
            if made_for != version:
                raise ModelError(f'graph {name!r} of {str(root)!r} was made for model version '
                                 f"{made_for}, the weights are {version}; run 'avatar export' "
                                 f'again')
            difference = wanted.difference(found)
            if difference:
                raise ModelError(f'graph {name!r} of {str(root)!r} does not fit {CONFIG_NAME}: '
                                 f"{difference}; run 'avatar export' again")
        return cls(root, config, hashes, version,
                   {name: signature for name, (_, signature) in graphs.items()})

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


def write_manifest(root: Path, graphs: Mapping[str, GraphSignature],
                   note: dict[str, object] | None = None) -> None:
    """Hash every file that a loader needs and write the manifest last.

    Args:
        root: the model's directory.
        graphs: graph -> what its file was found to take and give.
        note: further entries, for people.
    """
    names = [CONFIG_NAME, WEIGHTS_NAME, *sorted(path.name for path in root.glob('*.onnx'))]
    hashes = {name: sha256_of(root / name) for name in names}
    version = hashes[WEIGHTS_NAME][:12]
    text = json.dumps({
        'format': MANIFEST_FORMAT, 'model_version': version, 'sha256': hashes,
        'graphs': {name: {'model_version': version, **signature.to_dict()}
                   for name, signature in sorted(graphs.items())}, **(note or {})}, indent=1)
    (root / MANIFEST_NAME).write_text(text + '\n')
