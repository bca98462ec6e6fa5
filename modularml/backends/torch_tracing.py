"""Traces of torch functions as flat lists of tensor operations."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from modularml._optional import require
from modularml._private.torch import DispatchMode
from modularml.backends.step_options import NotStackableError

torch = require("torch", purpose="to train torch models")

_MAX_OPERATIONS = 3_000
"""Longer traces, such as those of a long recurrence, cost more than they save."""


class Dropouts(torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
    """Records the shape and the rate of each dropout within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.dropout:
            x, rate, training, _ = _dropout_arguments(*args, **(kwargs or {}))
            if training:
                self.seen.append((tuple(x.shape), float(rate)))
        return func(*args, **(kwargs or {}))


class ReplacedDropouts(torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
    """Multiplies by given masks within a block, where dropouts would draw them.

    `out_of_range` holds, for each call that looks up rows, whether an index is out of range:
    vectorized, such an index reads a row of another member, without an error.
    """

    def __init__(self, masks: Sequence[Any]) -> None:
        super().__init__()
        self.masks, self.out_of_range = iter(masks), list[Any]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LOOKUPS:
            index, size = _LOOKUPS[func](*args, **(kwargs or {}))
            self.out_of_range.append(((index < 0) | (index >= size)).any())
        if func is torch.nn.functional.dropout:
            x, _, training, _ = _dropout_arguments(*args, **(kwargs or {}))
            return x * next(self.masks) if training else x
        return func(*args, **(kwargs or {}))


def _dropout_arguments(
    input: Any,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> tuple[Any, float, bool, bool]:
    return input, p, training, inplace


def _of_filled(input: Any, dim: int, index: Any, value: Any) -> tuple[Any, int]:
    return index, input.shape[dim]


def _of_embedding(input: Any, weight: Any, *args: Any, **kwargs: Any) -> tuple[Any, int]:
    return input, weight.shape[0]


_LOOKUPS: dict[Any, Callable[..., tuple[Any, int]]] = {
    torch.nn.functional.embedding: _of_embedding,
    torch.embedding: lambda weight, indices, *_, **__: (indices, weight.shape[0]),
    torch.nn.functional.one_hot: lambda tensor, num_classes=-1: (tensor, num_classes),
    torch.index_fill: _of_filled,
    torch.Tensor.index_fill: _of_filled,
    torch.Tensor.index_fill_: _of_filled,
}
"""Index and number of rows of calls whose index is not checked once they are vectorized."""


def traced(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    most: int = _MAX_OPERATIONS,
    how: str = "vectorize",
) -> Any:
    """Return a function of tensors as a flat list of the tensor operations that it calls.

    Parameters
    ----------
    fn : callable
    inputs : sequence of tensor
    most : int
        The number of operations up to which it is worth it.
    how : {'vectorize', 'compile'}
        What is done with them, as messages say it.

    Raises
    ------
    NotStackableError
        If an operation cannot be traced, vectorized or compiled, or there are too many.
    """
    recorder = _Recorder(inputs, most, how)
    try:
        with torch.no_grad(), recorder, warnings.catch_warnings():
            # torch calls what it cannot vectorize member by member
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            outputs = fn(*inputs)
    except NotStackableError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise NotStackableError(f"an operation cannot be {how}d: {reason}") from error
    return recorder.function(outputs)


def lifted(module: Any) -> tuple[Any, list[Any]]:
    """Return a traced module whose constants are its first arguments, and these tensors."""
    graph, tensors = module.graph, list[Any]()
    first = next(iter(graph.nodes))
    for node in graph.find_nodes(op="get_attr"):
        tensors.append(getattr(module, node.target))
        with graph.inserting_before(first):
            argument = graph.placeholder(node.target)
        node.replace_all_uses_with(argument)
        graph.erase_node(node)
    return torch.fx.GraphModule({}, graph), tensors


def _may_change(operation: Any) -> bool:
    """Return whether an operation may change a tensor in place, from its name in torch."""
    _, dot, name = str(operation).partition(".")
    name = name.partition(".")[0]
    return not dot or name.endswith("_") or "batch_norm" in name


def _is_one(node: Any) -> bool:
    """Return whether a tensor was filled with ones, and not changed in place."""
    aten = torch.ops.aten
    while not any(_may_change(user.target) for user in node.users):
        if node.target is aten.ones_like.default:
            return True
        if node.target not in (aten.view.default, aten.expand.default):
            return False
        node = node.args[0]
    return False


class _Recorder(DispatchMode):  # type: ignore[misc]
    """Records the operations on tensors within a block, below all transforms."""

    def __init__(self, inputs: Sequence[Any], most: int, how: str) -> None:
        super().__init__()
        self._most, self._how = most, how
        self.graph, self.constants = torch.fx.Graph(), dict[str, Any]()
        self._nodes: dict[int, Any] = {}
        self._alive: list[Any] = []  # so that no id is used twice
        self._n = 0
        for i, tensor in enumerate(inputs):
            self._name(tensor, self.graph.placeholder(f"x{i}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if "mkldnn_rnn_layer" in str(func):  # one call per member is slower than each alone
            raise NotStackableError(f"torch cannot {self._how} LSTM layers on the CPU")
        if str(func) == "aten._local_scalar_dense.default":
            raise NotStackableError("a model or loss reads a number from a tensor")
        own = self._twin(func, args, outputs)
        if own is not None:
            self._name(outputs, own)
            return outputs
        node_args, node_kwargs = torch.fx.node.map_aggregate((args, kwargs or {}), self._node)
        node = self.graph.call_function(func, node_args, node_kwargs)
        node.meta["kind"] = getattr(outputs, "shape", None), getattr(outputs, "dtype", None)
        self._n += 1
        if self._n > self._most:
            raise NotStackableError(f"a step has more than {self._most:,} tensor operations")
        if isinstance(outputs, tuple | list):
            for i, output in enumerate(outputs):
                if isinstance(output, torch.Tensor):
                    self._name(output, self.graph.call_function(operator.getitem, (node, i)))
        elif isinstance(outputs, torch.Tensor) and id(outputs) not in self._nodes:
            self._name(outputs, node)  # else it was changed in place
        return outputs

    def _name(self, tensor: Any, node: Any) -> None:
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)

    def _node(self, value: Any) -> Any:
        """Return the node of a tensor; one from elsewhere is a constant."""
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._nodes:
            name = f"c{len(self.constants)}"
            self.constants[name] = value
            self._name(value, self.graph.get_attr(name))
        return self._nodes[id(value)]

    def _twin(self, func: Any, args: Sequence[Any], output: Any) -> Any:
        """Return the node of a tensor that an operation returns unchanged; None otherwise."""
        aten, source = torch.ops.aten, args[0] if args else None
        if not isinstance(source, torch.Tensor) or not isinstance(output, torch.Tensor):
            return None
        node = self._node(source)
        if func is aten.transpose.int and node.target is func:
            axes = {a % source.ndim for a in args[1:]}
            if axes == {a % source.ndim for a in node.args[1:]}:
                return node.args[0]
        same = source.shape == output.shape and source.dtype == output.dtype
        if func is aten.permute.default and list(args[1]) == list(range(source.ndim)):
            return node
        keeps = str(func) in (
            "aten.view.default",
            "aten._unsafe_view.default",
            "aten.expand.default",
        )
        one = func is aten.mul.Scalar and args[1] == 1
        if func is aten.mul.Tensor and isinstance(args[1], torch.Tensor):
            one = _is_one(self._node(args[1])) and args[1].dtype == source.dtype
        return node if same and (keeps or one) else None

    def _fuse_additions(self) -> None:
        """Replace a product of matrices to which a bias is added by one operation."""
        aten = torch.ops.aten
        for node in self.graph.find_nodes(op="call_function", target=aten.add.Tensor):
            if node.kwargs or len(node.args) != 2:
                continue
            for bias, product in (node.args, node.args[::-1]):
                target = getattr(product, "target", None)
                alone = target is aten.bmm.default and len(product.users) == 1
                if alone and getattr(bias, "target", None) is aten.view.default:
                    (shape, dtype), whole = bias.meta["kind"], product.meta["kind"]
                    if len(shape) == 3 and whole == (node.meta["kind"][0], dtype):
                        node.target, node.args = aten.baddbmm.default, (bias, *product.args)
                    break

    def function(self, outputs: Sequence[Any]) -> Callable[..., Sequence[Any]]:
        """Return a module that calls the recorded operations."""
        self.graph.output(tuple(map(self._node, outputs)))
        self._fuse_additions()
        self.graph.eliminate_dead_code()
        module: Callable[..., Sequence[Any]] = torch.fx.GraphModule(self.constants, self.graph)
        return module
