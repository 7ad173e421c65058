# SPDX-License-Identifier: Apache-2.0
"""What the tests of reasoning share: a small persona, a text encoder without weights, a clock."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.reasoning.embedded import EmbeddedReasoner
from interactive_avatar.reasoning.persona import Persona, parse_persona

PERSONA = """
name: Ada
jokes: [A joke.]
recognition: {accept_similarity: 0.3, accept_probability: 0.1}
intents:
  greeting:
    emotion: happy
    examples: [hello there, good morning]
    replies: ['Hello{, name}!', 'Good to see you{, name}.']
  farewell:
    examples: [goodbye now, see you later]
    replies: [Goodbye.]
  nod:
    action: nod
    examples: [nod your head, please nod]
    replies: ['']
  joke:
    examples: [tell me a joke]
    replies: ['{joke}']
  wear:
    action: wear
    slots: [object]
    examples: ['put on your (glasses|hat)', wear it]
    replies: ['I put on my {object}. It suits me, I think, and it is fun.']
    when:
      missing: ['What should I put on?']
      already: ['I am wearing my {object}.']
  out_of_scope:
    examples: [what is the capital of France, weather tomorrow]
    replies: [I do not know.]
"""


def embed(text: str) -> NDArray[np.float32]:
    """Words hashed into a unit vector float32 [256]: enough to tell the small persona apart."""
    vector = np.zeros(256, np.float32)
    for word in text.split():
        vector[zlib.crc32(word.encode()) % 256] += 1.0
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def persona() -> Persona:
    return parse_persona(PERSONA)


@pytest.fixture
def reasoner(persona: Persona) -> EmbeddedReasoner:
    return EmbeddedReasoner(persona, embed, seed=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()
