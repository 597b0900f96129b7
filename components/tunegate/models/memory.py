"""When memory runs out, on a GPU or a CPU."""

from __future__ import annotations


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, so that less at once may go well."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and bool(should_reduce_batch_size(error))
