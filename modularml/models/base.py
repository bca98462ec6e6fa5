"""The base class of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from modularml._registry import Registry
from modularml._typing import Array, Shape
from modularml.backends import Backend
from modularml.backends.layouts import InputShape, is_several
from modularml.config import Configurable, Stateful
from modularml.errors import ConfigError, ShapeError
from modularml.io.artifact import Saveable
from modularml.io.values import Packer, object_state

model_registry: Registry[type[BaseModel]]


@dataclass(frozen=True)
class Place:
    """The position of a model in a graph.

    Attributes
    ----------
    feeds : bool
        Whether another node reads its outputs.
    follows : bool
        Whether it reads from a node, not from a FeatureSet.
    shape : tuple of int or None
        Shape of one sample of its input; None while an upstream estimator is not fitted.
    columns : tuple of str
        Names of the values of a row, if it reads from a FeatureSet.
    targets : tuple of str
        Keys of its targets.
    rows : callable or None
        Returns the first rows of its input, if it reads from a FeatureSet.
    """

    feeds: bool = False
    follows: bool = False
    shape: Shape | None = None
    columns: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    rows: Callable[[], Array] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Omit the rows, which belong to the FeatureSet."""
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
    """Whether columns of different shapes are concatenated into one row."""
    reads_several: ClassVar[bool] = False
    """Whether it accepts several inputs."""
    takes_mask: ClassVar[bool] = False
    """Whether it reads sequences, and takes the mask of padded ones."""
    _input_shape: InputShape | None = None
    _output_shape: Shape | None = None

    learned_from: Any = None
    """Rows that the weights learned from, recorded by the graph that trained them."""

    mask: tuple[str, Shape] | None = None
    """Argument that receives the mask of the input, and the mask's shape; None without one."""

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
        """Whether it can compute outputs; a model with weights always can."""
        return True

    @property
    def input_shape(self) -> InputShape | None:
        """Shape of one input sample; a tuple or dict of shapes for several inputs.

        None until known.
        """
        return self._input_shape

    @property
    def output_shape(self) -> Shape | None:
        """Shape of one output sample; None until known."""
        return self._output_shape

    @property
    def has_own_weights(self) -> bool:
        """Whether it was passed with weights, which the constructor's arguments lack."""
        return False

    def expect_targets(self, shape: Shape | None, labels: Callable[[], Array | None]) -> None:
        """Receive the shape and labels of targets, before `build`; ignored by default.

        Parameters
        ----------
        shape : tuple of int or None
            Of one sample; None without targets.
        labels : callable
            Returns every value of the target column, sorted; None if its rows are missing.
        """

    def declared_input(self, shape: Shape) -> Shape | None:
        """Return the shape in which the model reads samples of `shape`; None if not declared."""
        return None

    def expect_categories(self, categories: Callable[[], list[Array | None]]) -> None:
        """Receive the ids of each value of a row, before `build`; ignored by default.

        Parameters
        ----------
        categories : callable
            Returns, through all inputs, the sorted ids of each value that is a category, and None
            for each other.
        """

    def expect_place(self, place: Place) -> None:
        """Receive the position in the graph, before `build`; ignored by default."""

    def build_unread(self, output_shape: Shape | None, *, force: bool = False) -> Shape | None:
        """Defer `build` until an upstream estimator is fitted and the input shape is known.

        Returns
        -------
        tuple of int or None
            Shape of outputs, if known already.
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
        """Build the layers.

        Parameters
        ----------
        input_shape : tuple of int, or tuple or dict of such, optional
            Of one sample, or of one sample of each input.
        output_shape : tuple of int, optional
            Of one sample. The constructor's argument takes precedence.
        force : bool
            Whether to rebuild existing ones, with new weights.

        Raises
        ------
        ShapeError
            If a shape is needed and not known, or contradicts an earlier one.
        """

    def _check_fits(self, shape: InputShape | None) -> None:
        """Refuse an input shape other than the one it was built for."""
        if shape is not None and check_input_shape(shape) != self.input_shape:
            raise ShapeError(
                f"{self.shown_name} was built for input shape {self.input_shape}, got "
                f"{shape}; rebuild it with force=True"
            )

    @abstractmethod
    def get_weights(self) -> dict[str, Array]:
        """Return weights and buffers by name, as copies."""

    @abstractmethod
    def set_weights(self, weights: dict[str, Any]) -> None:
        """Set weights by name; on unknown, missing or misshapen ones nothing is changed."""

    @abstractmethod
    def reset_weights(self, seed: int | None = None) -> None:
        """Reinitialize the weights, with an optional seed."""

    @property
    def module(self) -> Any:
        """The framework's object, called on tensors."""
        return self

    def parts(self) -> list[Any]:
        """Return the objects whose attributes `build` may change."""
        return [self]

    @property
    def shown_name(self) -> str:
        """Name of the model in messages and diagrams."""
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
        """Build with the stored shapes and set the stored weights."""
        if state:
            self.build(state["input_shape"], state["output_shape"])
            self.set_weights(state["weights"])

    def check_storable(self) -> None:
        """Raise a ModularMLError if the current model cannot be stored in a file."""
        if self.is_built:
            Packer().pack(object_state(self))

    def same_weights(self, other: BaseModel) -> bool:
        """Return whether another model has equal weights under equal names."""
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
    """Refuse weights whose names or shapes are not those of a model.

    Raises
    ------
    ConfigError
        If names are missing or unknown.
    ShapeError
        If a shape differs.
    """
    if missing := [name for name in mine if name not in theirs]:
        raise ConfigError(f"weights lack {missing}; pass all of {list(mine)}")
    if unknown := [name for name in theirs if name not in mine]:
        raise ConfigError(f"weights hold {unknown}, which this model lacks; it has {list(mine)}")
    for name, value in theirs.items():
        if tuple(value.shape) != tuple(mine[name].shape):
            raise ShapeError(
                f"weight {name!r} must have shape {tuple(mine[name].shape)}, got "
                f"{tuple(value.shape)}"
            )


