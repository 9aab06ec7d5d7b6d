"""Lets tests here, and the processes that they start, import the package `fuzzing` beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# Limits of memory, and knowing it, are Linux's.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]
