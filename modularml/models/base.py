"""What every model offers a graph, whatever its framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from modularml._registry import Registry
from modularml._typing import Array, Shape
from modularml.backends import Backend
from modularml.backends.input_shapes import InputShape, is_several
from modularml.config import Configurable, Stateful
from modularml.errors import ConfigError, ShapeError
from modularml.io.saveable import Saveable
from modularml.io.values import Packer, object_state

__all__ = ["BaseModel", "Place", "check_input_shape", "check_shape", "model_registry"]

model_registry: Registry[type[BaseModel]]


@dataclass(frozen=True)
class Place:
    """Where a model stands in a graph.

    Attributes
    ----------
    feeds : bool
        Whether another node reads its outputs.
    follows : bool
        Whether it reads from a node, not from a FeatureSet.
    shape : tuple of int or None
        Shape of one sample of what it reads; None while an estimator above is not fitted.
    columns : tuple of str
        Names of the values of a row, where it reads from a FeatureSet.
    targets : tuple of str
        Keys of its targets.
    rows : callable or None
        Returns the first rows that it reads, where it reads from a FeatureSet.
    """

    feeds: bool = False
    follows: bool = False
    shape: Shape | None = None
    columns: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    rows: Callable[[], Array] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the rows, which belong to the FeatureSet."""
        return {**vars(self), "rows": None}


