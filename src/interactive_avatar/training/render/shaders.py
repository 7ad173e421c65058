# SPDX-License-Identifier: Apache-2.0
"""GLSL of the renderer: blend, measure, normals (compute), draw (raster), resolve (compute).

The graphics half of a data-centre card is narrow (few vertex and fragment units), its compute
half wide: so everything per vertex happens in compute shaders, and a fragment does little.
"""

from __future__ import annotations

FRAME_STRUCT = """
struct Frame {
    vec4 units[13];   // 52 face units
    vec4 turn;        // yaw, pitch, roll (rad), unused
    vec4 move;        // translation (dm), glasses 0..1
    vec4 pivot;       // neck pivot (dm), hat 0..1
    vec4 plane;       // hat edge a, b; unused
    vec4 key;         // direction to the key light, power
    vec4 key_colour;  // rgb, rim power
    vec4 other;       // fill power, background layer, output slot, unused
    uvec4 mesh;       // first vertex, vertex count
};
layout(std430, binding = 0) readonly buffer Frames { Frame frames[]; };
"""

# kinds, in the order of renderer.KINDS
KIND_LINES = """
const int SKIN = 0, EYES = 1, TEETH = 2, TONGUE = 3, HAIR = 4, BROWS = 5, LASHES = 6,
          CLOTHES = 7, HAT = 8, GLASSES = 9, LENSES = 10;
"""

BLEND = """
#version 430
layout(local_size_x = 64) in;
%(frame)s
%(kinds)s
layout(std430, binding = 1) readonly buffer Neutral { vec4 neutral[]; };
layout(std430, binding = 2) readonly buffer Starts { uvec4 starts[]; };   // unit, face, kind, hw
layout(std430, binding = 3) readonly buffer Deltas { vec4 deltas[]; };
layout(std430, binding = 4) writeonly buffer Positions { vec4 positions[]; };
uniform uint stride;
const float HAT_ENTRY_DM = 1.5, GLASSES_ENTRY_DM = 2.1;   // from above the frame

vec3 turn_about(vec3 p, vec3 pivot, vec3 angle) {
    vec3 s = sin(angle), c = cos(angle);
    p -= pivot;
    p = vec3(c.z * p.x + s.z * p.y, -s.z * p.x + c.z * p.y, p.z);          // roll
    p = vec3(p.x, c.y * p.y + s.y * p.z, -s.y * p.y + c.y * p.z);          // pitch
    p = vec3(c.x * p.x + s.x * p.z, p.y, -s.x * p.x + c.x * p.z);          // yaw
    return p + pivot;
}

void main() {
    uint v = gl_GlobalInvocationID.x, tile = gl_GlobalInvocationID.y;
    if (v >= frames[tile].mesh.y) return;
    vec4 rest = neutral[frames[tile].mesh.x + v];
    uint shared_vertex = floatBitsToUint(rest.w);
    uvec4 start = starts[shared_vertex];
    uint end = starts[shared_vertex + 1u].x;
    vec3 p = rest.xyz;
    for (uint e = start.x; e < end; ++e) {
        vec4 delta = deltas[e];
        uint unit = floatBitsToUint(delta.w);
        p += frames[tile].units[unit >> 2u][unit & 3u] * delta.xyz;
    }
    int kind = int(start.z & 255u);
    float mark = 0.0;
    if (kind == HAIR) {
        float hat = frames[tile].pivot.w;
        float edge = frames[tile].plane.x + frames[tile].plane.y * p.z;
        mark = hat > 0.0 ? p.y - edge - (1.0 - hat) * HAT_ENTRY_DM : -1.0;
        // no strand may hang before an eye
        float pupil_x = frames[tile].plane.z;
        vec2 from_eye = (vec2(abs(p.x), p.y) - vec2(pupil_x, 0.01)) / vec2(1.25, 1.0);
        if (p.z > 0.0) mark = max(mark, 0.21 - length(from_eye));
    } else if (kind == HAT) {
        p.y += (1.0 - frames[tile].pivot.w) * HAT_ENTRY_DM;
    } else if (kind == GLASSES || kind == LENSES) {
        float away = 1.0 - frames[tile].move.w;
        p += vec3(0.0, away * GLASSES_ENTRY_DM, 0.9 * min(1.0, away * 3.0));
    } else if (kind == SKIN) {
        mark = float(start.z >> 8u) / 255.0;
    } else if (kind == EYES) {
        mark = p.y;
    } else {
        mark = p.z;
    }
    float weight = uintBitsToFloat(start.w);
    p = turn_about(p, frames[tile].pivot.xyz, weight * frames[tile].turn.xyz);
    positions[tile * stride + v] = vec4(p + frames[tile].move.xyz, mark);
}
"""

