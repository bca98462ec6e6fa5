"""The commands of the Makefile as nox sessions, each in an environment of its own.

``nox -s tests`` builds one; with ``.venv`` activated, ``nox --no-venv -s tests`` uses that one.
"""

from pathlib import Path

import nox
from nox.virtualenv import PassthroughEnv

nox.options.sessions = ["lint", "types", "layers", "words", "tests"]
nox.options.reuse_existing_virtualenvs = True

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def install(session: nox.Session, extras: str = "torch,plot,dev") -> None:
    if not isinstance(session.virtualenv, PassthroughEnv):
        session.install("-q", "-c", "constraints.txt", "-e", f".[{extras}]")


@nox.session
def demo(session: nox.Session) -> None:
    install(session, "torch,plot")
    session.run("python", "-m", "modularml", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    install(session)
    args = session.posargs or ["-n", "2", "--dist", "worksteal"]
    session.run("python", "-m", "pytest", *args, env=ONE_THREAD)


@nox.session
def public_only(session: nox.Session) -> None:
    """Run the tests on the newest versions of all packages, and only by what these make public."""
    if not isinstance(session.virtualenv, PassthroughEnv):
        newest = ("-U", "--upgrade-strategy", "eager")
        session.install("-q", *newest, "-e", ".[torch,tensorflow,plot,dev]")
        # it comes with torch for CUDA, and ends Python if it is imported after TensorFlow
        session.run("python", "-m", "pip", "uninstall", "-q", "-y", "triton")
    args = session.posargs or ["-n", "2", "--dist", "worksteal"]
    session.run("python", "-m", "pytest", *args, env={**ONE_THREAD, "MODULARML_PUBLIC_ONLY": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    install(session)
    session.run("mypy", *session.posargs)


@nox.session
def layers(session: nox.Session) -> None:
    install(session)
    session.run("lint-imports", "--no-logo")


@nox.session
def words(session: nox.Session) -> None:
    """Look at spelling, and for words that docs must not use."""
    install(session)
    pages = ["docs", "modularml", "notebooks", "benchmarks", "changelog.d"]
    session.run("codespell", *pages, *map(str, Path().glob("*.md")))
    session.run("python", "docs/terms.py")


SPHINX = ("sphinx-build", "-q", "-W", "--keep-going", "docs")


@nox.session
def docs(session: nox.Session) -> None:
    install(session, "all,docs")
    session.run(*SPHINX, "docs/_build/html")


@nox.session(name="docs-check")
def docs_check(session: nox.Session) -> None:
    """Build the docs, then look at links, sizes, and each kind of page in a browser."""
    install(session, "all,docs,dev")
    session.run(*SPHINX, "docs/_build/html")
    env = {**ONE_THREAD, "MML_DOCS": "docs/_build/html"}
    session.run("python", "-m", "pytest", "tests/docs/test_site.py", env=env)


@nox.session
def linkcheck(session: nox.Session) -> None:
    """Ask each external link of the docs for an answer; this alone needs a network."""
    install(session, "all,docs")
    session.run("sphinx-build", "-q", "-b", "linkcheck", "docs", "docs/_build/linkcheck")


@nox.session
def notebooks(session: nox.Session) -> None:
    install(session)
    session.run("python", "-m", "pytest", "tests/test_repo.py", "-k", "notebook", env=ONE_THREAD)


@nox.session
def bench(session: nox.Session) -> None:
    install(session)
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Run in full what the tests run a tenth of; ``MML_SEED`` takes another seed."""
    install(session)
    args = session.posargs or ["-n", "2"]
    env = {**ONE_THREAD, "MML_FUZZ": "1"}
    session.run("python", "-m", "pytest", "tests/fuzz", *args, env=env)


OLDEST = (
    *("scikit-learn==1.6.0", "numpy==2.0.0", "pandas==2.2.2", "pyarrow==18.0.0", "joblib==1.4.0"),
    *("lazy_loader==0.4", "narwhals==2.0.0", "pyyaml==6.0.1", "safetensors==0.5.0", "tqdm==4.66.0"),
)
"""The lowest versions that pyproject.toml declares."""


NEWEST = ("-U", "scikit-learn", "pandas", "numpy")
ESTIMATORS = {"old": OLDEST, "1.7": ("scikit-learn==1.7.*",), "1.8": ("scikit-learn==1.8.*",)}
ESTIMATORS |= {"new": NEWEST}


@nox.session
@nox.parametrize("name", list(ESTIMATORS), ids=list(ESTIMATORS))
def estimators(session: nox.Session, name: str) -> None:
    """Store and read every kind of estimator, from the lowest declared version to the newest.

    Files that the session of another version has left are read as well.
    """
    session.install("-q", *ESTIMATORS[name], "pytest>=9.0", "hypothesis")
    session.install("-q", "-e", ".", *(["--no-deps"] if name == "old" else []))
    session.run("python", "-m", "pytest", "tests/io/test_estimators.py", env=ONE_THREAD)
    files = session.cache_dir / "estimators"
    for folder in sorted(files.glob("*")):
        session.run("python", "-m", "tests.io.across", "read", str(folder), env=ONE_THREAD)
    (files / name).mkdir(parents=True, exist_ok=True)
    session.run("python", "-m", "tests.io.across", "write", str(files / name), env=ONE_THREAD)


EXTRAS = [
    *("torch", "tensorflow", "plot", "report", "sweep", "track", "cluster", "export", "boost"),
    *("polars", "metrics"),
]


@nox.session
@nox.parametrize("extra", EXTRAS, ids=EXTRAS)
def extras(session: nox.Session, extra: str) -> None:
    """Install one extra alone, and use it; see `tests.extras`."""
    session.install("-q", "-c", "constraints.txt", "-e", f".[{extra}]")
    session.run("python", "-m", "tests.extras", extra, env=ONE_THREAD)


EVERY_NAME = """
import modularml
for name in modularml.__all__:
    try:
        getattr(modularml, name)
    except ImportError as error:  # what needs another extra says so
        assert "pip install" in str(error), (name, error)
"""


@nox.session(python=["3.11", "3.12", "3.13"])
def wheel(session: nox.Session) -> None:
    """Dry run of a release: build, install into an empty environment, run the README.

    Versions of Python that are not on this machine are skipped, and nox says which.
    """
    out = Path(session.create_tmp())
    readme = Path("README.md").read_text("utf-8")
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), ".")
    built = max(out.glob("modularml-*.whl"), key=lambda path: path.stat().st_mtime)
    session.install("-q", "-c", "constraints.txt", "--force-reinstall", "--no-deps", str(built))
    session.install("-q", "-c", "constraints.txt", f"{built}[torch,plot]")
    (out / "readme.py").write_text(readme.split("```python\n")[1].split("```")[0], "utf-8")
    with session.chdir(out):
        session.run("python", "-c", EVERY_NAME)
        session.run("python", "-W", "error", "readme.py", env=ONE_THREAD)
