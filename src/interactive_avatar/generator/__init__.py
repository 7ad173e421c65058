# SPDX-License-Identifier: Apache-2.0
"""The generator: networks, Long-Short Visual Memory, conditioning bank, sampler, stream, backends.

Knows neither ROS nor asyncio. Importing it imports no torch: networks, export and the torch
backend are imported by name where they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interactive_avatar.generator.stream import AvatarStream, Chunk

__all__ = ['AvatarStream', 'Chunk']


def __getattr__(name: str) -> Any:
    # Lazy, so that reasoning can import prompts and text without the stream's backends.
    if name in __all__:
        from interactive_avatar.generator import stream
        return getattr(stream, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