MEASURE = """
#version 430
layout(local_size_x = 1) in;
%(frame)s
layout(std430, binding = 4) readonly buffer Positions { vec4 positions[]; };
layout(std430, binding = 6) readonly buffer Marks { int marks[]; };
layout(std430, binding = 7) writeonly buffer Landmarks { vec4 landmarks[]; };
uniform uint stride;
uniform int eye_vertices;
uniform vec3 camera;   // half height (dm), centre y (dm), distance (dm)
uniform float size;

vec2 picture(vec3 p) {
    float w = (camera.z - p.z) / camera.z;
    vec2 ndc = vec2(p.x, p.y - camera.y) / camera.x / w;
    return (vec2(ndc.x, -ndc.y) * 0.5 + 0.5) * size - 0.5;
}

void main() {
    uint tile = gl_WorkGroupID.x, base = tile * stride;
    vec3 upper = positions[base + marks[0]].xyz, lower = positions[base + marks[1]].xyz;
    vec3 mouth = (upper + lower + positions[base + marks[2]].xyz
                  + positions[base + marks[3]].xyz) / 4.0;
    vec3 eyes[2];
    for (int side = 0; side < 2; ++side) {
        vec3 sum = vec3(0.0);
        for (int i = 0; i < eye_vertices; ++i)
            sum += positions[base + marks[4 + side * eye_vertices + i]].xyz;
        eyes[side] = sum / float(eye_vertices);
    }
    landmarks[tile * 2] = vec4(picture(mouth), picture(eyes[0]));
    landmarks[tile * 2 + 1] = vec4(picture(eyes[1]), distance(upper, lower), eyes[0].y);
}
"""

NORMALS = """
#version 430
layout(local_size_x = 64) in;
%(frame)s
layout(std430, binding = 1) readonly buffer Neutral { vec4 neutral[]; };
layout(std430, binding = 2) readonly buffer Starts { uvec4 starts[]; };
layout(std430, binding = 4) readonly buffer Positions { vec4 positions[]; };
layout(std430, binding = 5) writeonly buffer Normals { vec4 normals[]; };
layout(std430, binding = 8) readonly buffer Around { ivec2 around[]; };
uniform uint stride;

void main() {
    uint v = gl_GlobalInvocationID.x, tile = gl_GlobalInvocationID.y;
    if (v >= frames[tile].mesh.y) return;
    uint shared_vertex = floatBitsToUint(neutral[frames[tile].mesh.x + v].w);
    uint start = starts[shared_vertex].y, end = starts[shared_vertex + 1u].y;
    int at = int(tile * stride + v);
    vec3 p = positions[at].xyz, n = vec3(0.0, 0.0, 1e-9);
    for (uint e = start; e < end; ++e) {
        ivec2 pair = around[e];
        n += cross(positions[at + pair.x].xyz - p, positions[at + pair.y].xyz - p);
    }
    float weight = uintBitsToFloat(starts[shared_vertex].w);
    normals[at] = vec4(normalize(n), weight);
}
"""

VERTEX = """
#version 430
%(frame)s
%(kinds)s
layout(std430, binding = 4) readonly buffer Positions { vec4 positions[]; };
layout(std430, binding = 5) readonly buffer Normals { vec4 normals[]; };
layout(std430, binding = 7) readonly buffer Landmarks { vec4 landmarks[]; };
uniform uint stride;
const int kind = %(kind)s;
uniform int first_tile, first_vertex, tiles;
uniform vec3 camera;
in uint geometry;
in vec2 uv;
out vec2 f_uv;
out vec3 f_normal;
out vec4 f_place;      // position relative to the body (dm), mark
out float f_weight;
flat out int f_tile;
out float gl_ClipDistance[4];

void main() {
    int tile = first_tile + gl_InstanceID;
    uint at = uint(tile) * stride + uint(first_vertex) + geometry;
    vec4 p = positions[at], n = normals[at];
    float w = (camera.z - p.z) / camera.z;
    vec2 xy = vec2(p.x, p.y - camera.y) / camera.x;
    const float near = 4.0, far = 30.0;
    float dist = camera.z - p.z;
    float z = ((far + near) / (far - near) * dist - 2.0 * far * near / (far - near)) / camera.z;
    if (kind == BROWS || kind == LASHES) z -= 0.0035 * w;
    float there = kind == HAT ? frames[tile].pivot.w
                : kind == GLASSES || kind == LENSES ? frames[tile].move.w : 1.0;
    if (there <= 0.0) z = -10.0 * w;
    gl_ClipDistance[0] = w - xy.x;
    gl_ClipDistance[1] = w + xy.x;
    gl_ClipDistance[2] = w - xy.y;
    gl_ClipDistance[3] = w + xy.y;
    vec2 centre = (vec2(tile %% tiles, tile / tiles) * 2.0 + 1.0) / float(tiles) - 1.0;
    gl_Position = vec4(xy / float(tiles) + centre * w, z, w);
    f_uv = uv;
    f_normal = n.xyz;
    f_place = vec4(p.xyz - frames[tile].move.xyz, p.w);
    f_weight = n.w;
    f_tile = tile;
}
"""

