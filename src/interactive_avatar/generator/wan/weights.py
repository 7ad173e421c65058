# SPDX-License-Identifier: Apache-2.0
"""Brings Wan2.1 checkpoints of several key layouts into one safetensors file of our names.

Layouts: ``wan`` (the original release), ``diffusers`` (WanTransformer3DModel) and
``self-forcing`` (a .pt with ``generator`` or ``generator_ema``, as Self-Forcing and LongLive save
it). Nothing is guessed: every weight that is missing, left over or of another shape is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.config import WanConfig, WanNetworkConfig
from interactive_avatar.generator.wan.network import WanTransformer

LAYOUTS = ('wan', 'diffusers', 'self-forcing')
HEAD_WIDTH = 128
NAMED_KEYS = 8
"""Keys named in a complaint; the rest are counted."""

ADDED = ('audio.', 'memory_gate', 'audio_projector.', 'compressor.')
"""Parts of our names that Wan2.1 does not have; they start so that they change nothing."""

# Names of the original release -> names of diffusers; norm2 and norm3 change places there.
_TO_DIFFUSERS = (
    (r'\.self_attn\.(q|k|v)\.', r'.attn1.to_\1.'), (r'\.self_attn\.o\.', '.attn1.to_out.0.'),
    (r'\.self_attn\.norm_', '.attn1.norm_'),
    (r'\.cross_attn\.(q|k|v)\.', r'.attn2.to_\1.'), (r'\.cross_attn\.o\.', '.attn2.to_out.0.'),
    (r'\.cross_attn\.norm_', '.attn2.norm_'), (r'\.norm3\.', '.norm2.'),
    (r'\.ffn\.0\.', '.ffn.net.0.proj.'), (r'\.ffn\.2\.', '.ffn.net.2.'),
    (r'^head\.modulation$', 'scale_shift_table'), (r'\.modulation$', '.scale_shift_table'),
    (r'^head\.head\.', 'proj_out.'),
    (r'^text_embedding\.0\.', 'condition_embedder.text_embedder.linear_1.'),
    (r'^text_embedding\.2\.', 'condition_embedder.text_embedder.linear_2.'),
    (r'^time_embedding\.0\.', 'condition_embedder.time_embedder.linear_1.'),
    (r'^time_embedding\.2\.', 'condition_embedder.time_embedder.linear_2.'),
    (r'^time_projection\.1\.', 'condition_embedder.time_proj.'))


def _original_names(name: str) -> tuple[str, ...]:
    """The original release's names of one of our weights; three where ours fuses q, k and v."""
    block = re.match(r'(blocks\.\d+)\.(.*)$', name)
    if block is None:
        for ours, theirs in (('head_modulation', 'head.modulation'), ('head.', 'head.head.'),
                             ('time_projection.', 'time_projection.1.')):
            if name.startswith(ours):
                return (theirs + name[len(ours):],)
        return (name,)
    prefix, rest = block.groups()
    if rest.startswith('qkv.'):
        return tuple(f'{prefix}.self_attn.{part}.{rest[4:]}' for part in 'qkv')
    for ours, theirs in (('text.norm.', 'norm3.'), ('text.', 'cross_attn.'), ('up.', 'ffn.0.'),
                         ('down.', 'ffn.2.'), ('o.', 'self_attn.o.'),
                         ('norm_', 'self_attn.norm_')):
        if rest.startswith(ours):
            return (f'{prefix}.{theirs}{rest[len(ours):]}',)
    return (f'{prefix}.{rest}',)


def source_names(name: str, layout: str) -> tuple[str, ...]:
    """Names under which a layout holds one of our weights, ``name``."""
    names = _original_names(name)
    if layout != 'diffusers':
        return names
    renamed = []
    for one in names:
        for pattern, replacement in _TO_DIFFUSERS:
            changed = re.sub(pattern, replacement, one)
            if changed != one:
                one = changed
                break
        renamed.append(one)
    return tuple(renamed)


def is_added(name: str) -> bool:
    """Whether a weight is none of Wan2.1's."""
    rest = re.sub(r'^blocks\.\d+\.', '', name)
    return rest.startswith(ADDED)


@dataclass
class Checkpoint:
    """Weights on disk by name, read when asked for.

    Attributes:
        shapes: name -> shape. files: where they came from. layout: as recognised.
        heads: number of attention heads if a config.json beside them says so.
    """

    shapes: dict[str, tuple[int, ...]]
    files: list[Path]
    layout: str
    read: Callable[[str], Tensor]
    heads: int | None = None
    notes: dict[str, str] = field(default_factory=dict)


