"""The worker, run in the environment of AutoAWQ and AutoGPTQ: ``python -m tunegate.quantize.legacy.worker JOB``.

It imports of tunegate what needs the standard library alone. It loads safetensors only and no remote code.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tunegate.contracts.errors import reports_errors
from tunegate.contracts.schemes import AUTO_GPTQ, AUTOAWQ
from tunegate.quantize.legacy import auto_gptq_worker, autoawq_worker
from tunegate.quantize.legacy.job import read_job

WORKERS = {AUTOAWQ: autoawq_worker.quantize, AUTO_GPTQ: auto_gptq_worker.quantize}


@reports_errors
def main(path: Path) -> None:
    """Does the job that lies at ``path``."""
    job = read_job(path)
    WORKERS[job.backend](job)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
