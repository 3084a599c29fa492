"""Everything that runs on torch and diffusers: checkpoints, networks, memory, and the engine.

No Ray, no HTTP: it runs in a test, on a laptop or on a bare GPU alike.
"""

import os

# torch reads this at its first allocation. A step makes and frees tensors of many megabytes, each
# time in fresh pages where the allocator gave the last ones back; large pages are some thirty
# times as few. Linux only, where it gives them to those who ask.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
