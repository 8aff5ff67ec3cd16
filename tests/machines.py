"""Run the tests marked `machine` as other processors would: `make check-machines`.

Attacks, optimisers and solvers follow other paths where rounding differs, and rounding differs between instruction sets
and numbers of threads. Each setting is one run of pytest; arguments are passed on to it. Not all pairs of values are
tried, as MKL, torch and oneDNN are told the same instruction set, but each value of each variable appears.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence

INSTRUCTIONS = {
    "default": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"MKL_ENABLE_INSTRUCTIONS": "AVX512", "ONEDNN_MAX_CPU_ISA": "DEFAULT"},
}
"""What torch's own loops use, as `ATEN_CPU_CAPABILITY` says it, and what its libraries are told with each."""

THREADS = (1, 2)

PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait take the processor from the others where there are more of them than cores."""


def settings() -> list[dict[str, str]]:
    """List the settings; each instruction set comes with each number of threads."""
    return [
        {"ATEN_CPU_CAPABILITY": name, **libraries, "CERTBENCH_TEST_THREADS": str(threads)}
        for (name, libraries), threads in itertools.product(INSTRUCTIONS.items(), THREADS)
    ]


def known() -> list[str]:
    """List the instruction sets that this processor has, the least first."""
    os.environ.pop("ATEN_CPU_CAPABILITY", None)  # torch would repeat it, whether it is true or not
    import torch

    names, best = list(INSTRUCTIONS), torch.backends.cpu.get_cpu_capability().lower()
    return names[: names.index(best) + 1] if best in names else names[:1]


def main(arguments: Sequence[str]) -> int:
    """Run pytest once per setting and say how each went; 1 if any failed."""
    here, lines, failed = known(), [], False
    for setting in settings():
        name = setting["ATEN_CPU_CAPABILITY"]
        line = f"{name:8} {setting['MKL_ENABLE_INSTRUCTIONS']:7} {setting['CERTBENCH_TEST_THREADS']} threads  "
        if name in here:
            start = time.monotonic()
            workers = max(1, (os.cpu_count() or 1) // int(setting["CERTBENCH_TEST_THREADS"]))
            command = [sys.executable, "-m", "pytest", "-m", "machine and not slow", "-q", "-n", str(workers)]
            code = subprocess.call([*command, *arguments], env={**os.environ, **PATIENT, **setting})
            line += f"{f'failed ({code})' if code else 'passed'} {time.monotonic() - start:6.0f} s"
            failed |= code != 0
        else:
            line += f"skipped: this processor has no {name}"
        print(line, flush=True)
        lines.append(line)
    print("\n" + "\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
