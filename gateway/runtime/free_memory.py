"""Gives freed memory back to the system, which glibc keeps for long after large requests."""

import contextlib
import ctypes


def give_back() -> None:
    """Return free pages of the heap to the system. It takes milliseconds: call it in a thread. Does nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
