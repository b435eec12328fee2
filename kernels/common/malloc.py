"""A setting of the host process for long CPU runs."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 30


def disable_malloc_trim() -> bool:
    """Makes glibc keep freed buffers instead of returning them to the system after every operation.

    Attention by pieces allocates and frees buffers of megabytes thousands of times; each round trip
    to the system costs page faults, which on virtual machines took longer than the arithmetic.

    Returns: whether the setting took effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST - 1))
