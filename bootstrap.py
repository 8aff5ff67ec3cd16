"""Set everything up in .venv, then run a command there: `python bootstrap.py bench`. The Makefile calls this file.

Nothing is installed again until a file in PINS changes, the checkout moves, Python changes, or the last attempt did
not end. Arguments after the command are passed on: `python bootstrap.py test -k smoothing`. Parses on Python 3.6, so
that an old one gets the one line that it needs.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "setup": [],
    "bench": [["certbench", "run", "default"]],
    "test": [["pytest", "-n", "auto"]],
    "check": [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"]],
    "check-slow": [["pytest", "-m", "slow"]],
    "check-machines": [["python", "-m", "tests.machines"]],
    "faults": [["python", "-m", "tests.faults"]],
    "benchmark": [
        ["python", "-m", "benchmarks.radii"],
        ["python", "-m", "benchmarks.lipschitz"],
        ["pytest", "benchmarks", "-s", "--benchmark-columns=min,median"],
    ],
    "clean": [],
}
PINS = ("pyproject.toml", "constraints.txt", "requirements-nodeps.txt")
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "certbench-setup"

# Where packages come from is up to the machine; which ones are installed, and where to, is decided here.
SOURCES = r".*INDEX|FIND_LINKS|.*CERT|TRUSTED|PROXY|.*CACHE|CONFIG|KEYRING|.*TIMEOUT|RETRIES"
BENDING = re.compile(rf"PYTHON(PATH|HOME|WARNINGS)$|PIP_(?!{SOURCES})")
ENVIRONMENT = {key: value for key, value in os.environ.items() if not BENDING.match(key)}
ENVIRONMENT.update(PIP_CONSTRAINT="constraints.txt", PIP_BUILD_CONSTRAINT="constraints.txt")  # in isolated builds too


def run(*command):
    """Run it in ROOT; end with its exit code if it fails."""
    code = subprocess.call([str(word) for word in command], cwd=str(ROOT), env=ENVIRONMENT)
    if code:
        sys.exit(code if code > 0 else 128 - code)


def setup():
    """Install the pinned packages into .venv; the stamp is taken away first and written last."""
    place = f"{ROOT} Python {sys.version_info[0]}.{sys.version_info[1]} "
    wanted = place + hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in PINS)).hexdigest()
    working = STAMP.exists() and shutil.which("python", path=str(BIN))
    stamp = STAMP.read_text(encoding="utf-8") if working else ""
    if stamp == wanted:
        return
    STAMP.unlink(missing_ok=True)
    if not stamp.startswith(place):  # else a set-up ended here, and only the pins are others now
        run(sys.executable, "-m", "venv", "--clear", VENV)
    pip = (BIN / "python", "-m", "pip", "--disable-pip-version-check", "install")
    run(*pip, "-c", "constraints.txt", "-e", ".[lirpa,onnx,solvers,vnnlib,dev]")
    run(*pip, "--no-deps", "--require-hashes", "-r", "requirements-nodeps.txt")
    STAMP.write_text(wanted, encoding="utf-8")


def clean():
    """Remove what can be made again; reports stay."""
    STAMP.unlink(missing_ok=True)
    for name in (
        ".venv",
        "build",
        "dist",
        "certbench.egg-info",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".import_linter_cache",
    ):
        shutil.rmtree(str(ROOT / name), ignore_errors=True)


def main(name="", *arguments):
    """Run the command of that name."""
    if sys.version_info < (3, 11):
        sys.exit(f"certbench needs Python 3.11 or newer, this is {sys.version.split()[0]}; try: make PYTHON=python3.11")
    if name not in COMMANDS:
        sys.exit("usage: python bootstrap.py {} [arguments]".format("|".join(COMMANDS)))
    if name == "clean":
        return clean()
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the program, which ends in its own way
    setup()
    for program, *words in COMMANDS[name]:
        run(BIN / program, *words, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
