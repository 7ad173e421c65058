# SPDX-License-Identifier: Apache-2.0
"""Draw people by the thousand: face units and head poses in, pictures and landmarks out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import moderngl
import numpy as np

from interactive_avatar.training.render import shaders
from interactive_avatar.training.render.people import People
from interactive_avatar.training.units import UNITS, index

KINDS = ('skin', 'eyes', 'teeth', 'tongue', 'hair', 'brows', 'lashes', 'clothes', 'hat',
         'glasses', 'lenses')
# solid first, so that depth hides what is behind; then what is blended over it
SOLID = ('body', 'clothes', 'eyes', 'teeth', 'tongue', 'hat', 'hair', 'glasses')
BLENDED = ('brows', 'lashes', 'hair', 'lenses')
DM_PER_M = 10.0

CAMERA_HALF_HEIGHT_DM = 1.78
CAMERA_CENTRE_Y_DM = -0.18
CAMERA_DISTANCE_DM = 15.0

_BLINKS = [index('eyeBlinkLeft'), index('eyeBlinkRight')]
_FRAME_FLOATS = 13 * 4 + 8 * 4


class Renderer:
    """Draws frames of baked people through OpenGL and EGL, with no display.

    One renderer belongs to one thread. Frames come out the same for the same arguments on the
    same machine, whatever they are batched with.
    """

    def __init__(self, people: Path | People, size: int = 256, device_index: int = 0,
                 supersample: int = 2, tiles: int | None = None) -> None:
        """Open a context and upload the people.

        Args:
            people: the baked file, or what was read from it.
            size: edge of a frame in pixels, a multiple of 8.
            device_index: which EGL device, on machines with several.
            supersample: samples per pixel and axis.
            tiles: frames per atlas edge; by default 8, or 3 without a GPU.

        Raises:
            ValueError: `size` or `supersample` cannot be drawn.
            RuntimeError: no EGL device opens; the message says what to install.
        """
        if size % 8 or size <= 0:
            raise ValueError(f'size is {size}; use a positive multiple of 8')
        if supersample not in (1, 2, 3, 4):
            raise ValueError(f'supersample is {supersample}; use 1 to 4')
        self.people = people if isinstance(people, People) else People(people)
        self.size = size
        self.supersample = supersample
        try:
            settings: dict[str, Any] = {'backend': 'egl', 'device_index': device_index}
            self.context = moderngl.create_context(standalone=True, require=430, **settings)
        except Exception as error:
            raise RuntimeError(
                f'no OpenGL 4.3 context through EGL on device {device_index} ({error}); install '
                "the GPU's EGL driver, or Mesa ('apt install libegl1 libgl1-mesa-dri')"
            ) from error
        self.device: str = self.context.info['GL_RENDERER']
        software = 'llvmpipe' in self.device or 'softpipe' in self.device
        self.tiles = tiles or (3 if software else 8)
        edge = self.tiles * size * supersample
        self.context.gc_mode = 'auto'
        self._upload_pictures(anisotropy=1.0 if software else 4.0)
        self._upload_people()
        self._compile()
        self._atlas = self.context.texture((edge, edge), 4)
        self._atlas.filter = moderngl.NEAREST, moderngl.NEAREST
        self._target = self.context.framebuffer(
            [self._atlas], self.context.depth_renderbuffer((edge, edge)))
        self._outputs = [self.context.buffer(reserve=self.tiles ** 2 * size * size * 3)
                         for _ in range(2)]
        self._landmarks = [self.context.buffer(reserve=self.tiles ** 2 * 32) for _ in range(2)]

    def close(self) -> None:
        """Give the context back. The renderer cannot be used afterwards."""
        self.context.release()

    def render(self, identity: int | Sequence[int] | np.ndarray, units: np.ndarray,
               head: np.ndarray | None = None, glasses: np.ndarray | float = 0.0,
               hat: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Draw frames.

        Args:
            identity: who, one for all frames or int [n].
            units: float [n, 52] face units in the order of `training.units.UNITS`.
            head: float [n, 6] yaw, pitch, roll in radians (positive: the person turns to the
                picture's right, looks up, tips the crown to the picture's right), then
                translation of the whole body in metres (picture's right, up, toward the camera).
            glasses: float [n] or one value: 0 absent, 1 worn, between sliding in from above.
            hat: the same for the hat.

        Returns:
            Frames uint8 [n, size, size, 3] RGB, and landmarks float32 [n, 3, 2]: pixel (x right,
            y down) of the mouth's centre, of the person's right eye (left in the picture) and
            left eye. Out of view they lie outside the frame.

        Raises:
            ValueError: an array has the wrong shape or an identity does not exist.
        """
        frames, marks, _ = self.render_with_gap(identity, units, head, glasses, hat)
        return frames, marks

    def render_with_gap(self, identity: int | Sequence[int] | np.ndarray, units: np.ndarray,
                        head: np.ndarray | None = None, glasses: np.ndarray | float = 0.0,
                        hat: np.ndarray | float = 0.0,
                        ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `render`, and float32 [n] the distance between the inner lips in centimetres."""
        units = np.asarray(units, np.float32)
        if units.ndim != 2 or units.shape[1] != len(UNITS):
            raise ValueError(f'units have shape {units.shape}; give [n, {len(UNITS)}]')
        n = len(units)
        who = np.broadcast_to(np.asarray(identity, np.int64), (n,))
        if n and (who.min() < 0 or who.max() >= len(self.people)):
            raise ValueError(
                f'identity {int(who.min())} to {int(who.max())} asked for; there are 0 to '
                f'{len(self.people) - 1}')
        head = np.zeros((n, 6), np.float32) if head is None else np.asarray(head, np.float32)
        if head.shape != (n, 6):
            raise ValueError(f'head has shape {head.shape}; give [{n}, 6]')
        worn = [np.clip(np.broadcast_to(np.asarray(x, np.float32), (n,)), 0, 1)
                for x in (glasses, hat)]
        frames = np.empty((n, self.size, self.size, 3), np.uint8)
        marks = np.empty((n, 2, 4), np.float32)
        per = self.tiles ** 2
        waiting: tuple[int, slice] | None = None
        for turn, start in enumerate(range(0, n, per)):
            part = slice(start, min(start + per, n))
            self._draw(who[part], units[part], head[part], worn[0][part], worn[1][part], turn % 2)
            if waiting:
                self._collect(*waiting, frames, marks)
            waiting = (turn % 2, part)
        if waiting:
            self._collect(*waiting, frames, marks)
        points = marks.reshape(n, 8)[:, :6].reshape(n, 3, 2)
        return frames, np.ascontiguousarray(points), marks[:, 1, 2] * 10.0

    def reference_view(self, identity: int) -> np.ndarray:
        """Draw a person at rest, from the front: uint8 [size, size, 3] RGB."""
        return self.render(identity, np.zeros((1, len(UNITS)), np.float32))[0][0]

    def _collect(self, turn: int, part: slice, frames: np.ndarray, marks: np.ndarray) -> None:
        """Read a drawn atlas back (waits for the GPU)."""
        n = part.stop - part.start
        self._outputs[turn].read_into(frames[part], size=frames[part].nbytes)
        raw = np.frombuffer(self._landmarks[turn].read(size=n * 32), np.float32)
        marks[part] = raw.reshape(n, 2, 4)[self._unsort[turn]]

    def _draw(self, who: np.ndarray, units: np.ndarray, head: np.ndarray, glasses: np.ndarray,
              hat: np.ndarray, turn: int) -> None:
        """Issue the commands that draw up to tiles² frames into output `turn`."""
        n = len(who)
        order = np.argsort(who, kind='stable')
        if not hasattr(self, '_unsort'):
            self._unsort: list[np.ndarray] = [np.zeros(0, np.int64)] * 2
        self._unsort[turn] = np.argsort(order, kind='stable')
        who = who[order]
        rows = np.zeros((n, _FRAME_FLOATS), np.float32)
        rows[:, :52] = units[order]
        rows[:, _BLINKS] *= self._blink[who][:, None]
        rows[:, 52:55] = head[order, :3] * np.array([1, 1, 1], np.float32)
        rows[:, 56:59] = head[order, 3:] * DM_PER_M
        rows[:, 59] = glasses[order]
        rows[:, 60:84] = self._constants[who]
        rows[:, 63] = hat[order]
        rows[:, 78] = order
        self._frames.orphan()
        self._frames.write(rows)
        for binding, buffer in ((0, self._frames), (1, self._neutral), (2, self._starts),
                                (3, self._deltas), (4, self._positions), (5, self._normals),
                                (6, self._marks), (7, self._landmarks[turn]), (8, self._around)):
            buffer.bind_to_storage_buffer(binding)
        groups = -(-self._stride // 64)
        self._blend.run(groups, n, 1)
        self.context.memory_barrier()
        self._measure.run(n, 1, 1)
        self._normal.run(groups, n, 1)
        self.context.memory_barrier()

        self._target.use()
        edge = self.tiles * self.size * self.supersample
        used = -(-n // self.tiles) * self.size * self.supersample
        self._target.clear(0, 0, 0, 0, viewport=(0, 0, edge, used))
        self.context.viewport = (0, 0, edge, edge)
        self.context.enable_only(moderngl.DEPTH_TEST)
        for i in range(4):
            self.context.enable_direct(0x3000 + i)   # GL_CLIP_DISTANCEi
        self._pictures.use(0)
        ids, firsts, counts = np.unique(who, return_index=True, return_counts=True)
        groups_of = list(zip(ids.tolist(), firsts.tolist(), counts.tolist()))
        self.context.depth_func = '<='
        for i, first, count in groups_of:
            self._draw_person(i, first, count, 'solid')
        self.context.enable(moderngl.BLEND)
        self.context.blend_func = moderngl.ONE, moderngl.ONE_MINUS_SRC_ALPHA
        self._target.depth_mask = False
        for i, first, count in groups_of:
            self._draw_person(i, first, count, 'blended')
        self._target.depth_mask = True

        self.context.memory_barrier()
        self._outputs[turn].bind_to_storage_buffer(9)
        self._atlas.use(1)
        self._backgrounds.use(2)
        self._resolve.run(-(-self.size // 32), self.size // 8, n)
        self.context.memory_barrier()

    def _draw_person(self, identity: int, first: int, count: int, layer: str) -> None:
        """Draw one person's parts into `count` tiles."""
        for vao, at, texture, tint, mean in self._calls[identity][layer]:
            program = vao.program
            program['first_tile'].value = first
            program['first_vertex'].value = at
            # a kind that does not use one of these has it compiled away
            for name, value in (('layer', texture), ('tint', tint), ('light_mean', mean)):
                if name in program:
                    program[name].value = value
            vao.render(moderngl.TRIANGLES, instances=count)

    def _upload_pictures(self, anisotropy: float) -> None:
        """Put textures and backgrounds into two array textures."""
        people, edge = self.people, 512
        count = len(people.texture_names)
        stack = np.full((count, edge, edge, 4), 255, np.uint8)
        for i in range(count):
            picture = people.picture(i)
            repeat = edge // picture.shape[0]
            if repeat > 1:
                picture = picture.repeat(repeat, 0).repeat(repeat, 1)
            stack[i, :, :, :picture.shape[2]] = picture
        self._pictures = self.context.texture_array((edge, edge, count), 4, stack)
        self._pictures.build_mipmaps()
        self._pictures.filter = moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR
        self._pictures.anisotropy = anisotropy
        rooms = np.stack([people.picture(count + i) for i in range(people.background_count)])
        self._backgrounds = self.context.texture_array(
            (rooms.shape[2], rooms.shape[1], len(rooms)), 3, np.ascontiguousarray(rooms))
        self._backgrounds.repeat_x = self._backgrounds.repeat_y = False

    def _upload_people(self) -> None:
        """Lay out shared vertices (units, neighbours) and every person's neutral vertices."""
        people = self.people
        part_start, unit_rows, around_rows, starts = {}, [], [], []
        per_vertex = _UnitTable(people)
        at = 0
        for name, part in people.parts.items():
            part_start[name] = at
            kind = KINDS.index(part.kind)
            moves = part.kind in ('skin', 'eyes', 'teeth', 'tongue', 'brows', 'lashes') or (
                name.startswith(('hair/Full', 'hair/Moust')))
            counts, deltas = per_vertex.of(part) if moves else (
                np.zeros(part.vertices, np.int64), np.zeros((0, 4), np.float32))
            neighbour_counts, pairs = _neighbours(part.triangles, part.geometry, part.vertices)
            if len(part.refs):
                weight = (part.weights * people.head_weight[part.refs]).sum(1)
            else:
                weight = np.ones(part.vertices)
            row = np.zeros((part.vertices, 4), np.uint32)
            row[:, 0], row[:, 1], row[:, 2] = counts, neighbour_counts, kind
            if part.kind == 'skin':
                # the upper bits say how deep in the mouth a vertex lies
                row[:, 2] += (people.inside * 255).astype(np.uint32) << 8
            row[:, 3] = weight.astype(np.float32).view(np.uint32)
            starts.append(row)
            unit_rows.append(deltas)
            around_rows.append(pairs)
            at += part.vertices
        table = np.concatenate([*starts, np.zeros((1, 4), np.uint32)])
        for column in (0, 1):
            table[:, column] = np.concatenate([[0], np.cumsum(table[:-1, column])])
        buffer = self.context.buffer
        self._starts = buffer(table)
        self._deltas = buffer(np.concatenate(unit_rows))
        self._around = buffer(np.concatenate(around_rows))
        self._marks = buffer(np.concatenate([people.landmarks, people.eyes.ravel()])
                             .astype(np.int32))
        neutral, first, self._layout = [], 0, []
        self._blink = np.array([who['blink'] for who in people.identities], np.float32)
        self._constants = np.zeros((len(people), 24), np.float32)
        for i, who in enumerate(people.identities):
            base, offset, layout, begin = people.base(i), 0, {}, first
            for row in who['parts']:
                points = people.place(i, row['part'], base)
                block = np.empty((len(points), 4), np.float32)
                block[:, :3] = points
                block[:, 3] = np.arange(
                    part_start[row['part']], part_start[row['part']] + len(points),
                    dtype=np.uint32).view(np.float32)
                layout[row['part']] = offset
                offset += len(points)
                neutral.append(block)
            first += offset
            self._layout.append(layout)
            light = who['light']
            key = np.array(light['key'], np.float32)
            self._constants[i, 0:3] = who['pivot']
            self._constants[i, 4:6] = who['hat_plane']
            self._constants[i, 6] = np.abs(base[people.eyes[1], 0]).mean()
            self._constants[i, 8:11] = key / np.linalg.norm(key)
            self._constants[i, 11] = light['key_power']
            self._constants[i, 12:15] = light['key_colour']
            self._constants[i, 15] = light['rim_power']
            self._constants[i, 16:18] = light['fill_power'], who['background']
            self._constants[i, 20:22] = np.array([begin, offset], np.uint32).view(np.float32)
        self._neutral = buffer(np.concatenate(neutral))
        sizes = self._constants[:, 21].copy().view(np.uint32)
        self._stride = int(-(-int(sizes.max()) // 64) * 64)
        room = self.tiles ** 2 * self._stride * 16
        self._positions = buffer(reserve=room)
        self._normals = buffer(reserve=room)
        self._frames = buffer(reserve=self.tiles ** 2 * _FRAME_FLOATS * 4, dynamic=True)

    def _compile(self) -> None:
        """Compile the shaders and prepare every draw call."""
        context, source = self.context, shaders.source
        camera = (CAMERA_HALF_HEIGHT_DM, CAMERA_CENTRE_Y_DM, CAMERA_DISTANCE_DM)
        self._blend = context.compute_shader(source(shaders.BLEND))
        self._measure = context.compute_shader(source(shaders.MEASURE))
        self._normal = context.compute_shader(source(shaders.NORMALS))
        self._resolve = context.compute_shader(source(shaders.RESOLVE))
        # one program per kind: what a kind does not need is compiled away
        self._programs = {
            (kind, layer): context.program(
                vertex_shader=source(shaders.VERTEX, kind=kind),
                fragment_shader=source(shaders.FRAGMENT, kind=kind, blended=layer))
            for layer, wanted in enumerate((SOLID, BLENDED))
            for kind in {KINDS.index('skin' if name == 'body' else name) for name in wanted}
        }
        settings: list[tuple[Any, dict[str, Any]]] = [
            (self._blend, {'stride': self._stride}),
            (self._measure, {'stride': self._stride, 'eye_vertices': self.people.eyes.shape[1],
                             'camera': camera, 'size': float(self.size)}),
            (self._normal, {'stride': self._stride}),
            *((program, {'stride': self._stride, 'tiles': self.tiles, 'camera': camera,
                         'pictures': 0}) for program in self._programs.values()),
            (self._resolve, {'atlas': 1, 'backgrounds': 2, 'size': self.size,
                             'supersample': self.supersample, 'tiles': self.tiles}),
        ]
        for program, values in settings:
            for name, value in values.items():
                if name in program:
                    program[name].value = value
        vertex_buffers: dict[str, Any] = {}
        arrays: dict[tuple[str, str, int], Any] = {}
        self._calls: list[dict[str, list[tuple[Any, ...]]]] = []
        for i, who in enumerate(self.people.identities):
            cloth = next((p['part'] for p in who['parts'] if p['part'].startswith('clothes/')), '')
            calls: dict[str, list[tuple[Any, ...]]] = {'solid': [], 'blended': []}
            for number, (layer, wanted) in enumerate((('solid', SOLID), ('blended', BLENDED))):
                for prefix in wanted:
                    for row in who['parts']:
                        name = row['part']
                        if name.split('/')[0] != prefix:
                            continue
                        key = (name, cloth if name == 'body' else '', number)
                        if key not in arrays:
                            arrays[key] = self._vertex_array(name, key[1], number,
                                                             vertex_buffers)
                        kind = KINDS.index(self.people.parts[name].kind)
                        texture = row['texture']
                        calls[layer].append((
                            arrays[key], self._layout[i][name], texture,
                            (*row['tint'], row['strength']),
                            _light_mean(kind, self.people.texture_means[texture])))
            self._calls.append(calls)

    def _vertex_array(self, name: str, cloth: str, layer: int, made: dict[str, Any]) -> Any:
        """Make the vertex array of a part; the body leaves out what `cloth` covers."""
        part = self.people.parts[name]
        if name not in made:
            vertices = np.zeros(len(part.geometry), [('geometry', 'u4'), ('uv', 'f4', 2)])
            vertices['geometry'], vertices['uv'] = part.geometry, part.uvs
            made[name] = self.context.buffer(vertices.tobytes())
        triangles = part.triangles
        if cloth:
            hidden = self.people.parts[cloth].hides[part.geometry]
            triangles = triangles[~hidden[triangles].all(1)]
        program = self._programs[KINDS.index(part.kind), layer]
        index = self.context.buffer(np.ascontiguousarray(triangles, np.int32))
        content = (('u4 2f4', 'geometry', 'uv') if 'uv' in program else ('u4 8x', 'geometry'))
        return self.context.vertex_array(program, [(made[name], *content)], index)


def _light_mean(kind: int, mean: float) -> float:
    """Give the brightness that a full tint should turn into its own colour."""
    return mean if KINDS[kind] in ('clothes', 'hat') else 0.5 if KINDS[kind] in (
        'hair', 'brows', 'lashes') else 1.0


class _UnitTable:
    """Face units of the base mesh by vertex, and of whatever hangs on it."""

    def __init__(self, people: People) -> None:
        base = people.neutral.shape[1]
        self._dense = np.zeros((base, len(UNITS), 3), np.float32)
        self._dense[people.unit_vertex, people.unit_id] = people.unit_delta

    def of(self, part: Any) -> tuple[np.ndarray, np.ndarray]:
        """Give entries per vertex int64 [g], and rows float32 [e, 4]: delta, unit as bits."""
        mixed = np.zeros((part.vertices, len(UNITS), 3), np.float32)
        for k in range(part.refs.shape[1]):
            mixed += part.weights[:, k, None, None] * self._dense[part.refs[:, k]]
        used = np.abs(mixed).max(2) > 2e-4
        vertex, unit = np.nonzero(used)
        rows = np.empty((len(vertex), 4), np.float32)
        rows[:, :3] = mixed[vertex, unit]
        rows[:, 3] = unit.astype(np.uint32).view(np.float32)
        return used.sum(1), rows


def _neighbours(triangles: np.ndarray, geometry: np.ndarray,
                vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """List, for each vertex, the other two corners of its triangles, as relative indices.

    Args:
        triangles: int32 [t, 3] of drawn vertices.
        geometry: int32 [r] vertex of each drawn vertex.
        vertices: number of vertices.

    Returns:
        Count per vertex int64 [g], and int32 [3 t, 2] pairs in the order of the vertices.
    """
    faces = geometry[triangles]
    turned = np.concatenate([faces, np.roll(faces, -1, 1), np.roll(faces, -2, 1)])
    turned = turned[np.argsort(turned[:, 0], kind='stable')]
    pairs = (turned[:, 1:] - turned[:, :1]).astype(np.int32)
    return np.bincount(turned[:, 0], minlength=vertices), np.ascontiguousarray(pairs)