class BaseModel(Configurable, Stateful, Saveable, ABC):
    """A model that is built once its shapes are known.

    Parameters
    ----------
    backend : str or Backend
    **init_args
        The constructor's arguments; they are the config.
    """

    artifact_kind = "md"
    reads_flat: ClassVar[bool] = False
    """Whether columns of unlike shape are put side by side in one row."""
    reads_several: ClassVar[bool] = False
    """Whether a node may give it several inputs."""
    _input_shape: InputShape | None = None
    _output_shape: Shape | None = None

    learned_from: Any = None
    """Which rows the weights learned from, as told by the graph that trained them."""

    mask: tuple[str, Shape] | None = None
    """Argument that a call gets the mask of its input by, and the mask's shape; None for none."""

    def __init__(self, backend: str | Backend, **init_args: Any) -> None:
        self._backend = Backend.from_value(backend)
        self._init_args = init_args
        self._built = False

    @property
    def backend(self) -> Backend:
        """The framework of this model."""
        return self._backend

    @property
    def is_built(self) -> bool:
        """Whether layers exist and shapes are known."""
        return self._built

    @property
    def is_fitted(self) -> bool:
        """Whether it can be asked for outputs; a model with weights always can."""
        return True

    @property
    def input_shape(self) -> InputShape | None:
        """Shape of one sample going in; a tuple or dict of shapes where several inputs do.

        None while it is not known.
        """
        return self._input_shape

    @property
    def output_shape(self) -> Shape | None:
        """Shape of one sample coming out; None while it is not known."""
        return self._output_shape

    @property
    def has_own_weights(self) -> bool:
        """Whether it was given with weights, which no constructor's argument tells of."""
        return False

    def expect_targets(self, shape: Shape | None, labels: Callable[[], Array]) -> None:
        """Take note of what the targets look like, before `build`; most models need not know.

        Parameters
        ----------
        shape : tuple of int or None
            Of one sample; None where there are none.
        labels : callable
            Returns every value of the target column, sorted.
        """

    def expect_place(self, place: Place) -> None:
        """Take note of the place in the graph, before `build`; most models need not know."""

    def build_unread(self, output_shape: Shape | None, *, force: bool = False) -> Shape | None:
        """Wait with `build`: an estimator above has to be fitted for its input to have a shape.

        Returns
        -------
        tuple of int or None
            Shape of outputs, where it is known all the same.
        """
        self._built = self._built and not force
        return self._output_shape

    @abstractmethod
    def build(
        self,
        input_shape: InputShape | None = None,
        output_shape: Shape | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Make the layers.

        Parameters
        ----------
        input_shape : tuple of int, or tuple or dict of such, optional
            Of one sample, or of one of each input.
        output_shape : tuple of int, optional
            Of one sample. What the constructor was given wins over `output_shape`.
        force : bool
            Whether to make them again, with new weights, where they exist.

        Raises
        ------
        ShapeError
            If a shape is needed and not known, or does not fit what was given before.
        """

    def _check_fits(self, shape: InputShape | None) -> None:
        """Refuse another input shape than it was built for."""
        if shape is not None and check_input_shape(shape) != self.input_shape:
            raise ShapeError(
                f"{self.shown_name} was built for input shape {self.input_shape}, got "
                f"{shape}; build with force=True to make it anew"
            )

    @abstractmethod
    def get_weights(self) -> dict[str, Array]:
        """Return weights and buffers by name, as arrays of their own."""

    @abstractmethod
    def set_weights(self, weights: dict[str, Any]) -> None:
        """Take over weights by name; unknown, missing or misshapen ones are refused whole."""

    @abstractmethod
    def reset_weights(self, seed: int | None = None) -> None:
        """Draw new weights, from a seed where one is given."""

    @property
    def module(self) -> Any:
        """The framework's own object, called on tensors."""
        return self

    def parts(self) -> list[Any]:
        """Return the objects whose attributes `build` may change."""
        return [self]

    @property
    def shown_name(self) -> str:
        """Name of the model in messages and pictures."""
        return type(self).__name__

    def get_init_args(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._init_args)

    def get_state(self) -> dict[str, Any]:
        """Return shapes and weights; empty before `build`."""
        if not self._built:
            return {}
        return {
            "input_shape": self.input_shape,
            "output_shape": self.output_shape,
            "weights": self.get_weights(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Build with the stored shapes and take over the stored weights."""
        if state:
            self.build(state["input_shape"], state["output_shape"])
            self.set_weights(state["weights"])

    def check_storable(self) -> None:
        """Raise a ModularMLError where no file can hold what there is to keep by now."""
        if self.is_built:
            Packer().pack(object_state(self))

    def same_weights(self, other: BaseModel) -> bool:
        """Tell whether another model has equal weights under equal names."""
        mine, theirs = self.get_weights(), other.get_weights()
        return mine.keys() == theirs.keys() and all(
            np.array_equal(mine[k], theirs[k], equal_nan=mine[k].dtype.kind == "f") for k in mine
        )

    def _params(self) -> dict[str, Any]:
        return self.get_init_args()

    def _file_facts(self) -> dict[str, Any]:
        return {"backends": {type(self).__name__: self.backend.value}}


model_registry = Registry("model")


def check_weights(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly those of a model.

    Raises
    ------
    ConfigError
        If names are missing or unknown.
    ShapeError
        If a shape differs.
    """
    if missing := [name for name in mine if name not in theirs]:
        raise ConfigError(f"weights lack {missing}; give all of {list(mine)}")
    if unknown := [name for name in theirs if name not in mine]:
        raise ConfigError(f"weights hold {unknown}, which this model has not; it has {list(mine)}")
    for name, value in theirs.items():
        if tuple(value.shape) != tuple(mine[name].shape):
            raise ShapeError(
                f"weight {name!r} must have shape {tuple(mine[name].shape)}, got "
                f"{tuple(value.shape)}"
            )


def check_input_shape(shape: Any) -> InputShape:
    """Return the shape of one input, or of each of several, or say what is wrong with it."""
    if isinstance(shape, Mapping):
        return {str(name): check_shape(f"input_shape {name!r}", own) for name, own in shape.items()}
    if isinstance(shape, tuple | list) and is_several(shape):
        return tuple(check_shape("input_shape", own) for own in shape)
    return check_shape("input_shape", shape)


def check_shape(name: str, shape: Any) -> Shape:
    """Return a shape as a tuple of positive ints, or say what is wrong with it."""
    if isinstance(shape, int | np.integer):
        shape = (shape,)
    try:
        found = tuple(int(size) for size in shape)
    except (TypeError, ValueError):
        raise ShapeError(f"{name} must be a tuple of positive ints, got {shape!r}") from None
    if any(size < 1 for size in found):
        raise ShapeError(f"{name} must be a tuple of positive ints, got {shape!r}")
    return found
