"""Base classes of models of layers, and the wrapper that fits a model."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, ClassVar, Self

from modularml._optional import require
from modularml._typing import Shape
from modularml.backends import Backend, backend_of
from modularml.backends.layouts import InputShape, is_several, matching, shapes_of
from modularml.config import decode, encode
from modularml.errors import ConfigError, NotFittedError, ShapeError, UnknownNameError
from modularml.models.base import BaseModel, check_input_shape, check_shape, check_weights

_WRAPPERS = {
    Backend.TORCH: ("modularml.models.torch.wrapper", "TorchModelWrapper"),
    Backend.TENSORFLOW: ("modularml.models.tensorflow.wrapper", "TensorflowModelWrapper"),
    Backend.SCIKIT: ("modularml.models.sklearn", "ScikitModelWrapper"),
}


def wrap_model(obj: Any) -> BaseModel:
    """Wrap a framework's model, or class of one, for use in a graph.

    Parameters
    ----------
    obj : BaseModel, torch.nn.Module, keras.Model, a class of one of them, or an estimator
        A model of a supported framework.

    Raises
    ------
    ConfigError
        If the object belongs to no supported framework.

    Examples
    --------
    >>> from torch import nn
    >>> type(wrap_model(nn.Linear(4, 2))).__name__
    'TorchModelWrapper'
    >>> from sklearn.linear_model import Ridge
    >>> type(wrap_model(Ridge())).__name__
    'ScikitModelWrapper'
    """
    if isinstance(obj, BaseModel):
        return obj
    if inspect.isclass(obj) and issubclass(obj, BaseModel):
        return obj()  # type: ignore[call-arg]
    wrapper_path = _WRAPPERS.get(backend_of(obj))
    if wrapper_path is None:
        raise ConfigError(
            "model must be a torch.nn.Module, a keras.Model, a class of one of them, a "
            "scikit-learn estimator or a "
            f"BaseModel, got {obj!r}"
        )
    if inspect.isclass(obj) and hasattr(obj, "get_params"):  # an estimator needs no shapes
        obj = obj()
    module, name = wrapper_path
    wrapper = getattr(require(module), name)
    wrapped: BaseModel = wrapper(model_class=obj) if inspect.isclass(obj) else wrapper(model=obj)
    return wrapped


MAX_LAYERS = 1000
MAX_PROBE = 2**20
"""Maximum number of values in the sample that probes a model from a file."""


class LayeredModel(BaseModel):
    """A model whose layers are built once shapes are known; subclasses build and probe them."""

    reads_several = True

    def __init__(self, backend: str, **init_args: Any) -> None:
        BaseModel.__init__(self, backend, **init_args)
        input_shape = init_args.get("input_shape")
        self._input_shape = None if input_shape is None else check_input_shape(input_shape)
        self._output_shape = _optional_shape("output_shape", init_args.get("output_shape"))
        self._explicit_output = self._output_shape is not None
        self._built_for: Shape | None = None

    @abstractmethod
    def make_layers(self, input_shape: InputShape, output_shape: Shape | None) -> None:
        """Build the layers as attributes of this model."""

    @abstractmethod
    def _probe(self, shape: InputShape) -> Shape:
        """Return the output shape by running two samples of zeros."""

    def declared_input(self, shape: Shape) -> Shape | None:
        """Return the shape in which the model reads samples of `shape`; None if not declared."""
        declared = self._input_shape
        if declared is not None:
            return None if is_several(declared) else matching(shape, declared)
        return self._declared_by_layers(shape)

    def _declared_by_layers(self, shape: Shape) -> Shape | None:
        """Return the input shape that layers declare."""
        return None

    def build(
        self,
        input_shape: InputShape | None = None,
        output_shape: Shape | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Build the layers; see `BaseModel.build`."""
        if self._built and not force:
            self._check_fits(input_shape)
            self._check_mask()
            return
        shape = self._shape_for(input_shape)
        target_shape = self._output_shape if self._explicit_output else output_shape
        self._built_for = _optional_shape("output_shape", target_shape)
        self.make_layers(shape, self._built_for)
        self._check_mask()
        self._input_shape, self._output_shape = shape, self._probe(shape)
        self._built = True

    @abstractmethod
    def _called(self) -> Any:
        """Return the method that receives the arguments of a call."""

    def _check_mask(self) -> None:
        """Refuse a mask argument that the model does not accept."""
        if self.mask is None:
            return
        parameters = inspect.signature(self._called()).parameters
        if self.mask[0] not in parameters and not any(
            p.kind is p.VAR_KEYWORD for p in parameters.values()
        ):
            raise UnknownNameError(f"mask_as of {self.shown_name}", self.mask[0], list(parameters))

    def example_mask(self, make: Callable[[Shape], Any]) -> dict[str, Any]:
        """Return a mask for two probe samples, by argument name."""
        return {} if self.mask is None else {self.mask[0]: make((2, *self.mask[1]))}

    def get_state(self) -> dict[str, Any]:
        """Return the shapes it was built for, and the weights; empty before `build`."""
        state = super().get_state()
        shapes = {"output_shape": self._built_for, "probed_shape": self._output_shape}
        return {**state, **shapes} if state else state

    def set_state(self, state: dict[str, Any]) -> None:
        """Build the layers for the stored shapes and set the stored weights.

        Weights are first checked against a copy on the meta device, and no samples are run, so that
        a state cannot make this process allocate more memory than the state itself.
        """
        if state and not self._built:
            shape = self._shape_for(state["input_shape"])
            target_shape = self._output_shape if self._explicit_output else state["output_shape"]
            target_shape = _optional_shape("output_shape", target_shape)
            if (sketch := self._sketch(shape, target_shape)) is not None:
                check_weights(sketch, state["weights"])
            numbers = sum(map(math.prod, shapes_of(shape)))
            if "probed_shape" not in state and numbers > MAX_PROBE:
                raise ShapeError(f"samples of shape {shape} are too large to probe the model")
            self._make_untried(shape, target_shape)
            probed_shape = state["probed_shape"] if "probed_shape" in state else self._probe(shape)
            self._output_shape = check_shape("output_shape", probed_shape)
            self._input_shape, self._built_for, self._built = shape, target_shape, True
        super().set_state(state)

    @abstractmethod
    def _sketch(self, shape: InputShape, wanted: Shape | None) -> dict[str, Any] | None:
        """Return placeholders with the shapes of all weights, by name, without memory.

        None if the layers cannot be built this way.
        """

    def _unbuilt(self) -> Self:
        """Return a copy without weights that is built for the same shapes and categories."""
        return self.clone()

    def _make_untried(self, shape: InputShape, wanted: Shape | None) -> None:
        """Build the layers and their weights without running a sample."""
        self.make_layers(shape, wanted)

    def _shape_for(self, input_shape: InputShape | None) -> InputShape:
        constructor_shape = self._init_args.get("input_shape")
        shape = input_shape if input_shape is not None else constructor_shape or self._input_shape
        if shape is None:
            raise ShapeError(f"{type(self).__name__} needs input_shape to be built")
        shape = check_input_shape(shape)
        if constructor_shape is not None and check_input_shape(constructor_shape) != shape:
            raise ShapeError(
                f"{type(self).__name__} was constructed for input_shape {constructor_shape}, got "
                f"{shape}"
            )
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
        return ShapeError(f"{self.shown_name} does not accept samples of shape {shape}: {error}")

    def _picked(self, out: Any) -> Any:
        """Return the output of the node of all that a call returns."""
        return out

    def _one_row_each(self, out: Any, *, is_tensor: bool) -> Shape:
        """Return the shape of one output sample from the output for two samples."""
        if isinstance(out, tuple | list | Mapping):
            shown = list(out) if isinstance(out, Mapping) else len(out)
            raise ShapeError(
                f"{self.shown_name} returns several outputs ({shown}), but a node has one. Pick "
                "one with output= of TorchModelWrapper or TensorflowModelWrapper, or make the "
                "shared layers one node and the layers of each output another: "
                "ModelNode('trunk', trunk, fs.reference()), ModelNode('a', head_a, 'trunk'), "
                "ModelNode('b', head_b, 'trunk', targets='b')"
            )
        if not is_tensor or out.ndim < 1 or out.shape[0] != 2:
            actual = tuple(out.shape) if is_tensor else type(out).__name__
            raise ShapeError(
                f"{self.shown_name} must return one tensor with one row per sample, got {actual} "
                "for 2 samples"
            )
        return tuple(out.shape[1:])


