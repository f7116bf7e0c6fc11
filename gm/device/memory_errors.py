"""Running out of memory, told in one line with what to do about it."""

from contextlib import contextmanager
from typing import Iterator

from gm.errors import UserError

# In lower case: MindSpore's CPU allocator in graph and PyNative mode, its Ascend allocator and the driver below it,
# the C++ library, oneDNN, NumPy.
OUT_OF_MEMORY_SIGNS = (
    "memory not enough",
    "memory isn't enough",
    "allocate memory failed",
    "allocate output memory failed",
    "malloc memory failed",
    "out of memory",
    "cannot allocate memory",
    "unable to allocate",
    "bad_alloc",
    "rtmalloc",
    "could not create a memory",
)


class OutOfMemory(UserError):
    """The machine's or the device's memory does not hold the work that was asked for."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or one that it arose from, says that memory ran out."""
    current = error
    while current is not None:
        if isinstance(current, MemoryError):
            return True
        text = str(current).lower()
        if isinstance(current, (RuntimeError, OSError, ValueError)) and any(
            sign in text for sign in OUT_OF_MEMORY_SIGNS
        ):
            return True
        current = current.__cause__ or current.__context__
    return False


@contextmanager
def explain_out_of_memory(remedies: str) -> Iterator[None]:
    """Turns a failed allocation inside the block into an :class:`OutOfMemory`; other errors pass unchanged.

    Args:
        remedies: what to do, in the order to try it, such as "lower --SVD.num_frames".

    Raises:
        OutOfMemory: memory ran out.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory; in this order, try: {remedies}") from error
