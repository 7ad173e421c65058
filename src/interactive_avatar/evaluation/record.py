# SPDX-License-Identifier: Apache-2.0
"""``avatar record``: prepares the ROS environment, then becomes the recorder's process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from interactive_avatar.graph import prepare_environment

RECORDER = 'interactive_avatar.nodes.recorder'


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``avatar record``; does not return (the process is replaced)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Fast DDS reads its profile when rclpy is loaded, so the environment must be there before.
    environment = prepare_environment(dict(os.environ))
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, '-m', RECORDER, *arguments], dict(environment))


if __name__ == '__main__':
    sys.exit(main())
