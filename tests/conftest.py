"""What every test gets: a context of its own, and frameworks on one thread where they are there."""

import os
import signal
import subprocess
import sys

import pytest

from modularml._private import PUBLIC_ONLY
from modularml.context import ExperimentContext
from tests.fuzz.share import SEED, SHARE

for _name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):  # read when TensorFlow starts
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in jobs that a shell starts with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say what random damage is drawn from."""
    return f"fuzz: {SHARE:g} of the full figures, seed {SEED}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of what only private parts of other libraries make possible."""
    marker = item.get_closest_marker("private")
    if marker is not None and PUBLIC_ONLY:
        pytest.skip(f"not with MODULARML_PUBLIC_ONLY=1: {marker.args[0]}")


@pytest.fixture(autouse=True)
def fresh_context():
    """Make nodes of one test unknown to the next."""
    with ExperimentContext(registration_policy="error").activate() as ctx:
        yield ctx


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(params=["torch", "tensorflow"])
def backend(request):
    """Run a test on each framework with gradients that is installed."""
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="session")
def run_script():
    """Run a script in a folder, in a process where warnings are errors; return what it prints."""

    def run(text, folder):
        script = folder / "example.py"
        script.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run
