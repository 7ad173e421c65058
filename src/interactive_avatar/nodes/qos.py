# SPDX-License-Identifier: Apache-2.0
"""Named quality-of-service profiles, one for each kind of topic.

Every publisher and subscription of the package takes its profile from here, and every publisher
lets YAML override it: ``qos_overrides./avatar/image_raw.publisher.depth: 4``.
"""

from __future__ import annotations

from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions


def _profile(depth: int, *, reliable: bool = True, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=(QoSReliabilityPolicy.RELIABLE if reliable
                     else QoSReliabilityPolicy.BEST_EFFORT),
        durability=(QoSDurabilityPolicy.TRANSIENT_LOCAL if latched
                    else QoSDurabilityPolicy.VOLATILE))


# What comes from outside: best effort accepts both kinds of publisher, and a late sample of a
# sensor is worth nothing. 50 pieces of 20 ms are one second of sound.
SENSOR_AUDIO = _profile(50, reliable=False)
SENSOR_IMAGE = _profile(1, reliable=False)
# Pictures leave reliably, but old ones are not worth waiting for.
IMAGE = _profile(2)
# Compressed pictures leave four at a time (one chunk), so two chunks fit.
COMPRESSED_IMAGE = _profile(8)
# Sound inside the graph: a lost piece is a hole in a word. 64 chunks are ten seconds.
AUDIO = _profile(64)
# Things that happen once (intents, typed words, what was heard).
EVENT = _profile(16)
# The one current value, also for those that join late.
STATE = _profile(1, latched=True)
DIAGNOSTICS = _profile(10)


def overridable() -> QoSOverridingOptions:
    """Options that let YAML change the profile of a publisher or subscription."""
    return QoSOverridingOptions(
        [QoSPolicyKind.RELIABILITY, QoSPolicyKind.DEPTH, QoSPolicyKind.DURABILITY])
