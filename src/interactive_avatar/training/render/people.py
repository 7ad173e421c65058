# SPDX-License-Identifier: Apache-2.0
"""The baked file of people, read back: identities, parts, units, pictures."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
POSITION_STEPS_PER_DM = 8000.0
HELD_OUT_EVERY = 10


def is_held_out(identity: int) -> bool:
    """Say whether an identity belongs to the test split (every tenth: 9, 19, ...)."""
    return identity % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


@dataclass(frozen=True)
class Part:
    """One mesh that identities are put together from.

    Attributes:
        name: unique, as `hair/short02`.
        kind: how it is shaded, one of the names in `renderer.KINDS`.
        refs: int32 [g, 3] base vertices each vertex hangs on; empty for a rigid part, whose
            positions each identity brings along.
        weights: float32 [g, 3].
        offsets: float32 [g, 3] dm.
        geometry: int32 [r] vertex of each drawn vertex.
        uvs: float32 [r, 2].
        triangles: int32 [t, 3] drawn vertices.
        vertices: number g of vertices.
        hides: bool [k] base vertices covered by it.
    """

    name: str
    kind: str
    refs: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    geometry: np.ndarray
    uvs: np.ndarray
    triangles: np.ndarray
    vertices: int
    hides: np.ndarray


class People:
    """Everything that `bake` wrote.

    Attributes:
        identities: one dict per person: `parts` (name, texture, tint), `light`, `background`,
            `pivot`, `hat_plane`, and words on who it is.
        neutral: int16 [n, k, 3] base vertices, origin midway between the eyes, in steps of
            1 / POSITION_STEPS_PER_DM dm.
        head_weight: float32 [k] how much each base vertex turns with the head.
        inside: float32 [k] how deep in the mouth each base vertex lies, 0 to 1.
        unit_vertex, unit_id, unit_delta: sparse face units: int32 [m], int32 [m], float32 [m, 3].
        parts: by name.
        landmarks: int32 base vertices: upper lip, lower lip, right and left mouth corner.
        eyes: int32 [2, e] base vertices of the right and left eyeball.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Args:
            path: what `bake` wrote, as `assets/people.npz`.

        Raises:
            FileNotFoundError: it is not there; the message names the command that makes it.
            ValueError: it was written by another version of this project.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'no people at {str(path)!r}; make them with '
                "'python -m interactive_avatar.training.render.bake'"
            )
        with np.load(path) as data:
            arrays = {name: data[name] for name in data.files}
        meta: dict[str, Any] = json.loads(bytes(arrays['meta']).decode())
        if meta['format'] != FORMAT:
            raise ValueError(
                f'{str(path)!r} has format {meta["format"]}, this code reads {FORMAT}; bake again '
                "with 'python -m interactive_avatar.training.render.bake'"
            )
        self.seed: int = meta['seed']
        self.identities: list[dict[str, Any]] = meta['identities']
        self.neutral = arrays['neutral']
        self.head_weight = arrays['head_weight'].astype(np.float32)
        self.inside = arrays['inside'].astype(np.float32)
        self.unit_vertex = arrays['unit_vertex'].astype(np.int32)
        self.unit_id = arrays['unit_id'].astype(np.int32)
        self.unit_delta = arrays['unit_delta'].astype(np.float32)
        self.landmarks = arrays['landmarks'].astype(np.int32)
        self.eyes = arrays['eyes'].astype(np.int32)
        self.texture_names: list[str] = meta['textures']
        self.texture_means: list[float] = meta['texture_means']
        self.background_count: int = meta['backgrounds']
        self._blob = arrays['pictures']
        self._picture_ends = arrays['picture_ends']
        self._rigid = arrays['rigid']
        base = self.neutral.shape[1]
        self.parts: dict[str, Part] = {}
        for row in meta['parts']:
            g, r, t = (slice(*row[key]) for key in ('g', 'r', 't'))
            self.parts[row['name']] = Part(
                name=row['name'],
                kind=row['kind'],
                refs=arrays['part_refs'][g].astype(np.int32),
                weights=arrays['part_weights'][g].astype(np.float32),
                offsets=arrays['part_offsets'][g].astype(np.float32),
                geometry=arrays['part_geometry'][r].astype(np.int32),
                uvs=arrays['part_uvs'][r],
                triangles=arrays['part_triangles'][t].astype(np.int32),
                vertices=row['vertices'],
                hides=np.unpackbits(arrays['part_hides'][row['hides']])[:base].astype(bool)
                if row['hides'] >= 0 else np.zeros(base, bool),
            )

    def __len__(self) -> int:
        """Count the people."""
        return len(self.identities)

    def split(self, held_out: bool) -> list[int]:
        """List the identities of one side of the split."""
        return [i for i in range(len(self)) if is_held_out(i) == held_out]

    def base(self, identity: int) -> np.ndarray:
        """Give a person's neutral base vertices: float32 [k, 3] dm, origin between the eyes."""
        return self.neutral[identity].astype(np.float32) / POSITION_STEPS_PER_DM

    def place(self, identity: int, part: str, base: np.ndarray) -> np.ndarray:
        """Give the neutral positions of a part on a person: float32 [g, 3] dm."""
        mesh = self.parts[part]
        if len(mesh.refs):
            return np.einsum('gk,gkc->gc', mesh.weights, base[mesh.refs]) + mesh.offsets
        at = self.identities[identity]['rigid'][part]
        return self._rigid[at:at + mesh.vertices].astype(np.float32) / POSITION_STEPS_PER_DM

    def picture(self, index: int) -> np.ndarray:
        """Decode a picture: textures first, then backgrounds. uint8 [h, w, 4] or [h, w, 3]."""
        from PIL import Image

        start = int(self._picture_ends[index - 1]) if index else 0
        raw = self._blob[start:int(self._picture_ends[index])].tobytes()
        return np.asarray(Image.open(io.BytesIO(raw)))
