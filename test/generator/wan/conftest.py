# SPDX-License-Identifier: Apache-2.0
"""Makes the shared tiny model importable from the tests beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
