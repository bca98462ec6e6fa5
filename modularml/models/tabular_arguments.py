"""Arguments of models of tables, shared by all frameworks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from modularml._typing import Array, Shape
from modularml.backends.layouts import InputShape, shapes_of
from modularml.errors import ConfigError, ShapeError
from modularml.models.layered import LayerArguments, arguments_of


class MLPArguments(LayerArguments):
    """Flatten the input, then ``n_layers - 1`` hidden layers and one output layer.

    Parameters
    ----------
    input_shape, output_shape : tuple of int, optional
        Of one sample; by default set by the graph.
    n_layers : int
        Number of linear layers including the output layer; 1 to 1,000.
    hidden_dim : int
        Width of the hidden layers.
    activation : str
        Name of a torch activation, in any case.
    dropout : float
        Fraction of hidden values dropped in training, in ``[0, 1)``.
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        n_layers: int = 2,
        hidden_dim: int = 32,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(**arguments_of(locals()))


class GaussianHeadArguments:
    """A linear layer that predicts the mean and the variance of each target.

    For ``k`` target values the outputs are ``k`` means, then ``k`` variances. Trained with
    ``Loss("gaussian_nll")``.

    Parameters
    ----------
    input_shape : tuple of int, optional
        Of one sample; by default set by the graph.
    target_shape : tuple of int, optional
        Shape of the targets of one sample; by default set by the graph.
    min_variance : float
        Added to each variance, which is ``softplus`` of the linear layer; at least 0.

    Notes
    -----
    Source: Nix & Weigend 1994, *Estimating the mean and variance of the target probability
    distribution* (ICNN).
    """

    def __init__(
        self,
        *,
        input_shape: Shape | None = None,
        target_shape: Shape | None = None,
        min_variance: float = 1e-6,
    ) -> None:
        if min_variance < 0:
            raise ConfigError(f"min_variance must be at least 0, got {min_variance!r}")
        super().__init__(
            input_shape=input_shape, target_shape=target_shape, min_variance=min_variance
        )  # type: ignore[call-arg]
        self.target_shape, self.min_variance = target_shape, min_variance

    def n_targets(self, target_shape: Shape | None) -> int:
        """Return the number of target values of one sample; ShapeError if it is not known."""
        shape: Any = self.target_shape if self.target_shape is not None else target_shape
        if shape is None:
            raise ShapeError(
                "GaussianHead needs target_shape unless its node is a tail of the graph; pass "
                "target_shape="
            )
        return math.prod(shape)


@dataclass(frozen=True)
class CategoryColumn:
    """A category among the values of an input.

    Attributes
    ----------
    place : int
        Position of the input, and of the value within it.
    ids : ndarray of int64, shape (n_categories,)
        Its categories, sorted; each has a row of the embedding, from 1 on.
    width : int
        Number of values of the embedding.
    """

    input: int
    place: int
    ids: Array
    width: int


