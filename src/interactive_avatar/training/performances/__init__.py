# SPDX-License-Identifier: Apache-2.0
"""Performances: what a person says and does, frame by frame, with the prompt for each chunk.

`compose` is deterministic from its seed and needs numpy alone; `training.render` draws what it
composes.
"""

from interactive_avatar.training.performances.compose import Event, Performance, Placed, compose
from interactive_avatar.training.performances.mouth import mouth_opening
from interactive_avatar.training.performances.restless import restless

__all__ = ['Event', 'Performance', 'Placed', 'compose', 'mouth_opening', 'restless']
