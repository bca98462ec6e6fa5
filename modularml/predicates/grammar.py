"""Conditions as text in a subset of Python, parsed and never executed."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml.errors import ConfigError, DataError
from modularml.predicates.base import Predicate
from modularml.predicates.value_order import NUMBERS, Mask, column, compare, member

MAX_LENGTH, MAX_DEPTH = 2000, 60

COMPARISONS: dict[type[ast.cmpop], np.ufunc] = {
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}
MIRRORED: dict[np.ufunc, np.ufunc] = {
    np.less: np.greater,
    np.less_equal: np.greater_equal,
    np.greater: np.less,
    np.greater_equal: np.less_equal,
}
ARITHMETIC: dict[type[ast.operator], np.ufunc] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.true_divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.remainder,
    ast.Pow: np.power,
}
JOINS: dict[type[ast.AST], np.ufunc] = {
    ast.BitAnd: np.bitwise_and,
    ast.BitOr: np.bitwise_or,
    ast.And: np.logical_and,
    ast.Or: np.logical_or,
}
SIGNS: dict[type[ast.unaryop], np.ufunc] = {
    ast.USub: np.negative,
    ast.UAdd: np.positive,
    ast.Invert: np.invert,
    ast.Not: np.logical_not,
}
WORDS: dict[type[ast.AST], str] = {
    ast.Attribute: "an attribute",
    ast.Call: "a call",
    ast.IfExp: "if-else",
    ast.JoinedStr: "an f-string",
    ast.Lambda: "a second lambda",
    ast.List: "a list outside `in`",
    ast.NamedExpr: "an assignment",
    ast.Set: "a set outside `in`",
    ast.Subscript: "an index",
    ast.Tuple: "a tuple outside `in`",
}


class Lambda(Predicate):
    """A condition written as ``"lambda x: ..."``, stored as text and never run as code.

    Allowed are comparisons (chained ones too), ``+ - * / // % **``, ``and or not & | ~``,
    ``in`` and ``not in`` a list, numbers, strings, True and False. ``x`` is the whole column.

    Parameters
    ----------
    source : str
        At most 2,000 characters.

    Raises
    ------
    ConfigError
        If the text is anything else; the message names what, and the column where it stands
        (0-based, in characters).

    Examples
    --------
    >>> import numpy as np
    >>> Lambda("lambda x: 80 <= x < 90 or x in [1, 2]")(np.array([1, 85, 90])).tolist()
    [True, True, False]
    """

    def __init__(self, source: str) -> None:
        if not isinstance(source, str):
            raise ConfigError(
                f"Lambda takes text such as 'lambda x: x >= 80', got {source!r}; "
                "a function can be given as the condition itself"
            )
        if len(source) > MAX_LENGTH:
            raise ConfigError(f"a Lambda has at most {MAX_LENGTH} characters, got {len(source)}")
        try:
            tree = ast.parse(source.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = getattr(error, "msg", error)
            raise ConfigError(f"{source!r} is no valid expression: {why}") from error
        if not isinstance(tree, ast.Lambda):
            raise ConfigError(f"{source!r} must begin with 'lambda x:'")
        names = [arg.arg for arg in tree.args.args]
        if len(names) != 1 or ast.unparse(tree.args) != names[0]:
            raise ConfigError(f"{source!r} must take one argument, the column: 'lambda x: ...'")
        _check(tree.body, names[0], source.strip(), depth=0)
        if not _uses_column(tree.body):
            raise ConfigError(f"{source!r} does not use its argument {names[0]!r}")
        self.source, self._body = source, tree.body

    def __call__(self, values: Array) -> Mask:
        """Tell for which rows the text holds."""
        column(values)  # refuses samples that are arrays
        try:
            with np.errstate(all="ignore"):
                mask = _evaluate(self._body, values)
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, DataError):
                raise DataError(f"in {self.source!r}: {error}") from error
            raise DataError(
                f"{self.source!r} cannot be computed on {values.dtype}: {error}"
            ) from error
        if mask.dtype != bool:
            raise DataError(
                f"{self.source!r} gives {mask.dtype}, not true or false; add a comparison"
            )
        return np.asarray(mask)

    def __repr__(self) -> str:
        return f"Lambda({self.source!r})"


def _check(node: ast.expr, name: str, source: str, depth: int) -> None:
    problem = "deeper nesting" if depth > MAX_DEPTH else _problem(node, name)
    if problem:
        line = source.splitlines()[node.lineno - 1].encode()
        raise ConfigError(
            f"{problem} (at column {len(line[: node.col_offset].decode())} of {source!r}) is not "
            f"allowed; allowed are comparisons of {name}, arithmetic, and or not & | ~, "
            "in [list], numbers and strings"
        )
    parts = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Compare):  # the list after `in` is no operand
        pairs = zip(node.ops, node.comparators, strict=True)
        parts = [node.left, *(side for op, side in pairs if type(op) in COMPARISONS)]
    for part in parts:
        if isinstance(part, ast.expr):
            _check(part, name, source, depth + 1)


def _problem(node: ast.expr, name: str) -> str:
    """Name what is not allowed about this node itself; empty if nothing is."""
    match node:
        case ast.Name(id=found):
            return "" if found == name else f"the name {found!r}"
        case ast.Constant(value=value):
            plain = type(value) in (bool, int, float, str)
            return "" if plain else f"the constant {value!r}"
        case ast.Compare():
            return _problem_of_comparison(node)
        case ast.BinOp(op=op):
            known = type(op) in ARITHMETIC or type(op) in JOINS
            return "" if known else f"the operator {type(op).__name__}"
        case ast.UnaryOp() | ast.BoolOp():
            return ""
    return WORDS.get(type(node), type(node).__name__)


def _problem_of_comparison(node: ast.Compare) -> str:
    sides = [node.left, *node.comparators]
    for left, op, right in zip(sides, node.ops, node.comparators, strict=False):
        if isinstance(op, ast.In | ast.NotIn):
            try:
                is_list = isinstance(right, ast.List | ast.Tuple | ast.Set)
                items = ast.literal_eval(right) if is_list else [None]
            except (ValueError, TypeError):
                items = [None]
            if any(type(item) not in (bool, int, float, str) for item in items):
                return "`in` with anything but a list of numbers or strings"
        elif type(op) not in COMPARISONS:
            return f"the operator {type(op).__name__}"
        elif not (_uses_column(left) or _uses_column(right)):
            return "a comparison of constants"
    return ""


def _uses_column(node: ast.expr) -> bool:
    return any(isinstance(part, ast.Name) for part in ast.walk(node))


def _evaluate(node: ast.expr, x: Array) -> Any:
    match node:
        case ast.Name():
            return x
        case ast.Constant(value=value):
            return value
        case ast.Compare():
            return _evaluate_comparison(node, x)
        case ast.BoolOp(op=op, values=parts):
            return JOINS[type(op)].reduce([_truth(_evaluate(part, x), x) for part in parts])
        case ast.UnaryOp(op=op, operand=part):
            value = _evaluate(part, x)
            return SIGNS[type(op)](_truth(value, x) if isinstance(op, ast.Not) else _number(value))
        case ast.BinOp(left=left, op=op, right=right):
            return _evaluate_pair(op, _evaluate(left, x), _evaluate(right, x))
    raise AssertionError(node)  # _check lets nothing else pass


def _evaluate_comparison(node: ast.Compare, x: Array) -> Mask:
    mask = np.ones(len(x), dtype=bool)
    left = _evaluate(node.left, x)
    for op, part in zip(node.ops, node.comparators, strict=True):
        if isinstance(op, ast.In | ast.NotIn):
            found = member(np.broadcast_to(left, x.shape), ast.literal_eval(part))
            mask &= found if isinstance(op, ast.In) else ~found
            continue
        ufunc, right = COMPARISONS[type(op)], _evaluate(part, x)
        if np.ndim(left):
            mask &= compare(ufunc, left, right)
        else:
            mask &= compare(MIRRORED.get(ufunc, ufunc), right, left)
        left = right
    return mask


def _evaluate_pair(op: ast.operator, left: Any, right: Any) -> Any:
    if type(op) in JOINS:
        for side in (left, right):
            if np.asarray(side).dtype.kind not in "biu":
                raise DataError(
                    "& and | join conditions and bind more tightly than comparisons; "
                    "write (x > 1) & (x < 3)"
                )
        return JOINS[type(op)](left, right)
    ufunc = ARITHMETIC[type(op)]
    if ufunc is np.power and (not np.ndim(left) or (not np.ndim(right) and right < 0)):
        ufunc = np.float_power  # whole numbers would overflow, or refuse
    return ufunc(_number(left), _number(right))


def _number(value: Any) -> Any:
    kind = column(np.atleast_1d(value))[1]
    if kind != NUMBERS:
        raise DataError(f"arithmetic needs numbers, got {kind}")
    return value


def _truth(value: Any, x: Array) -> Mask:
    if np.asarray(value).dtype != bool:
        raise DataError("and, or, not join conditions; write x > 1 and x < 3")
    return np.broadcast_to(value, x.shape)
