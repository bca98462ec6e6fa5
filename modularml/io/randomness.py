"""Random states of the process as plain data, and seeded generators of runs."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import numpy as np

from modularml._optional import loaded, require
from modularml._warning import warn


def random_states(*, plain: bool = True) -> dict[str, Any]:
    """Return the states of Python's and numpy's generators, and of frameworks that are loaded.

    They are plain data for a file, or, which is faster, only for `set_random_states`.
    """
    torch, states_of_torch = loaded("torch"), None
    if torch is not None:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        states_of_torch = {
            "cpu": torch.random.get_rng_state().numpy().copy(),
            "cuda": [s.numpy().copy() for s in cuda],
        }
    name, keys, pos, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - user code may draw from it
    return {
        "python": _twister(random.getstate()) if plain else random.getstate(),
        "numpy": {"name": name, "keys": keys, "rest": [pos, has_gauss, cached]},
        "torch": states_of_torch,
        "tensorflow": _tensorflow_state(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned."""
    numpy = states["numpy"]
    python = states["python"]
    random.setstate(python if isinstance(python, tuple) else _from_twister(python))
    np.random.set_state(_checked((numpy["name"], numpy["keys"], *numpy["rest"])))  # noqa: NPY002
    torch = loaded("torch")
    if torch is not None and states["torch"] is not None:
        torch.random.set_rng_state(torch.from_numpy(states["torch"]["cpu"]))
        for place, state in enumerate(states["torch"]["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.from_numpy(state), place)
    if (state := states.get("tensorflow")) is not None:  # older files have none
        _set_tensorflow_state(state)


def derived_seed(seed: int, *names: object) -> int:
    """Return the 63-bit seed of a named stream of a seed; the same in every process."""
    digest = hashlib.sha256(repr((int(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_all(seed: int, *names: object) -> None:
    """Seed Python, numpy and the loaded frameworks with separate streams.

    If a seeded run computes in another thread, this waits for it.
    """
    with _LOCK:
        if (keras := loaded("keras")) is not None:
            keras.utils.set_random_seed(derived_seed(seed, *names, "tensorflow") % 2**31)
        random.seed(derived_seed(seed, *names, "python"))
        np.random.seed(derived_seed(seed, *names, "numpy") % 2**32)  # noqa: NPY002
        if (torch := loaded("torch")) is not None:
            _torch_seeds.add(torch.manual_seed(derived_seed(seed, *names, "torch")).initial_seed())


_torch_seeds: set[int] = set()
"""Seeds that `seed_all` has set."""


def is_seeded(framework: str) -> bool:
    """Return whether somebody has seeded a framework's generator, which draws weights.

    torch seeds itself with a random number of more than 32 bits when it starts.
    """
    if framework == "torch":
        seed = loaded("torch").initial_seed()  # type: ignore[union-attr]
        return bool(seed < 2**32 or seed in _torch_seeds)
    state = _tensorflow_state()
    return state is None or state["keras_seed"] is not None


@contextmanager
def deterministic() -> Iterator[None]:
    """Enable deterministic algorithms of the frameworks within a block.

    TensorFlow has no public function to disable them again, so there they stay enabled.
    """
    torch, tensorflow = loaded("torch"), loaded("tensorflow")
    if tensorflow is not None:
        tensorflow.config.experimental.enable_op_determinism()
    if torch is None:
        yield
        return
    with _MODES_LOCK:
        if not _modes:  # runs side by side begin and end in any order; the last restores
            # set torch's deterministic modes and return those before
            cudnn = torch.backends.cudnn
            before = (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                (cudnn.deterministic, cudnn.benchmark),
                os.environ.get(_CUBLAS),
            )
            os.environ.setdefault(_CUBLAS, ":4096:8")  # required by cuBLAS to be deterministic
            torch.use_deterministic_algorithms(True)
            cudnn.deterministic, cudnn.benchmark = True, False
            _modes.append(before)
        _modes.append(None)
    try:
        yield
    finally:
        with _MODES_LOCK:
            _modes.pop()
            if len(_modes) == 1:
                on, warn_only, modes, cublas = _modes.pop()
                torch.use_deterministic_algorithms(on, warn_only=warn_only)
                torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = modes
                if cublas is None:
                    os.environ.pop(_CUBLAS, None)


_MODES_LOCK = threading.Lock()
_modes: list[Any] = []
"""What to restore, and an entry for each block that is in `deterministic`."""


_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


class OwnRandomness:
    """Random states of one run, which replace the process's while it computes.

    The frameworks use generators of the process, so seeded runs alternate: one in another thread
    waits until this one ends or is paused.
    """

    _holder: ClassVar[int | None] = None
    _loose: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self._own: dict[str, Any] | None = None
        self._outer: dict[str, Any] = {}

    def enter(self) -> None:
        """Wait for other threads, and set the states of this run."""
        _LOCK.acquire()
        self._before, OwnRandomness._holder = OwnRandomness._holder, _owner()
        self._outer = random_states()
        if self._own is not None:
            set_random_states(self._own)

    def leave(self) -> None:
        """Restore the states of the process."""
        self._own = random_states()
        set_random_states(self._outer)
        OwnRandomness._holder = self._before
        _LOCK.release()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Release the generators within a block."""
        self.leave()
        try:
            yield
        finally:
            self.enter()

    @contextmanager
    def seeded(self, seed: int, *names: object) -> Iterator[None]:
        """Use streams of a seed within a block; the process's states are restored."""
        self.enter()
        try:
            if set(OwnRandomness._loose) - {_owner()}:
                warn(_MIXED)
            seed_all(seed, *names)
            yield
        finally:
            self.leave()

    @classmethod
    @contextmanager
    def shared(cls) -> Iterator[None]:
        """Use the process's generators within a block, as a run without a seed does."""
        me = _owner()
        if cls._holder not in (None, me):
            warn(_MIXED)
        cls._loose.append(me)
        try:
            yield
        finally:
            cls._loose.remove(me)


_owner_of_context: ContextVar[int | None] = ContextVar("modularml_owner", default=None)


def _owner() -> int:
    """Return the thread that the current context computes for, by default its own."""
    return _owner_of_context.get() or threading.get_ident()


@contextmanager
def one_owner() -> Iterator[None]:
    """Let threads started within a block, with a copy of the context, count as this thread.

    Only one of them may compute at a time.
    """
    token = _owner_of_context.set(_owner())
    try:
        yield
    finally:
        _owner_of_context.reset(token)


class _OwnerLock:
    """A lock that its owner may acquire again."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._held_by: int | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        with self._free:
            if self._held_by not in (None, _owner()) and not (
                blocking and self._free.wait_for(lambda: self._held_by is None, timeout)
            ):
                return False
            self._held_by, self._count = _owner(), self._count + 1
            return True

    def release(self) -> None:
        with self._free:
            self._count -= 1
            if not self._count:
                self._held_by = None
                self._free.notify()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


_LOCK = _OwnerLock()
_MIXED = (
    "something without a seed uses the process's random generators while a seeded run uses them "
    "in another thread, so the seeded run is not reproducible; set a seed for both"
)


def exclusive_randomness() -> AbstractContextManager[None]:
    """Return a context in which no seeded run of another thread uses the generators."""
    return _LOCK


@contextmanager
def process_randomness() -> Iterator[None]:
    """Draw from the process's generators within a block, outside of runs.

    If a seeded run computes in another thread, this waits for it. It gives a warning and goes on
    after 20 seconds, as that run may be waiting for this thread; within a run without a seed,
    which has given the warning, it does not wait.
    """
    acquired = _owner() not in OwnRandomness._loose and _LOCK.acquire(timeout=_MOST_SECONDS)
    if not acquired and _owner() not in OwnRandomness._loose:
        warn(_MIXED)
    try:
        yield
    finally:
        if acquired:
            _LOCK.release()


_MOST_SECONDS = 20.0


@contextmanager
def unchanged_randomness(*, wait: bool = True) -> Iterator[None]:
    """Restore random states after a block, as loading a model initializes weights.

    Parameters
    ----------
    wait : bool
        Whether to wait for a seeded run in another thread, and block new ones.
    """
    acquired = _LOCK.acquire(blocking=wait)
    before, holder = random_states(), OwnRandomness._holder
    if acquired:
        OwnRandomness._holder = _owner()
    try:
        yield
    finally:
        set_random_states(before)
        if acquired:
            OwnRandomness._holder = holder
            _LOCK.release()


def seed_of_state(torch_graph: bool) -> int:
    """Return a seed derived from the state of torch's or numpy's global generator.

    The state is not changed. ``keras.utils.set_random_seed`` seeds numpy's too.
    """
    if torch_graph and (torch := loaded("torch")) is not None:
        state = torch.random.get_rng_state().numpy().tobytes()
    else:
        _, keys, pos, *_ = np.random.get_state()  # noqa: NPY002 - the process's generator
        state = np.asarray(keys).tobytes() + str(pos).encode()
    return int.from_bytes(hashlib.sha256(state).digest()[:8], "big") >> 1


def drawn_seed(limit: int = 2**63 - 1) -> int:
    """Draw a seed below a limit from numpy's global generator."""
    with process_randomness():
        return int(np.random.randint(limit))  # noqa: NPY002 - the process's generator


def generator_state(generator: np.random.RandomState | np.random.Generator) -> Any:
    """Return the state of one of numpy's generators: numbers, arrays, dicts and tuples."""
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return dict(generator.bit_generator.state)


def generator_from(state: Any) -> np.random.RandomState | np.random.Generator:
    """Return a generator with a state.

    Raises
    ------
    ValueError
        If it is not a state of a Mersenne twister or a PCG64.
    """
    if isinstance(state, tuple):
        old = np.random.RandomState()
        old.set_state(_checked(state))
        return old
    if state["bit_generator"] != "PCG64":
        raise ValueError(f"generators of kind {state['bit_generator']!r:.40} are not supported")
    if state["state"]["inc"] % 2 == 0:  # such a generator has a short period
        raise ValueError("this is not a state of a PCG64")
    bits = np.random.PCG64()
    bits.state = state
    return np.random.Generator(bits)


def _checked(state: tuple[Any, ...]) -> Any:
    """Return a state of the Mersenne twister.

    numpy would read beyond an invalid one without an error, and draw only zeros from an all-zero
    one, with which some distributions never return.
    """
    name, keys, pos = state[:3]
    is_valid = name == "MT19937" and len(keys) == 624 and 0 <= int(pos) <= 624
    if not is_valid or not np.any(keys[1:]):
        raise ValueError("this is not a state of numpy's generator")
    return state


def _twister(state: tuple[Any, ...]) -> dict[str, Any]:
    version, words, gauss = state
    return {"version": version, "words": np.array(words, dtype=np.uint64), "gauss": gauss}


def _from_twister(state: dict[str, Any]) -> tuple[Any, ...]:
    return state["version"], tuple(np.asarray(state["words"]).tolist()), state["gauss"]


def _tensorflow_state() -> dict[str, Any] | None:
    """Return the random states of TensorFlow and Keras, if both are imported."""
    if loaded("tensorflow") is None or loaded("keras") is None:
        return None
    state: dict[str, Any] | None = require("modularml._private.keras").random_state()
    if state is not None and state["rng"] is not None:
        state["rng"] = _twister(state["rng"])
    return state


def _set_tensorflow_state(state: dict[str, Any]) -> None:
    if loaded("tensorflow") is not None and loaded("keras") is not None:
        rng = None if state["rng"] is None else _from_twister(state["rng"])
        require("modularml._private.keras").set_random_state({**state, "rng": rng})
