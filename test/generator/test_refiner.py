# SPDX-License-Identifier: Apache-2.0
"""The token refiner: nothing at first, empty places stay empty, the cache has it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny import TINY

from interactive_avatar.generator.config import GeneratorConfig
from interactive_avatar.generator.denoiser import Denoiser
from interactive_avatar.generator.model import ModelError
from interactive_avatar.generator.networks import Generator
from interactive_avatar.generator.refiner import TokenRefiner

REFINED = replace(TINY, denoiser=replace(TINY.denoiser, refiner_layers=2, refiner_heads=2,
                                         refiner_ffn_width=16))


def states(tokens: int = 3, seed: int = 0) -> torch.Tensor:
    """States of two prompts [2, text tokens, width] with zeros after so many tokens."""
    d = REFINED.denoiser
    made = torch.randn((2, d.text_tokens, d.text_width),
                       generator=torch.Generator().manual_seed(seed))
    made[:, tokens:] = 0.0
    return made


def stirred() -> TokenRefiner:
    """A refiner that does something."""
    torch.manual_seed(1)
    refiner = TokenRefiner(REFINED.denoiser)
    for parameter in refiner.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return refiner


def test_a_new_refiner_changes_nothing() -> None:
    denoiser = Denoiser(REFINED)
    assert denoiser.refiner is not None
    text = states()
    torch.testing.assert_close(denoiser.refiner(text), text)
    torch.testing.assert_close(denoiser.embed_text(text), denoiser.text_embedding(text))


def test_words_see_each_other_and_nobody_sees_empty_places() -> None:
    refiner, text = stirred(), states(3)
    refined = refiner(text)
    assert not torch.allclose(refined[:, :3], text[:, :3])
    assert torch.equal(refined[:, 3:], text[:, 3:])
    # As if the empty places were not there.
    torch.testing.assert_close(refined[:, :3], refiner(text[:, :3]), atol=1e-3, rtol=1e-2)
    other = text.clone()
    other[:, 2] += 1.0
    assert not torch.allclose(refiner(other)[:, 0], refined[:, 0])


def test_the_cache_of_a_prompt_is_of_refined_states() -> None:
    torch.manual_seed(0)
    plain, refined = Denoiser(TINY), Denoiser(REFINED)
    refined.load_state_dict(plain.state_dict(), strict=False)
    text = states()
    torch.testing.assert_close(refined.text_cache(text), plain.text_cache(text))
    refined.refiner = stirred()
    expected = plain.text_cache(refined.refiner(text))
    torch.testing.assert_close(refined.text_cache(text), expected)


def test_weights_without_a_refiner_have_none(tmp_path: Path) -> None:
    assert Generator(TINY).denoiser.refiner is None
    Generator(REFINED).save(tmp_path / 'refined.safetensors')
    with pytest.raises(ModelError, match='refiner'):
        Generator(TINY).load(tmp_path / 'refined.safetensors')
    # Configs of earlier releases do not name it.
    old = TINY.to_json().replace('    "refiner_layers": 0,\n', '')
    assert '"refiner_layers"' not in old
    assert GeneratorConfig.from_json(old).denoiser.refiner_layers == 0
