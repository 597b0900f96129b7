"""The worker, run in the environment of AutoAWQ and AutoGPTQ: ``python -m tunegate.quantize.legacy.worker JOB``.

It imports of tunegate what needs the standard library alone. It loads safetensors only and no remote code.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.room import no_room, why_no_room
from tunegate.contracts.schemes import AUTO_GPTQ, AUTOAWQ
from tunegate.quantize.legacy import auto_gptq_worker, autoawq_worker
from tunegate.quantize.legacy.job import read_job

WORKERS = {AUTOAWQ: autoawq_worker.quantize, AUTO_GPTQ: auto_gptq_worker.quantize}


@reports_errors
def main(path: Path) -> None:
    """Does the job that lies at ``path``.

    Raises:
        TunegateError: what the work raised; of a device that holds no more as an error of ours, whoever met it.
    """
    job = read_job(path)
    try:
        WORKERS[job.backend](job)
    except Exception as error:
        if why := why_no_room(error):
            raise no_room(Path(job.folder), why) from error
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
