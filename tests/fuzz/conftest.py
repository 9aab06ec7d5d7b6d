import sys

# Limits of memory, and knowing it, are Linux's.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]