class TabularArguments(LayerArguments):
    """Embeddings of category columns beside numbers, and an MLP on both.

    Category columns are those of the kind ``"category"`` that hold integers, such as the codes of
    an `OrdinalEncoder`; all others are numbers. They may be columns of one reference, or of several
    (``ModelNode(label, model, [fs.reference(features="cell"), fs.reference(features="x*")])``),
    where integers reach the embedding as 64-bit integers.

    Parameters
    ----------
    input_shape : tuple of int, or tuple or dict of such, optional
        Of one sample of each input; by default set by the graph.
    output_shape : tuple of int, optional
        Of one sample; by default set by the graph.
    categories : list, optional
        One entry for each value of a row, through all inputs: a list of the ids of a category, the
        number n of categories ``0 .. n-1``, or None for a number. By default set by the graph: the
        ids that the column holds.
    embedding_dims : int, optional
        Width of all embeddings. By default ``min(600, round(1.6 * n**0.56))`` for ``n`` rows, the
        rule of fastai (Howard & Gugger 2020, arXiv:2002.04688).
    handle_unknown : {'row', 'nan'}
        Whether an id that is not among the categories, or a missing one, reads row 0 of the
        embedding, or the outputs of that sample are NaN.
    n_layers : int
        Number of linear layers including the output layer; 1 to 1,000.
    hidden_dim : int
        Width of the hidden layers.
    activation : str
        Name of a torch activation, in any case.
    dropout : float
        Fraction of hidden values dropped in training, in ``[0, 1)``.

    Notes
    -----
    Embeddings begin at 0. A category that no training row has therefore keeps the value of an
    unknown one, in each fold, also where the column as a whole holds it.
    """

    _counts = (*LayerArguments._counts, "embedding_dims")
    categories: Sequence[Any] | None
    embedding_dims: int | None
    handle_unknown: str
    categories_: list[Any] | None = None
    """Categories of each value of a row, set by the graph or a file; ids, or None for numbers."""

    def __init__(
        self,
        *,
        input_shape: InputShape | None = None,
        output_shape: Shape | None = None,
        categories: Sequence[Sequence[int] | int | None] | None = None,
        embedding_dims: int | None = None,
        handle_unknown: Literal["row", "nan"] = "row",
        n_layers: int = 2,
        hidden_dim: int = 32,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(**arguments_of(locals()))
        for ids in categories or ():
            _ids(ids)
        self._expected: Callable[[], list[Array | None]] | None = None

    def expect_categories(self, categories: Callable[[], list[Array | None]]) -> None:
        """Receive what returns the ids of each value of a row, or None for numbers."""
        self._expected = categories

    def category_columns(self, input_shape: InputShape) -> list[CategoryColumn]:
        """Return the category columns of inputs, and record their ids.

        Raises
        ------
        ShapeError
            If there is not one entry for each value of a row.
        """
        sizes = [math.prod(shape) for shape in shapes_of(input_shape)]
        values = self.categories if self.categories is not None else self.categories_
        if values is None:
            values = [None] * sum(sizes) if self._expected is None else self._expected()
        if len(values) != sum(sizes):
            raise ShapeError(
                f"categories must have one entry for each of the {sum(sizes)} values of a row "
                f"(ids, a number of categories, or None), got {len(values)}"
            )
        self.categories_ = [None if ids is None else _ids(ids) for ids in values]
        places = [(i, place) for i, size in enumerate(sizes) for place in range(size)]
        return [
            CategoryColumn(*place, ids, self.embedding_dims or embedding_width(len(ids) + 1))
            for place, ids in zip(places, self.categories_, strict=True)
            if ids is not None
        ]

    def numbers(self, input_shape: InputShape, columns: Sequence[CategoryColumn]) -> list[Array]:
        """Return the positions of the values of each input that are no categories."""
        taken = {(column.input, column.place) for column in columns}
        return [
            np.array([p for p in range(math.prod(shape)) if (i, p) not in taken], dtype=np.int64)
            for i, shape in enumerate(shapes_of(input_shape))
        ]

    def get_state(self) -> dict[str, Any]:
        """Return shapes, weights and the ids of categories; empty before `build`."""
        state: dict[str, Any] = super().get_state()  # type: ignore[misc]
        return {**state, "categories": self.categories_} if state else state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        if state and not self._built:  # type: ignore[attr-defined]
            self.categories_ = [
                None if ids is None else _ids(np.asarray(ids)) for ids in state["categories"]
            ]
        super().set_state(state)  # type: ignore[misc]

    def build(
        self, input_shape: Any = None, output_shape: Any = None, *, force: bool = False
    ) -> None:
        """Build the layers; see `BaseModel.build`."""
        if force:
            self.categories_ = None
        super().build(input_shape, output_shape, force=force)  # type: ignore[misc]

    def _unbuilt(self) -> Any:
        twin = super()._unbuilt()  # type: ignore[misc]
        twin.categories_ = self.categories_
        return twin


def embedding_width(n_rows: int) -> int:
    """Return the width of an embedding with a number of rows, by fastai's rule."""
    return min(600, round(1.6 * math.pow(n_rows, 0.56)))


def _ids(ids: Any) -> Array:
    """Return ids of categories, sorted."""
    if isinstance(ids, int | np.integer) and not isinstance(ids, bool):
        ids = np.arange(ids)
    array = np.asarray([] if ids is None else ids)
    if ids is not None and (array.ndim != 1 or not array.size or array.dtype.kind not in "biu"):
        raise ConfigError(
            "categories must be a list with ids (integers), a number of categories, or None for "
            f"each value of a row, got {ids!r:.60}"
        )
    return np.unique(array.astype(np.int64))
