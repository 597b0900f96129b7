"""What a process of another environment sees of ours: a few variables, and nothing of the folder one stands in."""

from __future__ import annotations

from collections.abc import Mapping

#: What is passed on. Everything else stays here: it would print or pass on a token, or change what is imported.
PASSED_ON = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
)  # fmt: skip

#: What each is told: it reaches no hub, reports to nobody, and imports nothing from the folder it is started in.
TOLD: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
}


def isolated(ours: Mapping[str, str], *, passed_on: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment of a process that is kept to itself.

    Args:
        ours: the environment of this process.
        passed_on: further variables that it may see.
    """
    return {**{name: ours[name] for name in (*PASSED_ON, *passed_on) if name in ours}, **TOLD}
