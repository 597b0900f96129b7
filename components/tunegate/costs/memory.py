"""What a server's processes hold in memory."""

from __future__ import annotations

from tunegate.contracts.errors import InputError


def processes_memory_bytes(pid: int) -> int:
    """The memory of a process and of all that it started, in bytes: proportional set size (PSS).

    A page that several processes share counts in parts, one for each of them: summed over all servers of a machine, no
    page counts twice, as it would with resident memory.

    Args:
        pid: the process; for vLLM the one that was started, for ``tunegate deploy`` the command itself.

    Raises:
        InputError: when there is no such process, or it is another user's.
    """
    import psutil

    try:
        first = psutil.Process(pid)
        processes = [first, *first.children(recursive=True)]
        return sum(_pss_bytes(process) for process in processes)
    except (psutil.NoSuchProcess, psutil.AccessDenied) as error:
        raise InputError(
            f"The memory of process {pid} cannot be read.",
            seen=str(error),
            expected="a process of this user on this machine, running",
            remedy="give the id of the server's first process, or leave --pid out: memory is then not measured",
        ) from error


def _pss_bytes(process: object) -> int:
    """Zero for a worker that ended in between."""
    import psutil

    try:
        return int(process.memory_full_info().pss)  # type: ignore[attr-defined]
    except psutil.ZombieProcess:
        return 0