def renamed_in_order(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return weights of a sequence of layers under the names of another sequence.

    ``fc.0.weight`` becomes ``layers.1.weight`` if each is of the first layer with weights. Weights
    of anything but a sequence, or of layers with other weights, are returned as they are.
    """
    ours, others = _by_layer(mine), _by_layer(theirs)
    if ours is None or others is None or ours.keys() != others.keys():
        return theirs
    return {name: theirs[others[place]] for place, name in ours.items()}


def _by_layer(weights: Mapping[str, Any]) -> dict[tuple[int, str], str] | None:
    """Return names by number of the layer and parameter; None if it is not one sequence."""
    parts = {name: name.split(".") for name in weights}
    is_sequence = all(len(p) == 3 and p[1].isdecimal() for p in parts.values())
    if not is_sequence or len({p[0] for p in parts.values()}) > 1:
        return None
    numbers = sorted({int(p[1]) for p in parts.values()})
    return {(numbers.index(int(p[1])), p[2]): name for name, p in parts.items()}


def check_input_shape(shape: Any) -> InputShape:
    """Validate the shape of one input, or of each of several."""
    if isinstance(shape, Mapping):
        return {
            str(name): check_shape(f"input_shape {name!r}", input_shape)
            for name, input_shape in shape.items()
        }
    if isinstance(shape, tuple | list) and is_several(shape):
        return tuple(check_shape("input_shape", input_shape) for input_shape in shape)
    return check_shape("input_shape", shape)


def check_shape(name: str, shape: Any) -> Shape:
    """Validate a shape and return it as a tuple of positive ints."""
    if isinstance(shape, int | np.integer):
        shape = (shape,)
    try:
        sizes = tuple(int(size) for size in shape)
    except (TypeError, ValueError):
        raise ShapeError(f"{name} must be a tuple of positive ints, got {shape!r}") from None
    if any(size < 1 for size in sizes):
        raise ShapeError(f"{name} must be a tuple of positive ints, got {shape!r}")
    return sizes
