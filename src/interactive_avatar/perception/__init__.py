# SPDX-License-Identifier: Apache-2.0
"""What the avatar hears: voice activity, endpointing and speech recognition; no ROS.

`Listener` is what the rest of the system uses: it takes sound and returns speech events.
"""

from __future__ import annotations

from interactive_avatar.perception.asr import (
    Recogniser,
    Recognition,
    WhisperRecogniser,
    check_model,
    find_model_dir,
)
from interactive_avatar.perception.echo import EchoGuard
from interactive_avatar.perception.listener import (
    AudioGap,
    Event,
    Final,
    Listener,
    ListenerOptions,
    Partial,
    SpeechEnded,
    SpeechStarted,
)
from interactive_avatar.perception.vad import (
    Endpointer,
    EndpointOptions,
    PerceptionError,
    SileroVoiceActivity,
)

__all__ = [
    'AudioGap', 'EchoGuard', 'EndpointOptions', 'Endpointer', 'Event', 'Final', 'Listener',
    'ListenerOptions', 'Partial', 'PerceptionError', 'Recogniser', 'Recognition',
    'SileroVoiceActivity', 'SpeechEnded', 'SpeechStarted', 'WhisperRecogniser', 'check_model',
    'find_model_dir',
]