FRAGMENT = """
#version 430
%(frame)s
%(kinds)s
layout(std430, binding = 7) readonly buffer Landmarks { vec4 landmarks[]; };
uniform sampler2DArray pictures;
const int kind = %(kind)s, blended = %(blended)s;
uniform int layer;
uniform vec4 tint;      // rgb, strength
uniform float light_mean;
uniform vec3 camera;
in vec2 f_uv;
in vec3 f_normal;
in vec4 f_place;
in float f_weight;
flat in int f_tile;
out vec4 colour;

void main() {
    if (kind == HAIR && f_place.w > 0.0) discard;
    vec4 texel = texture(pictures, vec3(f_uv, layer));
    float alpha = texel.a;
    if (kind == HAIR) alpha = clamp(alpha * 1.25, 0.0, 1.0);
    if (kind == LENSES) alpha = 0.10;
    if (kind == HAIR || kind == CLOTHES) {
        if (blended == 0 && alpha < 0.55) discard;
        if (blended == 1 && alpha >= 0.55) discard;
    } else if (blended == 0) {
        alpha = 1.0;
    }
    if (alpha < 0.02) discard;

    vec3 albedo = texel.rgb;
    if (kind == SKIN || kind == EYES || kind == TEETH || kind == TONGUE) {
        albedo *= tint.rgb;
    } else {
        float light = dot(albedo, vec3(0.3, 0.59, 0.11)) / light_mean;
        albedo = mix(albedo, tint.rgb * light, tint.a);
    }
    if (kind == EYES) albedo *= 0.88;
    albedo *= albedo;

    vec3 n = normalize(f_normal);
    vec3 view = normalize(vec3(0.0, camera.y, camera.z) - f_place.xyz);
    if (!gl_FrontFacing) n = -n;
    if (kind == HAIR) {
        // strands are flat cards: a rounder normal keeps them from sparkling
        vec3 ball = normalize(f_place.xyz - vec3(0.0, 0.1, -0.9));
        n = normalize(mix(n, ball, 0.75));
    } else if (kind == BROWS || kind == LASHES) {
        n = normalize(mix(n, vec3(0.0, 0.0, 1.0), 0.7));
    } else if (kind == TEETH) {
        n = normalize(mix(n, vec3(0.0, 0.0, 1.0), 0.5));
    }
    Frame_light
    float ndl = dot(n, key);
    float ndv = max(dot(n, view), 0.0);
    vec3 half_way = normalize(key + view);
    float ndh = max(dot(n, half_way), 0.0);

    float occlusion = 1.0;
    if (kind == SKIN) {
        // under the chin, and inside the mouth behind the teeth
        occlusion = 1.0 - 0.32 * smoothstep(0.05, 0.5, f_weight)
                  * (1.0 - smoothstep(0.75, 1.0, f_weight));
        occlusion *= 1.0 - 0.88 * f_place.w;
        if (f_place.w > 0.3) albedo *= vec3(0.55, 0.35, 0.32);
    } else if (kind == EYES) {
        // the lid's shadow
        occlusion = 0.92 - 0.45 * smoothstep(0.0, 0.13, f_place.w);
    }
    float gap = landmarks[f_tile * 2 + 1].z;
    if (kind == TEETH || kind == TONGUE) {
        float deep = smoothstep(0.30, -0.12, f_place.w);
        occlusion = mix(1.05, 0.10, deep) * smoothstep(0.0, 0.10, gap);
    }
    vec3 fill = mix(vec3(0.52, 0.46, 0.43), vec3(0.95, 1.0, 1.08), n.y * 0.5 + 0.5) * fill_power;
    vec3 soft = vec3(ndl);
    if (kind == SKIN) {
        // light that wanders under the skin: the shadow's edge is soft and a little red
        soft = (vec3(ndl) + vec3(0.42, 0.26, 0.20)) / vec3(1.42, 1.26, 1.20);
    } else {
        soft = (soft + 0.2) / 1.2;
    }
    // key light reaches what the sky does not, but not into the mouth
    bool within = kind == TEETH || kind == TONGUE || f_place.w > 0.01;
    vec3 light = fill * occlusion + key_colour * key_power * max(soft, 0.0)
               * (within ? occlusion : mix(occlusion, 1.0, 0.35));
    float rim = pow(1.0 - ndv, 3.0) * rim_power * smoothstep(-0.3, 0.6, n.y + 0.3);
    vec3 lit = albedo * light;
    if (kind == SKIN) {
        lit += 0.055 * pow(ndh, 14.0) * key_colour + 0.04 * pow(ndh, 50.0);
        lit += rim * 0.22 * (albedo + 0.05);
    } else if (kind == EYES) {
        lit += 0.5 * pow(ndh, 260.0) + 0.03 * pow(ndh, 20.0);
    } else if (kind == TEETH || kind == TONGUE) {
        lit += 0.10 * pow(ndh, 40.0) * occlusion;
    } else if (kind == HAIR) {
        float along = abs(dot(n, normalize(half_way + vec3(0.0, 0.25, 0.0))));
        lit += (albedo * 0.55 + 0.015) * pow(along, 18.0) * key_power + rim * 0.35 * albedo;
    } else if (kind == CLOTHES || kind == HAT) {
        lit += rim * 0.25 * (albedo + 0.02);
    } else if (kind == GLASSES) {
        lit += 0.35 * pow(ndh, 40.0) + 0.08 * rim;
    } else if (kind == LENSES) {
        lit = vec3(0.75, 0.85, 0.95) * 0.7;
        float shine = pow(max(dot(n, normalize(key + view + vec3(0.0, 0.35, 0.0))), 0.0), 60.0);
        alpha = 0.06 + 0.35 * shine;
    }
    lit = lit / (1.0 + 0.12 * lit);
    colour = vec4(sqrt(clamp(lit, 0.0, 1.0)) * alpha, alpha);
}
""".replace('Frame_light', """vec3 key = frames[f_tile].key.xyz;
    float key_power = frames[f_tile].key.w;
    vec3 key_colour = frames[f_tile].key_colour.rgb;
    float rim_power = frames[f_tile].key_colour.w;
    float fill_power = frames[f_tile].other.x;""")

