# SPDX-License-Identifier: Apache-2.0
"""What the avatar hears and sees: voice activity, speech recognition, faces; no ROS.

`Listener` and `FaceTracker` are what the rest of the system uses: one takes sound and returns
speech events, the other takes pictures and says who is there and what they do.
"""

from __future__ import annotations

from interactive_avatar.perception.asr import (
    Recogniser,
    Recognition,
    WhisperRecogniser,
    check_model,
    find_model_dir,
)
from interactive_avatar.perception.depth import distance_in_box
from interactive_avatar.perception.echo import EchoGuard
from interactive_avatar.perception.face import (
    ENGAGEMENT_SHARE,
    Camera,
    Engagement,
    Face,
    FaceOptions,
    FaceTracker,
    HeadPose,
    Sight,
)
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
from interactive_avatar.perception.mesh import FaceMesh, mesh_missing
from interactive_avatar.perception.vad import (
    Endpointer,
    EndpointOptions,
    PerceptionError,
    SileroVoiceActivity,
)

__all__ = [
    'ENGAGEMENT_SHARE', 'AudioGap', 'Camera', 'EchoGuard', 'EndpointOptions', 'Endpointer',
    'Engagement', 'Event', 'Face', 'FaceMesh', 'FaceOptions', 'FaceTracker', 'Final',
    'HeadPose', 'Listener', 'ListenerOptions', 'Partial', 'PerceptionError', 'Recogniser',
    'Recognition', 'Sight', 'SileroVoiceActivity', 'SpeechEnded', 'SpeechStarted',
    'WhisperRecogniser', 'check_model',
    'distance_in_box', 'find_model_dir', 'mesh_missing',
]
