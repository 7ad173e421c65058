# SPDX-License-Identifier: Apache-2.0
"""The prompt table as the text encoder's states, which training draws its prompts from.

``python -m interactive_avatar.training.prompts`` makes ``assets/prompts.npz``;
``python -m interactive_avatar.training.reading`` does so with paraphrases.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.prompts import MAX_WORD_PIECES, prompt_table


class Prompts:
    """Text encoder states of the prompt table, baked beforehand by `bake_prompts`.

    Attributes:
        states: float16 [P, n, width]; mask: float32 [P, n], added to attention scores.

    Raises:
        FileNotFoundError: if they have not been baked.
        ValueError: if they are of another version's prompts, whose numbers mean other texts.
    """

    def __init__(self, path: Path, tokens: int, device: torch.device) -> None:
        again = ("make them with 'python -m interactive_avatar.training.prompts "
                 f"--out {path}'")
        if not Path(path).is_file():
            raise FileNotFoundError(f'no prompts at {str(path)!r}; {again}')
        with np.load(path) as stored:
            if 'table' not in stored or str(stored['table']) != table_digest():
                raise ValueError(f'{str(path)!r} holds the prompts of another version of this '
                                 f'project; {again}')
            self.states, self.mask = unpacked(stored, tokens, device)

    @classmethod
    def of(cls, states: Tensor, mask: Tensor) -> Prompts:
        """Prompts whose states and mask are at hand."""
        prompts = object.__new__(cls)
        prompts.states, prompts.mask = states, mask
        return prompts


def packed(texts: Sequence[str], tokens: int) -> dict[str, NDArray[Any]]:
    """Texts through the text encoder: `states` int8 [N, tokens, width], `scales` float16 of each
    token, `lengths` int64; longer texts are cut."""
    from interactive_avatar.generator.text import TextEncoder

    encoder = TextEncoder.load()
    encoded = [encoder.encode(text)[:tokens] for text in texts]
    states = np.zeros((len(encoded), tokens, encoded[0].shape[1]), np.float32)
    for index, state in enumerate(encoded):
        states[index, :len(state)] = state
    scales = np.maximum(np.abs(states).max(-1, keepdims=True), 1e-6) / 127.0
    return {'states': np.rint(states / scales).astype(np.int8),
            'scales': scales.astype(np.float16),
            'lengths': np.array([len(state) for state in encoded], np.int64)}


def unpacked(stored: Mapping[str, NDArray[Any]], tokens: int, device: torch.device,
             prefix: str = '') -> tuple[Tensor, Tensor]:
    """States float16 [N, tokens, width] and mask float32 [N, tokens], added to attention scores,
    of what `packed` gave, under names that begin with ``prefix``."""
    data = (stored[f'{prefix}states'][:, :tokens].astype(np.float16)
            * stored[f'{prefix}scales'][:, :tokens])
    length = torch.from_numpy(stored[f'{prefix}lengths']).to(device).clamp(max=tokens)
    empty = torch.arange(tokens, device=device)[None] >= length[:, None]
    return torch.from_numpy(data).to(device), empty.float() * float(MASKED)


def bake_prompts(path: Path, tokens: int = MAX_WORD_PIECES) -> None:
    """Encode the trained prompt table.

    Args:
        path: the file to write.
        tokens: states kept of each prompt; all prompts are shorter than the default.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, table=np.array(table_digest()),
                        **packed([prompt.text for prompt in prompt_table()], tokens))


def table_digest() -> str:
    """Tells one version of the prompt table from another."""
    texts = '\n'.join(prompt.text for prompt in prompt_table())
    return hashlib.sha256(texts.encode()).hexdigest()


def main() -> None:
    """Encode the prompts that training draws from."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('--out', type=Path, default=Path('assets/prompts.npz'), metavar='FILE',
                        help='the file to write (default: %(default)s)')
    options = parser.parse_args()
    bake_prompts(options.out)
    print(f'{options.out}: {len(prompt_table())} prompts')


if __name__ == '__main__':
    main()
