"""Keep freed memory in the process: for glibc, the allocator of most Linux systems.

By default glibc maps every large tensor anew and gives it back when it is freed, so each activation of
each step costs a system call and a page fault every 4 KiB. Three settings end that; loader workers are
forked and inherit them. What it gains is in docs/results.md, "Small settings that were tried".
"""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # numbers of <malloc.h>


def keep_memory() -> bool:
    """Serve all sizes from a heap that only grows, 64 MB at a time; true where that was possible.

    Elsewhere than under glibc nothing is done: what the system's allocator does is left as it is.
    """
    try:
        libc = ctypes.CDLL(None)
        _ = libc.gnu_get_libc_version  # musl and others have none
    except (OSError, TypeError, AttributeError):  # no such library, as on Windows
        return False
    return all(libc.mallopt(*setting) == 1 for setting in ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 64 << 20)))