RESOLVE = """
#version 430
layout(local_size_x = 8, local_size_y = 8) in;
%(frame)s
uniform sampler2D atlas;
uniform sampler2DArray backgrounds;
layout(std430, binding = 9) writeonly buffer Out { uint pixels[]; };
uniform int size, supersample, tiles;

uint shade(int x, int y, int tile) {
    ivec2 corner = ivec2(tile %% tiles, tile / tiles) * size * supersample;
    vec4 sum = vec4(0.0);
    for (int j = 0; j < supersample; ++j)
        for (int i = 0; i < supersample; ++i)
            sum += texelFetch(atlas, corner + ivec2(x * supersample + i,
                              (size - 1 - y) * supersample + j), 0);
    sum /= float(supersample * supersample);
    vec2 at = (vec2(x, y) + 0.5) / float(size);
    vec3 behind = textureLod(backgrounds, vec3(at, frames[tile].other.y), 0.0).rgb;
    uvec3 c = uvec3(clamp(sum.rgb + (1.0 - sum.a) * behind, 0.0, 1.0) * 255.0 + 0.5);
    return c.r | (c.g << 8) | (c.b << 16);
}

void main() {
    // four pixels of RGB are three words
    int x = int(gl_GlobalInvocationID.x) * 4, y = int(gl_GlobalInvocationID.y);
    int tile = int(gl_GlobalInvocationID.z);
    if (x >= size || y >= size) return;
    uint a = shade(x, y, tile), b = shade(x + 1, y, tile);
    uint c = shade(x + 2, y, tile), d = shade(x + 3, y, tile);
    int slot = int(frames[tile].other.z);
    int at = ((slot * size + y) * size + x) / 4 * 3;
    pixels[at] = a | (b << 24);
    pixels[at + 1] = (b >> 8) | (c << 16);
    pixels[at + 2] = (c >> 16) | (d << 8);
}
"""


def source(text: str, **values: object) -> str:
    """Fill in a shader's shared pieces."""
    return (text % {'frame': FRAME_STRUCT, 'kinds': KIND_LINES, **values}).strip()
