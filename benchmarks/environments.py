"""Opponents, each in a virtual environment of its own, run as black boxes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".benchenvs"
TORCH = "torch==2.13.0"

OPPONENTS = {
    "ignite": ["pytorch-ignite"],
    "skorch": ["skorch"],
    "lightning": ["lightning"],
    "keras": ["keras"],
    "other_modularml": ["modularml", "matplotlib", "ipython", "rich"],  # imports all, asks for one
}
"""What pip installs beside torch, by opponent. Newest versions: the report names them."""

RACES = {name: (name, ()) for name in OPPONENTS} | {
    "other_modularml, tensorflow free": ("other_modularml", ("--free-tensorflow",))
}
"""Script and arguments by race. That package tries to import TensorFlow at every step; in the last
race the failure costs nothing."""

_LAUNCH = """
import runpy, sys
sys.path.insert(0, {root!r})
import benchmarks
sys.path.append(sys.path.pop(0))
runpy.run_module("benchmarks.opponents.{name}", run_name="__main__")
"""
# The checkout moves to the end of the path once `benchmarks` is found: what an environment has
# installed under a name of ours (`modularml`) is what its script gets.


def python_of(name: str) -> Path:
    """Return the interpreter of an opponent's environment; it need not exist."""
    return HOME / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_installed(name: str) -> bool:
    """Tell whether an opponent's environment is complete."""
    return (HOME / name / ".ready").exists()


def install(name: str) -> bool:
    """Make an opponent's environment where there is none and tell whether it is there."""
    if is_installed(name):
        return True
    print(f"installing {name} into .benchenvs/{name} (some minutes)", flush=True)
    venv.create(HOME / name, with_pip=True, clear=True)
    HOME.joinpath("constraints.txt").write_text(TORCH + "\n")
    pip = [str(python_of(name)), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pip += ["-c", str(HOME / "constraints.txt")]
    done = subprocess.run([*pip, TORCH, "numpy", *OPPONENTS[name]], check=False)
    if done.returncode == 0:
        HOME.joinpath(name, ".ready").touch()
    return done.returncode == 0


def race(title: str, *, quick: bool = False, timeout_s: float = 1800) -> dict[str, Any]:
    """Run a race of `RACES` and return the JSON of its last line.

    Returns
    -------
    dict
        With ``error`` where the script failed or took longer than `timeout_s`.
    """
    name, args = RACES[title]
    code = _LAUNCH.format(root=str(ROOT), name=name)
    command = [str(python_of(name)), "-P", "-c", code, *args, *(["--quick"] if quick else [])]
    folder = HOME / name / "scratch"
    folder.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"opponent": title, "error": f"no result after {timeout_s:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip() or "no output").splitlines()[-1]
        return {"opponent": title, "error": said[:300]}
    return {**json.loads(lines[-1]), "opponent": title}


def run_isolated(module: str, *args: str) -> dict[str, Any]:
    """Run one of our own modules in a fresh process and return the JSON of its last line."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmarks.{module} failed:\n{done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
