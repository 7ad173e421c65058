# SPDX-License-Identifier: Apache-2.0
"""Writes a wan model's graphs (`graphs`) beside its weights, for ``avatar engine build``.

::

    python -m interactive_avatar.generator.wan.export models/wan
    python -m interactive_avatar.generator.wan.export --random wan-1.3b --out DIR   # to try it out
    avatar engine build --model models/wan --graph layers_00_01

The graphs hold no weights: they point into ``model.safetensors`` and, for the VAE's decoder,
``decoder.safetensors``. The engines that are built from them are not run by this project: a wan
model streams with the torch backend (docs/wan.md says what was compiled, and how far).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interactive_avatar.generator.model import CONFIG_NAME, WEIGHTS_NAME, ModelError, sha256_of
from interactive_avatar.generator.signatures import GraphSignature
from interactive_avatar.generator.wan.config import SIZES, WanConfig

GRAPHS_NAME = 'graphs.json'
DECODER_NAME = 'decoder.safetensors'
GRAPHS_FORMAT = 1


@dataclass(frozen=True)
class WanGraphFiles:
    """The graphs of a wan model folder, as `engines.EngineSpec` asks for them.

    Attributes:
        sha256: file name -> hash. graphs: graph -> inputs and outputs.
    """

    root: Path
    sha256: dict[str, str]
    graphs: dict[str, GraphSignature]

    @classmethod
    def open(cls, root: Path | str) -> WanGraphFiles:
        """Read what `export_wan` wrote, and see that it is all there.

        Raises:
            ModelError: says what is missing, changed or of another version.
        """
        root = Path(root).expanduser()
        again = f"run 'python -m interactive_avatar.generator.wan.export {root}'"
        try:
            values = json.loads((root / GRAPHS_NAME).read_text())
            if values['format'] != GRAPHS_FORMAT:
                raise ValueError(f'it has format {values["format"]}, not {GRAPHS_FORMAT}')
            graphs = {str(name): GraphSignature.from_dict(entry)
                      for name, entry in values['graphs'].items()}
            hashes: dict[str, str] = dict(values['sha256'])
            sizes: dict[str, int] = dict(values['bytes'])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f'{str(root / GRAPHS_NAME)!r} cannot be read: {error}; {again}'
                             ) from error
        for name, size in sizes.items():
            path = root / name
            if not path.is_file() or path.stat().st_size != size:
                raise ModelError(f'{str(path)!r} is missing or has changed; {again}')
            # Weights are gigabytes: their size must do.
            if path.suffix == '.onnx' and sha256_of(path) != hashes[name]:
                raise ModelError(f'{str(path)!r} is corrupt; {again}')
        return cls(root, hashes, graphs)

    def graph(self, name: str) -> Path:
        """ONNX graph by name."""
        return self.root / f'{name}.onnx'


def export_wan(root: Path, config: WanConfig, network: Any, decoder: Any, layers_per_graph: int,
               names: Sequence[str] = (), say: Any = print) -> None:
    """Write graphs of a model whose ``model.safetensors`` lies in ``root``.

    Args:
        network: `WanTransformer` with these weights. decoder: of the VAE.
        names: only these graphs; all of them if empty.

    Raises:
        ValueError: if there is no graph of such a name.
    """
    import torch
    from safetensors.torch import save_file

    from interactive_avatar.generator.export import OPSET, export_graph, safetensors_offsets
    from interactive_avatar.generator.wan.graphs import (
        DECODER_GRAPHS,
        graph_names,
        wan_graph,
        wan_signature,
    )

    known = graph_names(config, layers_per_graph)
    wrong = sorted(set(names) - set(known))
    if wrong:
        raise ValueError(f'there is no graph {wrong[0]!r} with {layers_per_graph} layers per '
                         f'graph; there are {", ".join(known)}')
    save_file({name: value.contiguous() for name, value in decoder.state_dict().items()},
              str(root / DECODER_NAME))
    offsets = {name: safetensors_offsets(root / name) for name in (WEIGHTS_NAME, DECODER_NAME)}
    dtype = network.patch_embedding.weight.dtype
    decoder = decoder.float().eval()
    found: dict[str, GraphSignature] = {}
    for name in names or known:
        started = time.monotonic()
        location = DECODER_NAME if name in DECODER_GRAPHS else WEIGHTS_NAME
        # Graphs are written in float32; only what one holds is widened, and narrowed again.
        module = wan_graph(name, network, decoder).float().eval()
        with torch.no_grad():
            found[name] = export_graph(module, wan_signature(name, config, decoder), OPSET,
                                       offsets[location], root / f'{name}.onnx', location)
        if name not in DECODER_GRAPHS:
            module.to(dtype)
        say(f'{name}: {time.monotonic() - started:.1f} s')
    files = [WEIGHTS_NAME, DECODER_NAME, *(f'{name}.onnx' for name in found)]
    (root / GRAPHS_NAME).write_text(json.dumps({
        'format': GRAPHS_FORMAT, 'layers_per_graph': layers_per_graph,
        'sha256': {name: sha256_of(root / name) for name in files},
        'bytes': {name: (root / name).stat().st_size for name in files},
        'graphs': {name: signature.to_dict() for name, signature in found.items()}},
        indent=1) + '\n')


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 with a message if the model cannot be exported."""
    parser = argparse.ArgumentParser(prog='python -m interactive_avatar.generator.wan.export',
                                     description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path, nargs='?', help='folder of a wan model')
    parser.add_argument('--random', choices=sorted(SIZES), help='random weights of this size')
    parser.add_argument('--side', type=int, default=0, help='of the picture, with --random')
    parser.add_argument('--out', type=Path, help='folder for a random model')
    parser.add_argument('--layers-per-graph', type=int, default=1)
    parser.add_argument('--graph', action='append', default=[],
                        help='only this graph; may be given several times')
    args = parser.parse_args(argv)
    if (args.model is None) == (args.random is None) or (args.random and args.out is None):
        parser.error('give the folder of a model, or --random and --out')
    try:
        config, root, network, decoder = (_random(args) if args.random else _opened(args.model))
        export_wan(root, config, network, decoder, args.layers_per_graph, args.graph)
    except (ModelError, ValueError, OSError) as error:
        print(f'wan export: {error}', file=sys.stderr)
        return 1
    return 0


