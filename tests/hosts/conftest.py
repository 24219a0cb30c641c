"""Where a host is not installed its tests are left out; what they share can be imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
