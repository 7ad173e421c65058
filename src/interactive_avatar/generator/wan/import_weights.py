# SPDX-License-Identifier: Apache-2.0
"""``avatar import-weights``: a checkpoint of Wan2.1's family becomes a model folder."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from interactive_avatar.generator.model import CONFIG_NAME, WEIGHTS_NAME, ModelError
from interactive_avatar.generator.wan.config import WAN_1_3B, WanConfig
from interactive_avatar.generator.wan.files import COMPONENTS

PROVENANCE_NAME = 'provenance.json'
DTYPES = ('bfloat16', 'float32')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument('path', type=Path, help='a .safetensors or .pt, or the folder of the '
                                                'shards or of the whole release')
    parser.add_argument('--out', type=Path, required=True, help='folder of the model to write')
    parser.add_argument('--layout', default='auto',
                        choices=('auto', 'wan', 'diffusers', 'self-forcing'))
    for name, what in COMPONENTS.items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=Path, metavar='PATH',
                            help=f'{what} (found by itself in a release of diffusers)')
    parser.add_argument('--light-decoder', type=Path, metavar='FILE',
                        help='TAEHV weights for Wan2.1 (taew2_1): decode with it instead of the '
                             'VAE, quicker and less sharp')
    parser.add_argument('--lora', type=Path, metavar='FILE', help='adapters to merge')
    parser.add_argument('--lora-strength', type=float, default=1.0)
    parser.add_argument('--lora-rank', type=int, help='refuse adapters of another rank')
    parser.add_argument('--picture-px', type=int, default=WAN_1_3B.picture_px,
                        help='side of the pictures to make')
    parser.add_argument('--chunk-latents', type=int, default=WAN_1_3B.chunk_latents,
                        help='latent frames made together, as the weights were distilled')
    parser.add_argument('--no-audio', action='store_true',
                        help='leave audio attention out: no lip movement, no audio encoder')
    parser.add_argument('--additions', type=Path, metavar='FILE',
                        help='trained weights of audio attention and memory (.safetensors, our '
                             'names); without it they start so that they change nothing')
    parser.add_argument('--dtype', default='bfloat16', choices=DTYPES)


def find_components(args: argparse.Namespace) -> dict[str, Path]:
    """Components that were named, or lie beside the transformer in a diffusers release.

    Raises:
        ModelError: if a named one does not exist.
    """
    found: dict[str, Path] = {}
    release = args.path if (args.path / 'transformer').is_dir() else args.path.parent
    for name in (*COMPONENTS, 'light_decoder'):
        given: Path | None = getattr(args, name)
        if given is not None and not given.exists():
            raise ModelError(f'--{name.replace("_", "-")} {str(given)!r} does not exist')
        if given is None and name in COMPONENTS and (release / name).is_dir():
            given = release / name
        if given is not None:
            found[name] = given
    return found


def import_weights(args: argparse.Namespace) -> WanConfig:
    """Convert and write; the config is written last, so a broken-off import is no model.

    Raises:
        ModelError: if anything does not fit; nothing is written then.
        ValueError: if the sizes asked for are impossible.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from interactive_avatar.generator.wan import weights
    from interactive_avatar.generator.wan.lora import LoraFile
    from interactive_avatar.generator.wan.network import WanTransformer

    checkpoint = weights.open_checkpoint(args.path, args.layout)
    components = find_components(args)
    base = replace(WAN_1_3B, picture_px=args.picture_px, chunk_latents=args.chunk_latents,
                   memory=replace(WAN_1_3B.memory, adjacent=max(args.chunk_latents,
                                                                WAN_1_3B.memory.adjacent)),
                   audio=replace(WAN_1_3B.audio, enabled=not args.no_audio))
    config = weights.named_config(base, weights.network_config(checkpoint))
    config.check()
    _check_components(components, config)
    dtype = getattr(torch, args.dtype)
    converted: Iterable[tuple[str, Any]] = weights.convert(checkpoint, config)
    if args.lora is not None:
        converted = LoraFile(args.lora, args.lora_rank).merge(converted, args.lora_strength)
    state = {name: value.to(dtype).contiguous() for name, value in converted}
    torch.manual_seed(0)
    added = {name: value for name, value in _additions(WanTransformer, config).items()}
    if args.additions is not None:
        trained = load_file(str(args.additions))
        wrong = sorted(set(added) ^ set(trained)) + [
            name for name in added if name in trained and trained[name].shape != added[name].shape]
        if wrong:
            raise ModelError(f'the additions {str(args.additions)!r} do not fit {config.name}; '
                             f'they differ at {wrong[:5]}')
        added = trained
    state |= {name: value.to(dtype).contiguous() for name, value in added.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    places = {}
    for name, path in components.items():
        places[name] = str(_bring(name, path, args.out))
    config = replace(config, components=places)
    temporary = args.out / (WEIGHTS_NAME + '.part')
    save_file(state, str(temporary), {'config': config.to_json()})
    os.replace(temporary, args.out / WEIGHTS_NAME)
    provenance = {
        'layout': checkpoint.layout, **checkpoint.notes, 'dtype': args.dtype,
        'files': [{'name': file.name, 'bytes': file.stat().st_size} for file in checkpoint.files],
        'lora': None if args.lora is None else {'name': args.lora.name,
                                                'strength': args.lora_strength},
        'additions': 'untrained' if args.additions is None else args.additions.name}
    (args.out / PROVENANCE_NAME).write_text(json.dumps(provenance, indent=2) + '\n')
    (args.out / CONFIG_NAME).write_text(config.to_json() + '\n')
    return config


def _additions(network: Any, config: WanConfig) -> dict[str, Any]:
    """Weights that Wan2.1 does not have, at their start, without making the rest."""
    from interactive_avatar.generator.wan.weights import is_added

    small = replace(config, network=replace(config.network, layers=1))
    one = network(small).state_dict()
    state = {}
    for name, value in one.items():
        if not is_added(name):
            continue
        if name.startswith('blocks.0.'):
            for layer in range(config.network.layers):
                state[name.replace('blocks.0.', f'blocks.{layer}.', 1)] = value.clone()
        else:
            state[name] = value
    return state


def _check_components(components: Mapping[str, Path], config: WanConfig) -> None:
    """Refuse components of other sizes by their config.json, before anything is written."""
    def values(name: str) -> dict[str, Any]:
        try:
            loaded = json.loads((components[name] / 'config.json').read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f'the {name} {str(components[name])!r} has no readable config.json: '
                             f'{error}') from error
        return loaded if isinstance(loaded, dict) else {}

    if 'text_encoder' in components and components['text_encoder'].is_dir():
        width = values('text_encoder').get('d_model')
        if width != config.network.text_width:
            raise ModelError(f'the text encoder {str(components["text_encoder"])!r} has width '
                             f'{width}; this transformer was trained with '
                             f'{config.network.text_width} (UMT5-XXL for Wan2.1)')
    if 'audio_encoder' in components and config.audio.enabled:
        found = values('audio_encoder')
        sizes = found.get('num_hidden_layers'), found.get('hidden_size')
        if sizes != (config.audio.feature_layers, config.audio.feature_width):
            raise ModelError(f'the audio encoder {str(components["audio_encoder"])!r} has '
                             f'{sizes[0]} layers of width {sizes[1]}; wav2vec2-base has '
                             f'{config.audio.feature_layers} of {config.audio.feature_width}')


def _bring(name: str, path: Path, out: Path) -> Path:
    """Where the model finds a component: where it lies, or converted beside the weights if it is
    a file of the original release (.pth)."""
    if name == 'vae' and path.is_file():
        return _convert_vae(path, out / 'vae').relative_to(out)
    if name == 'text_encoder' and path.is_file():
        return _convert_text_encoder(path, out / 'text_encoder').relative_to(out)
    return path.resolve()


def _convert_vae(path: Path, folder: Path) -> Path:
    """Wan2.1_VAE.pth -> the diffusers layout, by diffusers' own conversion."""
    import torch
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    state = torch.load(path, map_location='cpu', weights_only=True)
    vae: Any = AutoencoderKLWan()
    try:
        vae.load_state_dict(convert_wan_vae_to_diffusers(state))
    except (RuntimeError, KeyError) as error:
        raise ModelError(f'{str(path)!r} is no VAE of Wan2.1: {error}') from error
    vae.save_pretrained(folder)
    return folder


_TEXT_NAMES = (
    (r'^token_embedding\.', 'shared.'), (r'^norm\.', 'encoder.final_layer_norm.'),
    (r'^blocks\.(\d+)\.norm1\.', r'encoder.block.\1.layer.0.layer_norm.'),
    (r'^blocks\.(\d+)\.attn\.', r'encoder.block.\1.layer.0.SelfAttention.'),
    (r'^blocks\.(\d+)\.pos_embedding\.embedding\.',
     r'encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.'),
    (r'^blocks\.(\d+)\.norm2\.', r'encoder.block.\1.layer.1.layer_norm.'),
    (r'^blocks\.(\d+)\.ffn\.gate\.0\.', r'encoder.block.\1.layer.1.DenseReluDense.wi_0.'),
    (r'^blocks\.(\d+)\.ffn\.fc1\.', r'encoder.block.\1.layer.1.DenseReluDense.wi_1.'),
    (r'^blocks\.(\d+)\.ffn\.fc2\.', r'encoder.block.\1.layer.1.DenseReluDense.wo.'))


def _convert_text_encoder(path: Path, folder: Path) -> Path:
    """models_t5_umt5-xxl-enc-bf16.pth -> the transformers layout."""
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    state = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _TEXT_NAMES:
            changed = re.sub(pattern, replacement, name)
            if changed != name:
                renamed[changed] = value
                break
        else:
            raise ModelError(f'{str(path)!r} holds {name!r}, which UMT5 does not have')
    try:
        first = 'encoder.block.0.layer'
        vocabulary, width = renamed['shared.weight'].shape
        inner = renamed[f'{first}.0.SelfAttention.q.weight'].shape[0]
        buckets, heads = renamed[f'{first}.0.SelfAttention.relative_attention_bias.weight'].shape
        ffn = renamed[f'{first}.1.DenseReluDense.wi_0.weight'].shape[0]
    except KeyError as error:
        raise ModelError(f'{str(path)!r} is no UMT5 encoder: {error} is missing') from error
    layers = 1 + max(int(match.group(1)) for name in renamed
                     if (match := re.match(r'encoder\.block\.(\d+)\.', name)))
    with torch.device('meta'):
        encoder: Any = UMT5EncoderModel(UMT5Config(
            vocab_size=vocabulary, d_model=width, d_kv=inner // heads, d_ff=ffn,
            num_layers=layers, num_heads=heads, relative_attention_num_buckets=buckets,
            feed_forward_proj='gated-gelu'))
    renamed['encoder.embed_tokens.weight'] = renamed['shared.weight']
    try:
        encoder.load_state_dict(renamed, assign=True)
    except RuntimeError as error:
        raise ModelError(f'{str(path)!r} is no whole UMT5 encoder: {error}') from error
    encoder.save_pretrained(folder)
    return folder


def main(args: argparse.Namespace) -> int:
    """Run the command; 1 with a message if the weights are refused."""
    try:
        config = import_weights(args)
    except (ModelError, ValueError, OSError) as error:
        print(f'avatar import-weights: {error}', file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"avatar import-weights needs {error.name}: {sys.executable} -m pip install -e "
              f"'.[wan]'", file=sys.stderr)
        return 1
    absent = [name for name in COMPONENTS if name not in config.components
              and (name != 'audio_encoder' or config.audio.enabled)]
    print(f'{config.name} in {args.out}: {config.network.layers} layers of width '
          f'{config.network.width}, pictures of {config.picture_px}×{config.picture_px}')
    if absent:
        print('Still needed before it can stream; run again with: ' + ', '.join(
            f'--{name.replace("_", "-")}' for name in absent))
    else:
        print(f'Stream it: avatar run -p generator.model={args.out} -p generator.backend=torch '
              f'-p generator.ahead_chunks={config.chunk_latents} '
              f'-p generator.reference=PICTURE')
    return 0