def _opened(root: Path) -> tuple[WanConfig, Path, Any, Any]:
    import torch

    from interactive_avatar.generator.wan.files import WanFiles
    from interactive_avatar.generator.wan.stream import load_network
    from interactive_avatar.generator.wan.vae import load_decoder

    files = WanFiles.open(root)
    decoder = load_decoder(files.component('vae'), torch.device('cpu'), torch.float32)
    return files.config, files.root, load_network(files), decoder


def _random(args: argparse.Namespace) -> tuple[WanConfig, Path, Any, Any]:
    import torch
    from safetensors.torch import save_file

    from interactive_avatar.generator.wan.bench import TINY_VAE, build
    from interactive_avatar.generator.wan.network import WanTransformer
    from interactive_avatar.generator.wan.vae import StreamingDecoder, VaeConfig

    config = SIZES[args.random]
    if args.side:
        config = replace(config, picture_px=args.side)
    config.check()
    cpu = torch.device('cpu')
    network = build(lambda: WanTransformer(config), cpu, torch.bfloat16)
    decoder = build(lambda: StreamingDecoder(
        TINY_VAE if config.network.width < 512 else VaeConfig()), cpu, torch.bfloat16)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()},
              str(args.out / WEIGHTS_NAME))
    (args.out / CONFIG_NAME).write_text(config.to_json() + '\n')
    return config, args.out, network, decoder


if __name__ == '__main__':
    sys.exit(main())
