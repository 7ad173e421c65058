# SPDX-License-Identifier: Apache-2.0
"""Conditioning bank: text keys and values by prompt, so that a switch is a change of pointer.

Cache-Switching of InteractiveAvatar: a prompt's keys and values are computed once, ahead of need
where the reasoning module announces it; switching costs no forward pass and leaves the visual
caches as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.generator.backends.base import Backend, TextCache

MAX_PROMPTS = 64
"""Prompts kept; the least recently used beyond that are forgotten."""


class ConditioningBank:
    """Text caches by prompt.

    Args:
        backend: computes keys and values.
        encode: text to hidden states float32 [n, text width], `TextEncoder.encode`.
        capacity: prompts kept.
    """

    def __init__(self, backend: Backend, encode: Callable[[str], NDArray[np.float32]],
                 capacity: int = MAX_PROMPTS) -> None:
        self._backend, self._encode, self._capacity = backend, encode, capacity
        self._kept: OrderedDict[str, TextCache] = OrderedDict()

    def prepare(self, prompt: str) -> TextCache:
        """The prompt's text cache, computed now if it is not in the bank.

        Raises:
            ValueError: on an empty prompt.
        """
        if not prompt.strip():
            raise ValueError('the prompt is empty; describe what is seen, as '
                             "'A person looks at the viewer.'")
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        entry = self._backend.encode_text(self._encode(prompt))
        self._kept[prompt] = entry
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return entry

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._kept

    def __len__(self) -> int:
        return len(self._kept)