def arguments_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor from its ``locals()``, before it defines others."""
    return {k: v for k, v in variables.items() if k not in ("self", "__class__")}


class LayerArguments:
    """Constructor arguments of models of layers: checked, and stored under their own names."""

    _counts: ClassVar[tuple[str, ...]] = ("n_layers", "hidden_dim")
    """Arguments that are ints of at least 1."""
    n_layers: int
    hidden_dim: int
    activation: str
    dropout: float

    def __init__(self, **arguments: Any) -> None:
        for name in self._counts:
            count = arguments[name]
            is_int = isinstance(count, Integral) and not isinstance(count, bool)
            if count is not None and (not is_int or count < 1):
                raise ConfigError(f"{name} must be an int of at least 1, got {count!r}")
        if arguments["n_layers"] > MAX_LAYERS:
            raise ConfigError(
                f"n_layers must be at most {MAX_LAYERS:,}, got {arguments['n_layers']:,}"
            )
        if not 0.0 <= arguments["dropout"] < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {arguments['dropout']!r}")
        super().__init__(**arguments)
        for name, value in arguments.items():
            if name not in ("input_shape", "output_shape"):
                setattr(self, name, value)

    def check_output(self, output_shape: Shape | None) -> Shape:
        """Return the output shape; ShapeError without one."""
        if output_shape is None:
            raise ShapeError(
                f"{type(self).__name__} needs output_shape unless its node is a tail of the graph; "
                "pass output_shape="
            )
        return output_shape


class ModelWrapper(LayeredModel):
    """Wrap a framework's model, or a model class that is built once shapes are known.

    Parameters
    ----------
    model : torch.nn.Module or keras.Model, optional
        An existing model.
    model_class : type, optional
        A model class, instantiated in `build`. Pass exactly one of the two.
    model_kwargs : dict, optional
        Arguments for `model_class`.
    inject_input_shape_as, inject_output_shape_as : str or None
        Argument of `model_class` that receives the shape, if its constructor has it.
    output : int or str, optional
        Which output of a model that returns several is the node's: its place in a tuple, list or
        dict, or its name. Nodes whose wrappers share one model share its weights, and each calls
        it.

    Raises
    ------
    ConfigError
        If not exactly one of `model` and `model_class` is given, or its type is wrong.
    """

    kind: ClassVar[type]
    kind_name: ClassVar[str]
    """Required class of the model, for messages."""

    inner: Any
    _recipe: dict[str, Any] | None = None
    """Description of the model until it is built."""

    def __init__(
        self,
        *,
        model: Any = None,
        model_class: type | None = None,
        model_kwargs: dict[str, Any] | None = None,
        inject_input_shape_as: str | None = "input_shape",
        inject_output_shape_as: str | None = "output_shape",
        output: int | str | None = None,
    ) -> None:
        if (model is None) == (model_class is None):
            raise ConfigError("pass exactly one of model and model_class")
        if model is not None and not isinstance(model, self.kind):
            raise ConfigError(f"model must be a {self.kind_name}, got a {type(model).__name__}")
        if model is None and not (
            inspect.isclass(model_class) and issubclass(model_class, self.kind)
        ):
            raise ConfigError(
                f"model_class must be a class of {self.kind_name}, got {model_class!r}"
            )
        super().__init__()  # type: ignore[call-arg]
        self._init_args = arguments_of(locals())
        self.inner = model

    def _picked(self, out: Any) -> Any:
        """Return the node's output of all that the model returns.

        Raises
        ------
        ShapeError
            If there is no such output.
        """
        which = self._init_args["output"]
        if which is None:
            return out
        names = list(out) if isinstance(out, Mapping) else list(getattr(out, "_fields", ()))
        if isinstance(out, tuple | list | Mapping):
            values = list(out.values()) if isinstance(out, Mapping) else list(out)
            if which in names:
                return values[names.index(which)]
            if isinstance(which, int) and -len(values) <= which < len(values):
                return values[which]
            shown = f"outputs {names or list(range(len(values)))}"
        else:
            shown = "one output"
        raise ShapeError(f"output={which!r} is no output of {self.shown_name}, which has {shown}")

    @classmethod
    def _to_recipe(cls, model: Any) -> dict[str, Any]:
        """Return a model as plain data; ConfigError if it cannot be described."""
        raise NotImplementedError

    @classmethod
    def _from_recipe(cls, recipe: dict[str, Any], *, sketched: bool = False) -> Any:
        """Return a new model from its description; a sketch has shapes but no memory."""
        raise NotImplementedError

    def make_layers(self, input_shape: InputShape, output_shape: Shape | None) -> None:
        """Build the model from its class or description; an existing one is kept."""
        if self._recipe is not None:
            self.inner = self._init_args["model"] = self._from_recipe(self._recipe)
            self._recipe = None
        if self._init_args["model_class"] is not None:
            self.inner = self._instantiated(input_shape, output_shape)

    def _instantiated(self, input_shape: InputShape, output_shape: Shape | None) -> Any:
        cls = self._init_args["model_class"]
        kwargs = dict(self._init_args["model_kwargs"] or {})
        parameters = inspect.signature(cls).parameters
        for name, shape in (
            (self._init_args["inject_input_shape_as"], input_shape),
            (self._init_args["inject_output_shape_as"], output_shape),
        ):
            if name and name in parameters and shape is not None:
                kwargs.setdefault(name, shape)
        try:
            return cls(**kwargs)
        except TypeError as error:
            raise ShapeError(
                f"{cls.__name__}({', '.join(kwargs)}) cannot be built: {error}"
            ) from error

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data.

        Raises
        ------
        ConfigError
            If the model was passed as an object, and has a part that a file cannot describe.
        """
        model = self._init_args["model"]
        if model is None:
            return super().get_config()
        try:
            recipe = self._recipe or self._to_recipe(model)
        except ConfigError as error:
            name = type(model).__name__
            raise ConfigError(
                f"a {name} that was passed as an object cannot be rebuilt from data: {error}. "
                "Pass its class, or a class of your own that builds it: "
                f"modularml.{type(self).__name__}(model_class={name}, model_kwargs={{...}}). "
                "save_checkpoint() still stores its weights, for a script that builds it"
            ) from error
        arguments = {k: encode(v) for k, v in self._init_args.items() if k != "model"}
        return {"model": recipe, **arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Create a wrapper; a described model has no memory before `build`."""
        if not config.get("model"):
            return super().from_config(config)
        model = cls._from_recipe(config["model"], sketched=True)
        wrapper = cls(**{k: decode(v) for k, v in config.items() if k != "model"}, model=model)
        wrapper._recipe = config["model"]
        return wrapper

    @property
    def has_own_weights(self) -> bool:
        """Whether the model was passed as an object, with weights."""
        return self._init_args["model"] is not None and self._recipe is None

    def _file_state(self) -> dict[str, Any]:
        if self.has_own_weights and not self._built:
            self.get_config()  # raises first if a file cannot describe the model
            raise ConfigError(
                "the model has weights that cannot be stored before it is built; build it first"
            )
        return self.get_state()

    @property
    def shown_name(self) -> str:
        """Name of the wrapped model in messages and diagrams."""
        return type(self.inner if self.inner is not None else self).__name__


def _optional_shape(name: str, shape: Any) -> Shape | None:
    return None if shape is None else check_shape(name, shape)
