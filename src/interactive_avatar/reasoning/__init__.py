# SPDX-License-Identifier: Apache-2.0
"""The Reasoning-Reaction Module without ROS: intents, the state cycle, reasoners and the voice.

`ReasoningModule` is what a node wraps: events of the user in, states, intents and chunks of
speech out. `Telepresence` takes its place where an operator speaks through the avatar.
"""

from __future__ import annotations

from interactive_avatar.reasoning.attention import Attention, AttentionOptions, Perceived
from interactive_avatar.reasoning.cycle import Activity, CycleOptions, Phase, State, StateCycle
from interactive_avatar.reasoning.embedded import EmbeddedReasoner, Reasoner
from interactive_avatar.reasoning.memory import Memory
from interactive_avatar.reasoning.module import (
    Callbacks,
    Intent,
    ModuleOptions,
    ReasoningModule,
    SpokenChunk,
    open_embedded,
)
from interactive_avatar.reasoning.persona import Persona, PersonaError, load_persona
from interactive_avatar.reasoning.telepresence import Telepresence
from interactive_avatar.reasoning.turn import Turn, TurnError, make_turn
from interactive_avatar.reasoning.voice import Voice, VoiceError, open_voice

__all__ = [
    'Activity',
    'Attention',
    'AttentionOptions',
    'Callbacks',
    'CycleOptions',
    'EmbeddedReasoner',
    'Intent',
    'Memory',
    'ModuleOptions',
    'Perceived',
    'Persona',
    'PersonaError',
    'Phase',
    'Reasoner',
    'ReasoningModule',
    'SpokenChunk',
    'State',
    'StateCycle',
    'Telepresence',
    'Turn',
    'TurnError',
    'Voice',
    'VoiceError',
    'load_persona',
    'make_turn',
    'open_embedded',
    'open_voice',
]
