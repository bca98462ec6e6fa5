"""Models whose layers are made once their shapes are known, and wrappers of what exists."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from modularml._typing import Shape
from modularml.backends.input_shapes import InputShape, is_several, shapes_of
from modularml.config import decode, encode
from modularml.errors import ConfigError, NotFittedError, ShapeError, UnknownNameError
from modularml.models.base import BaseModel, check_input_shape, check_shape, check_weights

__all__ = ["LayeredModel", "ModelWrapper"]


MAX_PROBE = 2**20
"""Numbers in the one sample that a model from a file may be tried with."""


class LayeredModel(BaseModel):
    """Shapes first, layers when they are known; a subclass makes them and sends zeros through."""

    reads_several = True

    def __init__(self, backend: str, **init_args: Any) -> None:
        BaseModel.__init__(self, backend, **init_args)
        given = init_args.get("input_shape")
        self._input_shape = None if given is None else check_input_shape(given)
        self._output_shape = _optional_shape("output_shape", init_args.get("output_shape"))
        self._explicit_output = self._output_shape is not None
        self._made_for: Shape | None = None

    @abstractmethod
    def make_layers(self, input_shape: InputShape, output_shape: Shape | None) -> None:
        """Make the layers as attributes of this model."""

    @abstractmethod
    def _probe(self, shape: InputShape) -> Shape:
        """Send two samples of zeros through, to learn the output's shape."""

    def build(
        self,
        input_shape: InputShape | None = None,
        output_shape: Shape | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Make the layers; see `BaseModel.build`."""
        if self._built and not force:
            self._check_fits(input_shape)
            self._check_mask()
            return
        shape = self._shape_for(input_shape)
        wanted = self._output_shape if self._explicit_output else output_shape
        self._made_for = _optional_shape("output_shape", wanted)
        self.make_layers(shape, self._made_for)
        self._check_mask()
        self._input_shape, self._output_shape = shape, self._probe(shape)
        self._built = True

    @abstractmethod
    def _called(self) -> Any:
        """Return the method whose arguments a call is given."""

    def _check_mask(self) -> None:
        """Refuse an argument for the mask that the model does not take."""
        if self.mask is None:
            return
        takes = inspect.signature(self._called()).parameters
        if self.mask[0] not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            raise UnknownNameError(f"mask_as of {self.shown_name}", self.mask[0], list(takes))

    def example_mask(self, make: Callable[[Shape], Any]) -> dict[str, Any]:
        """Return the mask that two samples are tried with, by the argument's name."""
        return {} if self.mask is None else {self.mask[0]: make((2, *self.mask[1]))}

    def get_state(self) -> dict[str, Any]:
        """Return the shapes it was built for, and weights; empty before `build`."""
        state = super().get_state()
        told = {"output_shape": self._made_for, "probed_shape": self._output_shape}
        return {**state, **told} if state else state

    def set_state(self, state: dict[str, Any]) -> None:
        """Make the layers for the stored shapes and take over the stored weights.

        Weights are first held against a twin that has shapes and no memory, and nothing is sent
        through: a state cannot make this process allocate more than it holds itself.
        """
        if state and not self._built:
            shape = self._shape_for(state["input_shape"])
            wanted = self._output_shape if self._explicit_output else state["output_shape"]
            wanted = _optional_shape("output_shape", wanted)
            if (sketch := self._sketch(shape, wanted)) is not None:
                check_weights(sketch, state["weights"])
            numbers = sum(map(math.prod, shapes_of(shape)))
            if "probed_shape" not in state and numbers > MAX_PROBE:
                raise ShapeError(f"samples of shape {shape} are too large to be tried out")
            self._make_untried(shape, wanted)
            found = state["probed_shape"] if "probed_shape" in state else self._probe(shape)
            self._output_shape = check_shape("output_shape", found)
            self._input_shape, self._made_for, self._built = shape, wanted, True
        super().set_state(state)

    @abstractmethod
    def _sketch(self, shape: InputShape, wanted: Shape | None) -> dict[str, Any] | None:
        """Return what has the shapes of all weights, by name, and no memory.

        None where layers cannot be made so.
        """

    def _make_untried(self, shape: InputShape, wanted: Shape | None) -> None:
        """Make the layers and all of their weights, without sending numbers through."""
        self.make_layers(shape, wanted)

    def _shape_for(self, input_shape: InputShape | None) -> InputShape:
        given = self._init_args.get("input_shape")
        shape = input_shape if input_shape is not None else given or self._input_shape
        if shape is None:
            raise ShapeError(f"{type(self).__name__} needs input_shape to be built")
        shape = check_input_shape(shape)
        if given is not None and check_input_shape(given) != shape:
            raise ShapeError(f"{type(self).__name__} was made for input_shape {given}, got {shape}")
        if is_several(shape) and not self.reads_several:
            raise ShapeError(
                f"{type(self).__name__} reads one input, got shapes of several {shape}"
            )
        return shape

    def _no_layers(self) -> NotFittedError:
        return NotFittedError(
            f"{self.shown_name} has no layers yet; call its build(input_shape), or graph.build()"
        )

    def _misfit(self, shape: InputShape, error: Exception) -> ShapeError:
        return ShapeError(f"{self.shown_name} cannot take samples of shape {shape}: {error}")

    def _one_row_each(self, out: Any, *, is_tensor: bool) -> Shape:
        """Return the shape of one sample of what came out for two."""
        if isinstance(out, tuple | list | Mapping):
            shown = list(out) if isinstance(out, Mapping) else len(out)
            raise ShapeError(
                f"{self.shown_name} returns several outputs ({shown}), and a node has one. Make "
                "the layers before they part one node and those of each output a node that reads "
                "it: ModelNode('trunk', trunk, fs.reference()), ModelNode('a', head_a, 'trunk'), "
                "ModelNode('b', head_b, 'trunk', targets='b')"
            )
        if not is_tensor or out.ndim < 1 or out.shape[0] != 2:
            found = tuple(out.shape) if is_tensor else type(out).__name__
            raise ShapeError(
                f"{self.shown_name} must return one tensor with one row a sample, got {found} for "
                "2 samples"
            )
        return tuple(out.shape[1:])


class ModelWrapper(LayeredModel):
    """Wrap a framework's own model, or a class of it that is made once shapes are known.

    Parameters
    ----------
    model : torch.nn.Module or keras.Model, optional
        A model that exists.
    model_class : type, optional
        A class of it, made in `build`; exactly one of the two is given.
    model_kwargs : dict, optional
        Arguments for `model_class`.
    inject_input_shape_as, inject_output_shape_as : str or None
        Argument of `model_class` that gets the shape, where its constructor has it.

    Raises
    ------
    ConfigError
        If not exactly one of `model` and `model_class` is given, or it is of another kind.
    """

    kind: ClassVar[type]
    kind_name: ClassVar[str]
    """What a model must be an instance of."""

    inner: Any
    _recipe: dict[str, Any] | None = None
    """What the model is made from, until it is made."""

    def __init__(
        self,
        *,
        model: Any = None,
        model_class: type | None = None,
        model_kwargs: dict[str, Any] | None = None,
        inject_input_shape_as: str | None = "input_shape",
        inject_output_shape_as: str | None = "output_shape",
    ) -> None:
        if (model is None) == (model_class is None):
            raise ConfigError("give exactly one of model and model_class")
        if model is not None and not isinstance(model, self.kind):
            raise ConfigError(f"model must be a {self.kind_name}, got a {type(model).__name__}")
        if model is None and not (
            inspect.isclass(model_class) and issubclass(model_class, self.kind)
        ):
            raise ConfigError(
                f"model_class must be a class of {self.kind_name}, got {model_class!r}"
            )
        super().__init__()  # type: ignore[call-arg]
        self._init_args = {
            "model": model,
            "model_class": model_class,
            "model_kwargs": model_kwargs,
            "inject_input_shape_as": inject_input_shape_as,
            "inject_output_shape_as": inject_output_shape_as,
        }
        self.inner = model

    @classmethod
    def _to_recipe(cls, model: Any) -> dict[str, Any]:
        """Return a model as plain data; ConfigError where it cannot be described."""
        raise NotImplementedError

    @classmethod
    def _from_recipe(cls, recipe: dict[str, Any], *, sketched: bool = False) -> Any:
        """Return a new model that was described; a sketch has shapes and no memory."""
        raise NotImplementedError

    def make_layers(self, input_shape: InputShape, output_shape: Shape | None) -> None:
        """Make the model from its class or its description; one that exists stays."""
        if self._recipe is not None:
            self.inner = self._init_args["model"] = self._from_recipe(self._recipe)
            self._recipe = None
        if self._init_args["model_class"] is not None:
            self.inner = self._made(input_shape, output_shape)

    def _made(self, input_shape: InputShape, output_shape: Shape | None) -> Any:
        cls = self._init_args["model_class"]
        kwargs = dict(self._init_args["model_kwargs"] or {})
        takes = inspect.signature(cls).parameters
        for name, shape in (
            (self._init_args["inject_input_shape_as"], input_shape),
            (self._init_args["inject_output_shape_as"], output_shape),
        ):
            if name and name in takes and shape is not None:
                kwargs.setdefault(name, shape)
        try:
            return cls(**kwargs)
        except TypeError as error:
            raise ShapeError(
                f"{cls.__name__}({', '.join(kwargs)}) cannot be made: {error}"
            ) from error

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data.

        Raises
        ------
        ConfigError
            If the model was given as an object, and has a part that a file may not describe.
        """
        given = self._init_args["model"]
        if given is None:
            return super().get_config()
        try:
            recipe = self._recipe or self._to_recipe(given)
        except ConfigError as error:
            name = type(given).__name__
            raise ConfigError(
                f"a {name} that was given as an object cannot be made again from data: {error}. "
                f"Give its class, or one of yours that makes it: "
                f"modularml.{type(self).__name__}(model_class={name}, model_kwargs={{...}}). "
                "save_checkpoint() keeps its weights all the same, for a script that makes it"
            ) from error
        rest = {k: encode(v) for k, v in self._init_args.items() if k != "model"}
        return {"model": recipe, **rest}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make a wrapper; a model is described at first, and has no memory before `build`."""
        if not config.get("model"):
            return super().from_config(config)
        model = cls._from_recipe(config["model"], sketched=True)
        made = cls(**{k: decode(v) for k, v in config.items() if k != "model"}, model=model)
        made._recipe = config["model"]
        return made

    @property
    def has_own_weights(self) -> bool:
        """Whether the model was given as an object, which has weights by then."""
        return self._init_args["model"] is not None and self._recipe is None

    def _file_state(self) -> dict[str, Any]:
        if self.has_own_weights and not self._built:
            self.get_config()  # where no file can describe the model at all, that is said first
            raise ConfigError("the model has weights, and a file cannot hold them yet: build it")
        return self.get_state()

    @property
    def shown_name(self) -> str:
        """Name of the wrapped model in messages and pictures."""
        return type(self.inner if self.inner is not None else self).__name__


def _optional_shape(name: str, shape: Any) -> Shape | None:
    return None if shape is None else check_shape(name, shape)
