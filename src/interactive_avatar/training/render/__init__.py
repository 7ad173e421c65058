# SPDX-License-Identifier: Apache-2.0
"""People for training: baked once from CC0 data, drawn by the thousand on a GPU.

`python -m interactive_avatar.training.render.bake` writes `assets/people.npz`; `Renderer` draws
it through EGL; `python -m interactive_avatar.training.render.look` makes contact sheets.
"""

from interactive_avatar.training.render.people import People, is_held_out

__all__ = ['People', 'is_held_out']
