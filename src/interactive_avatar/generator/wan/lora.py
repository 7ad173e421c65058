# SPDX-License-Identifier: Apache-2.0
"""Low-rank adaptation: a few million trainable weights beside frozen ones (LoRA,
arXiv 2106.09685), and merging of adapters that others trained on Wan2.1."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.network import WanTransformer
from interactive_avatar.generator.wan.weights import source_names

ADAPTED = ('qkv', 'q', 'o', 'up', 'down')


class LoraLinear(nn.Module):
    """A frozen linear layer plus scale · B A; B starts at zero, so nothing changes at first."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.normal_(self.lora_a, std=linear.in_features ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


def add_lora(network: WanTransformer, rank: int, alpha: float | None = None,
             names: tuple[str, ...] = ADAPTED) -> int:
    """Freeze a network and put trainable adapters into its blocks; returns their weights' number.

    Raises:
        ValueError: if the rank is not positive.
    """
    if rank < 1:
        raise ValueError(f'LoRA rank {rank} must be at least 1')
    network.requires_grad_(False)
    count = 0
    for module in list(network.blocks.modules()):
        for name in names:
            linear = getattr(module, name, None)
            if isinstance(linear, nn.Linear) and not isinstance(module, LoraLinear):
                added = LoraLinear(linear, rank, float(alpha or rank))
                setattr(module, name, added)
                count += added.lora_a.numel() + added.lora_b.numel()
    return count


def lora_state(network: WanTransformer) -> dict[str, Tensor]:
    """The adapters' weights by name, to save."""
    return {name: value for name, value in network.state_dict().items() if '.lora_' in name}


def folded(state: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """The state of a network with adapters as that of one without: they are added to what they
    adapt.

    Args:
        scale: alpha / rank of the adapters; 1 where `add_lora` was given no alpha.
    """
    made = {}
    for name, value in state.items():
        if '.lora_' in name:
            continue
        layer = name.removesuffix('.linear.weight')
        down, up = state.get(f'{layer}.lora_a'), state.get(f'{layer}.lora_b')
        if layer != name and down is not None and up is not None:
            value = value + scale * (up.float() @ down.float()).to(value.dtype)
        made[name.replace('.linear.', '.')] = value
    return made


def load_lora(network: WanTransformer, state: dict[str, Tensor]) -> None:
    """Load adapters saved by `lora_state` into a network that `add_lora` prepared.

    Raises:
        ModelError: if they are of another rank or of other layers.
    """
    own = lora_state(network)
    ranks = {int(value.shape[0]) for name, value in state.items() if name.endswith('lora_a')}
    mine = {int(value.shape[0]) for name, value in own.items() if name.endswith('lora_a')}
    if ranks != mine:
        raise ModelError(f'the LoRA is of rank {sorted(ranks)}, the network was prepared for '
                         f'{sorted(mine)}: prepare it with the rank of the file')
    wrong = sorted(set(own) ^ set(state)) + [
        name for name in own if name in state and own[name].shape != state[name].shape]
    if wrong:
        raise ModelError(f'the LoRA is for other layers; it differs at {wrong[:5]}')
    network.load_state_dict(state, strict=False)


class LoraFile:
    """Adapters in a file under the original release's or diffusers' names (PEFT or kohya keys).

    Args:
        path: .safetensors. rank: what the adapters must have, if the caller knows.

    Raises:
        ModelError: if the file cannot be read, holds no adapters, or is of another rank.
    """

    def __init__(self, path: Path, rank: int | None = None) -> None:
        from safetensors.torch import load_file
        try:
            state = load_file(str(path))
        except Exception as error:  # safetensors raises its own kinds
            raise ModelError(f'the LoRA {str(path)!r} cannot be read: {error}') from error
        self._pairs: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            match = re.match(
                r'(?:base_model\.model\.|diffusion_model\.|transformer\.|model\.)*(.+?)\.'
                r'(lora_A|lora_B|lora_down|lora_up|alpha)(?:\.default)?(?:\.weight)?$', key)
            if match is None:
                raise ModelError(f'the LoRA {str(path)!r} holds {key!r}, which is no low-rank '
                                 f'factor (lora_A/lora_B or lora_down/lora_up)')
            kind = {'lora_A': 'down', 'lora_B': 'up', 'lora_down': 'down', 'lora_up': 'up',
                    'alpha': 'alpha'}[match.group(2)]
            self._pairs.setdefault(match.group(1), {})[kind] = value
        if not self._pairs:
            raise ModelError(f'the LoRA {str(path)!r} is empty')
        declared = _declared(path)
        wanted = rank or declared.get('r')
        for name, pair in self._pairs.items():
            if 'down' not in pair or 'up' not in pair:
                raise ModelError(f'the LoRA {str(path)!r} has only one factor of {name!r}')
            found = pair['down'].shape[0]
            if pair['up'].shape[1] != found or (wanted and found != wanted):
                raise ModelError(f'the LoRA {str(path)!r} is of rank {found} (factors '
                                 f'{list(pair["down"].shape)}, {list(pair["up"].shape)}) at '
                                 f'{name!r}, not {wanted or pair["up"].shape[1]}: give the rank '
                                 f'that it was trained with')
        self._alpha = declared.get('lora_alpha')
        self._path = path

    def merge(self, weights: Iterable[tuple[str, Tensor]],
              strength: float = 1.0) -> Iterator[tuple[str, Tensor]]:
        """Add the adapters to our named weights as they pass.

        Raises:
            ModelError: if a factor fits no weight, or has another shape; after the last weight.
        """
        used = set()
        for name, value in weights:
            for layout in ('wan', 'diffusers'):
                sources = source_names(name, layout)
                parts = list(value.chunk(len(sources)))
                for index, source in enumerate(sources):
                    layer = source.removesuffix('.weight')
                    pair = self._pairs.get(layer)
                    if pair is None or not source.endswith('.weight') or layer in used:
                        continue
                    used.add(layer)
                    rank = pair['down'].shape[0]
                    alpha = float(pair['alpha']) if 'alpha' in pair else self._alpha or rank
                    change = pair['up'].float() @ pair['down'].float() * (strength * alpha / rank)
                    if change.shape != parts[index].shape:
                        raise ModelError(
                            f'the LoRA {str(self._path)!r} changes {source!r} by '
                            f'{list(change.shape)}, but it is {list(parts[index].shape)}: it was '
                            f'trained on another size of Wan2.1')
                    parts[index] = (parts[index].float() + change).to(value.dtype)
                value = torch.cat(parts) if len(parts) > 1 else parts[0]
            yield name, value
        left = sorted(set(self._pairs) - used)
        if left:
            raise ModelError(f'{len(left)} layers of the LoRA {str(self._path)!r} do not exist '
                             f'here: {", ".join(left[:5])}')


def _declared(path: Path) -> dict[str, int]:
    try:
        values = json.loads((path.parent / 'adapter_config.json').read_text())
    except (OSError, ValueError):
        return {}
    return {key: values[key] for key in ('r', 'lora_alpha') if isinstance(values.get(key), int)}
