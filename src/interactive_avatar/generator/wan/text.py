# SPDX-License-Identifier: Apache-2.0
"""UMT5 as Wan2.1 uses it: hidden states of a prompt, without padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.wan.config import WanNetworkConfig


class Umt5Text:
    """Prompt to states.

    UMT5-XXL takes 11 GiB in bf16. Prompts are few and computed ahead of need, so it stays on the
    processor by default and leaves the card to the pictures.
    """

    def __init__(self, encoder: Any, tokenizer: Any, max_tokens: int) -> None:
        self._encoder, self._tokenizer, self._max_tokens = encoder, tokenizer, max_tokens

    @classmethod
    def load(cls, encoder: Path, tokenizer: Path, config: WanNetworkConfig,
             device: str = 'cpu') -> Umt5Text:
        """Load a transformers folder of UMT5 and its tokenizer.

        Raises:
            ModelError: if transformers is missing, the encoder is of another size (said before
                its weights are loaded), or a file cannot be read.
        """
        try:
            values = json.loads((encoder / 'config.json').read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f'{str(encoder)!r} is no text encoder: {error}') from error
        if values.get('d_model') != config.text_width:
            raise ModelError(f'the text encoder {str(encoder)!r} has width '
                             f'{values.get("d_model")}; this transformer was trained with '
                             f'{config.text_width} (UMT5-XXL for Wan2.1)')
        try:
            from transformers import AutoTokenizer, UMT5EncoderModel
        except ImportError as error:
            raise ModelError("the text encoder needs transformers: pip install -e "
                             "'.[wan]'") from error
        try:
            model = UMT5EncoderModel.from_pretrained(str(encoder), dtype=torch.bfloat16)
            pieces = AutoTokenizer.from_pretrained(str(tokenizer))
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f'the text encoder in {str(encoder)!r} or its tokenizer in '
                             f'{str(tokenizer)!r} cannot be loaded: {error}') from error
        whole: Any = model
        return cls(whole.to(device).eval(), pieces, config.text_tokens)

    @torch.no_grad()
    def encode(self, text: str) -> NDArray[np.float32]:
        """Hidden states float32 [n, text width] of the prompt's pieces, white space tidied."""
        pieces = self._tokenizer([' '.join(text.split())], truncation=True,
                                 max_length=self._max_tokens, return_tensors='pt')
        device = next(self._encoder.parameters()).device
        states = self._encoder(input_ids=pieces['input_ids'].to(device),
                               attention_mask=pieces['attention_mask'].to(device))
        array: NDArray[np.float32] = states.last_hidden_state[0].float().cpu().numpy()
        return array
