# SPDX-License-Identifier: Apache-2.0
"""The avatar's page in the browser and its server; no ROS.

`AvatarPage` serves it: pictures with their sound, captions, state and intent go out; the
microphone and typed text come in.
"""

from __future__ import annotations

from interactive_avatar.web.protocol import (
    ProtocolError,
    pack_media,
    unpack_camera,
    unpack_microphone,
)
from interactive_avatar.web.server import DEFAULT_PORT, AvatarPage, PageError

__all__ = ['DEFAULT_PORT', 'AvatarPage', 'PageError', 'ProtocolError', 'pack_media',
           'unpack_camera', 'unpack_microphone']