def _refuse_types(types: Mapping[str, str]) -> None:
    small = sorted(name for name, kind in types.items() if 'F8' in kind or 'float8' in kind)
    if small:
        raise ModelError(
            f'{len(small)} weights are 8-bit floats ({small[0]!r}, ...): their scales are not '
            f'part of any of the layouts read here. Import the bf16 or float32 release of the '
            f'same weights; 8 bits are chosen at run time (precision fp8)')


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ModelError(f'there is no checkpoint {str(path)!r}; give a .safetensors or .pt file '
                         f'or the folder that holds the shards')
    folder = path / 'transformer' if (path / 'transformer').is_dir() else path
    indices = sorted(folder.glob('*.safetensors.index.json'))
    if indices:
        names = sorted(set(json.loads(indices[0].read_text())['weight_map'].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(f'{len(missing)} of {len(names)} shards are missing in '
                             f'{str(folder)!r}: {", ".join(missing)}; download them again')
        return [folder / name for name in names]
    files = sorted(folder.glob('*.safetensors')) or sorted(folder.glob('*.pt'))
    shards = [re.search(r'-(\d+)-of-(\d+)\.', file.name) for file in files]
    if files and all(shards):
        total = int(shards[0].group(2))  # type: ignore[union-attr]
        if len(files) != total:
            present = {int(match.group(1)) for match in shards if match}
            absent = sorted(set(range(1, total + 1)) - present)
            raise ModelError(f'{len(files)} of {total} shards are in {str(folder)!r}; missing '
                             f'number {", ".join(map(str, absent))}: download them again')
    elif len(files) > 1:
        raise ModelError(f'{str(folder)!r} holds {len(files)} checkpoints '
                         f'({", ".join(file.name for file in files[:4])}); name one')
    if not files:
        raise ModelError(f'{str(folder)!r} holds no .safetensors and no .pt; give the folder or '
                         f'file of the transformer (not of the VAE or the text encoder)')
    return files


def _strip(name: str) -> str:
    """A key without the wrappers that training leaves around it."""
    name = name.replace('_fsdp_wrapped_module.', '').replace('_orig_mod.', '')
    for prefix in ('model.diffusion_model.', 'diffusion_model.', 'model.'):
        name = name.removeprefix(prefix)
    return name


def open_checkpoint(path: Path, layout: str = 'auto') -> Checkpoint:
    """Find and recognise the weights at ``path``.

    Raises:
        ModelError: if there are none, shards are missing, the layout is unknown or another than
            asked for, or the weights are 8-bit floats.
    """
    from safetensors import SafetensorError, safe_open

    files = _weight_files(path)
    where: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    if files[0].suffix == '.safetensors':
        types: dict[str, str] = {}
        for file in files:
            try:
                with safe_open(str(file), 'pt') as opened:
                    for key in opened.keys():
                        piece = opened.get_slice(key)
                        name = _strip(key)
                        where[name] = (file, key)
                        shapes[name], types[name] = tuple(piece.get_shape()), piece.get_dtype()
            except (OSError, SafetensorError) as error:
                raise ModelError(f'{str(file)!r} cannot be read: {error}; it is cut off or not '
                                 f'safetensors, download it again') from error
        _refuse_types(types)

        def from_shards(name: str) -> Tensor:
            file, key = where[name]
            with safe_open(str(file), 'pt') as opened:
                tensor: Tensor = opened.get_tensor(key)
            return tensor

        read: Callable[[str], Tensor] = from_shards
        nested = ''
    else:
        try:
            loaded: Any = torch.load(files[0], map_location='cpu', weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds here
            raise ModelError(f'{str(files[0])!r} cannot be read as weights: {error}') from error
        nested = next((key for key in ('generator_ema', 'generator') if isinstance(loaded, dict)
                       and isinstance(loaded.get(key), dict)), '')
        state = loaded[nested] if nested else loaded
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise ModelError(f'{str(files[0])!r} is no dictionary of weights, with or without '
                             f"'generator'")
        tensors = {_strip(key): value for key, value in state.items()}
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        _refuse_types({name: str(value.dtype) for name, value in tensors.items()})
        read = tensors.__getitem__
    if any('.attn1.' in name for name in shapes):
        found = 'diffusers'
    elif any('.self_attn.' in name for name in shapes):
        found = 'self-forcing' if nested else 'wan'
    else:
        raise ModelError(f'the keys of {str(path)!r} are of no known layout '
                         f'({", ".join(LAYOUTS)}): {", ".join(sorted(shapes)[:4])}, ...')
    if layout not in ('auto', found):
        raise ModelError(f'{str(path)!r} has the layout {found!r}, not {layout!r}; use --layout '
                         f'auto or {found}')
    return Checkpoint(shapes, files, found, read, _heads(files[0].parent),
                      {'weights': nested} if nested else {})


def _heads(folder: Path) -> int | None:
    try:
        values = json.loads((folder / 'config.json').read_text())
    except (OSError, ValueError):
        return None
    for key in ('num_heads', 'num_attention_heads'):
        if isinstance(values.get(key), int):
            return int(values[key])
    return None


def network_config(checkpoint: Checkpoint) -> WanNetworkConfig:
    """Sizes of the transformer, from the shapes of its weights.

    Raises:
        ModelError: if a weight that tells a size is missing or another kind of Wan is given.
    """
    def shape(name: str) -> tuple[int, ...]:
        source = source_names(name, checkpoint.layout)[0]
        if source not in checkpoint.shapes:
            raise ModelError(f'the weight {source!r} is missing: this is no whole transformer of '
                             f'Wan2.1 in the layout {checkpoint.layout!r}')
        return checkpoint.shapes[source]

    patch = shape('patch_embedding.weight')
    width = patch[0]
    if len(patch) != 5 or patch[1:] != (16, 1, 2, 2):
        raise ModelError(f'patch_embedding.weight is {list(patch)}; the text-to-video models of '
                         f'Wan2.1 have [width, 16, 1, 2, 2] (36 input channels are an '
                         f'image-to-video model, which this network is not)')
    layers = 1 + max(int(match.group(1)) for name in checkpoint.shapes
                     if (match := re.match(r'blocks\.(\d+)\.', name)))
    heads = checkpoint.heads or width // HEAD_WIDTH
    if not heads or width % heads:
        raise ModelError(f"width {width} does not divide into {heads} heads; put the release's "
                         f'config.json beside its weights')
    return WanNetworkConfig(
        width=width, heads=heads, layers=layers, ffn_width=shape('blocks.0.up.weight')[0],
        frequency_width=shape('time_embedding.0.weight')[1],
        text_width=shape('text_embedding.0.weight')[1])


def _named(names: list[str]) -> str:
    more = f' and {len(names) - NAMED_KEYS} more' if len(names) > NAMED_KEYS else ''
    return ', '.join(names[:NAMED_KEYS]) + more


def convert(checkpoint: Checkpoint, config: WanConfig) -> Iterator[tuple[str, Tensor]]:
    """Wan2.1's weights under our names, one by one, checked as a whole before the first.

    Raises:
        ModelError: names missing and unexpected keys and wrong shapes.
    """
    with torch.device('meta'):
        own = {name: tuple(p.shape) for name, p in WanTransformer(config).state_dict().items()
               if not is_added(name)}
    wanted = {name: source_names(name, checkpoint.layout) for name in own}
    known = {source for names in wanted.values() for source in names}
    problems = []
    if missing := sorted(known - set(checkpoint.shapes)):
        problems.append(f'missing: {_named(missing)}')
    if unexpected := sorted(set(checkpoint.shapes) - known):
        problems.append(f'unexpected: {_named(unexpected)}')
    wrong = []
    for name, sources in wanted.items():
        for source in sources:
            shape = checkpoint.shapes.get(source)
            rows = own[name][0] // len(sources)
            expected = {(rows, *own[name][1:])}
            if name == 'patch_embedding.weight':
                expected = {(rows, config.network.latent_channels, 1, config.network.patch,
                             config.network.patch)}
            elif name.endswith('modulation'):
                expected = {(1, *own[name])}
            if shape is not None and shape not in expected:
                wrong.append(f'{source} {list(shape)} instead of {list(expected.pop())}')
    if wrong:
        problems.append(f'wrong shapes: {_named(wrong)}')
    if problems:
        raise ModelError(f'the checkpoint (layout {checkpoint.layout}) does not fit '
                         f'{config.name}: ' + '; '.join(problems))
    for name, sources in wanted.items():
        parts = [checkpoint.read(source) for source in sources]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        yield name, whole.reshape(own[name])


def named_config(config: WanConfig, network: WanNetworkConfig) -> WanConfig:
    """``config`` with an imported network's sizes and a name that says them."""
    billions = {(1536, 30): 'wan-1.3b', (5120, 40): 'wan-14b'}
    name = billions.get((network.width, network.layers), f'wan-{network.width}x{network.layers}')
    return replace(config, name=name, network=network)
