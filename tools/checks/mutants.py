"""Makes mutants of a module: copies of its syntax tree with one small error each.

A mutant changes one operator, comparison, number, condition, argument, return value, statement or
context. Text, annotations, assertions, ``strict`` of ``zip``, class decorators and base classes
stay as they are: text is for readers, and the others only catch what is already wrong.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitOr,
    ast.RShift: ast.LShift,
}
COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
CONVERSIONS: Final = frozenset(
    "bool dict float frozenset getattr hasattr int isinstance issubclass len list map object range "
    "set str super tuple type zip".split()
)
"""Functions whose calls stay as they are: the result would be an error, or the same."""

SYMMETRIC: Final = frozenset(("min", "max"))
"""Functions whose arguments can stand in any order."""

FIXED_DECORATORS: Final = frozenset(
    "cached_property classmethod contextmanager lru_cache model_validator property "
    "staticmethod".split()
)


@dataclass(frozen=True)
class Site:
    """One place of a tree where one node can be replaced by another.

    Attributes:
        owner: The node that holds the one to replace.
        field: The attribute of ``owner``.
        index: Index in that attribute if it is a list, or None.
        new: The node that goes there.
        lines: First and last line of the statement, without the body of a compound one.
        function: Qualified name of the function, or of the class or ``<module>`` outside of any.
        at_import: True if importing the module runs the place.
    """

    owner: ast.AST
    field: str
    index: int | None
    new: ast.AST
    lines: tuple[int, int]
    function: str
    at_import: bool

    @property
    def old(self) -> ast.AST:
        """The node that is replaced, while the tree is unchanged."""
        held: Any = getattr(self.owner, self.field)
        return held if self.index is None else held[self.index]

    def apply(self) -> None:
        """Replaces the node in its tree."""
        if self.index is None:
            setattr(self.owner, self.field, self.new)
        else:
            getattr(self.owner, self.field)[self.index] = self.new

    def describe(self) -> str:
        """``before → after`` on one line; call it before ``apply``."""
        before, after = _text(self.old), _text(self.new)
        return f"{before} → {after}"


def sites(source: str) -> tuple[ast.Module, list[Site]]:
    """Parses a module and finds the places of all its mutants, in the order of its text."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return tree, list(_Finder(imported).statements(tree, "body"))


class _Finder:
    """Walks a tree and remembers where it is.

    Args:
        imported: Names that the module imports: their attributes are functions, not methods.
    """

    def __init__(self, imported: set[str]) -> None:
        self._imported = imported
        self._names: list[str] = []
        self._functions = 0
        self._lines = (0, 0)

    def _site(self, owner: ast.AST, field: str, index: int | None, new: ast.AST) -> Site:
        old = getattr(owner, field) if index is None else getattr(owner, field)[index]
        ast.copy_location(new, old)
        ast.fix_missing_locations(new)
        name = ".".join(self._names) or "<module>"
        return Site(owner, field, index, new, self._lines, name, not self._functions)

    def statements(self, owner: ast.AST, field: str) -> Iterator[Site]:
        """The mutants of a list of statements."""
        for index, node in enumerate(getattr(owner, field)):
            last = node.end_lineno or node.lineno
            body = getattr(node, "body", None)
            if isinstance(body, list):
                last = max(node.lineno, body[0].lineno - 1)
            self._lines = (node.lineno, last)
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield from self._definition(node)
            elif not isinstance(node, ast.Assert | ast.Import | ast.ImportFrom):
                yield from self._whole(owner, field, index, node)
                yield from self._parts(node)

    def _definition(self, node: ast.FunctionDef | ast.ClassDef) -> Iterator[Site]:
        is_function = isinstance(node, ast.FunctionDef)
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            self._lines = (first, self._lines[1])
            for index, decorator in enumerate(node.decorator_list):
                if not FIXED_DECORATORS & set(_text(decorator).replace("(", ".").split(".")):
                    same = ast.parse("lambda function: function", mode="eval").body
                    yield self._site(node, "decorator_list", index, same)
            yield from self._parts(node.args, annotated=True)
        self._names.append(node.name)
        self._functions += is_function
        yield from self.statements(node, "body")
        self._functions -= is_function
        self._names.pop()

    def _whole(self, owner: ast.AST, field: str, index: int, node: ast.stmt) -> Iterator[Site]:
        """The mutants that replace a whole statement."""
        match node:
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Call(ast.Name("super"))))):
                return
            case ast.Expr(value=ast.Call()) | ast.Raise():
                yield self._site(owner, field, index, ast.Pass())
            case ast.Break():
                yield self._site(owner, field, index, ast.Continue())
            case ast.Continue():
                yield self._site(owner, field, index, ast.Break())
            case ast.With(items=[ast.withitem(optional_vars=None)]):
                yield self._site(owner, field, index, ast.If(ast.Constant(True), node.body, []))
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield self._site(owner, field, index, ast.Return(ast.Constant(None)))
            case ast.AugAssign(op=op) if type(op) in OPERATORS:
                yield self._site(node, "op", None, OPERATORS[type(op)]())

    def _parts(self, node: ast.AST, annotated: bool = False) -> Iterator[Site]:
        """The mutants below a node, its own blocks of statements included."""
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_comment") or (
                annotated and name not in ("defaults", "kw_defaults")
            ):
                continue
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield from self.statements(node, name)
            elif isinstance(value, list):
                for index, child in enumerate(value):
                    if isinstance(child, ast.AST):
                        yield from self._expression(node, name, index, child)
                        yield from self._parts(child)
            elif isinstance(value, ast.AST) and getattr(node, "arg", None) != "strict":
                yield from self._expression(node, name, None, value)
                yield from self._parts(value)

    def _expression(
        self, owner: ast.AST, field: str, index: int | None, node: ast.AST
    ) -> Iterator[Site]:
        """The mutants that replace one expression."""
        news: list[ast.AST] = []
        is_test = field == "test" or (field == "ifs" and isinstance(owner, ast.comprehension))
        if is_test and isinstance(node, ast.expr) and not _has_opposite(node):
            news.append(ast.UnaryOp(ast.Not(), node))
        match node:
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                news.append(ast.BinOp(left, OPERATORS[type(op)](), right))
            case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
                news.append(operand)
            case ast.BoolOp(op=op, values=values):
                other = ast.Or() if isinstance(op, ast.And) else ast.And()
                news.append(ast.BoolOp(other, values))
            case ast.Compare(left=left, ops=ops, comparators=others):
                for i, op_ in enumerate(ops):
                    changed = [*ops[:i], COMPARISONS[type(op_)](), *ops[i + 1 :]]
                    news.append(ast.Compare(left, changed, others))
            case ast.Constant(value=bool() as value):
                news.append(ast.Constant(not value))
            case ast.Constant(value=int() as value):
                news.append(ast.Constant(value + 1))
            case ast.Constant(value=float() as value):
                news.append(ast.Constant(value * 2 or 1.0))
            case ast.Call():
                news += self._calls(node, is_statement=isinstance(owner, ast.Expr))
        for new in news:
            # A constant stays as it is in a message, which is text.
            if not isinstance(owner, ast.FormattedValue | ast.JoinedStr) or index is None:
                yield self._site(owner, field, index, new)

    def _calls(self, node: ast.Call, is_statement: bool) -> Iterator[ast.expr]:
        """Other forms of a call: without it, with arguments exchanged, or with one left out."""
        function, arguments, keywords = node.func, node.args, node.keywords
        name = function.attr if isinstance(function, ast.Attribute) else _text(function)
        is_class = name.lstrip("_")[:1].isupper()
        if name in CONVERSIONS or _text(function) == "super().__init__":
            return
        if isinstance(function, ast.Attribute) and not self._is_imported(function.value):
            if not is_statement and _text(function.value) != "self":
                yield function.value
        elif arguments and not is_class and not isinstance(arguments[0], ast.Starred):
            yield arguments[0]
        if len(arguments) > 1 and name not in SYMMETRIC and _can_swap(*arguments[:2]):
            yield ast.Call(function, [arguments[1], arguments[0], *arguments[2:]], keywords)
        for i, keyword in enumerate(keywords):
            if not is_class and keyword.arg is not None:
                yield ast.Call(function, arguments, [*keywords[:i], *keywords[i + 1 :]])
            elif is_class and i and _text(keyword.value) != _text(keywords[i - 1].value):
                before = keywords[i - 1]
                swapped = [
                    ast.keyword(before.arg, keyword.value),
                    ast.keyword(keyword.arg, before.value),
                ]
                yield ast.Call(
                    function, arguments, [*keywords[: i - 1], *swapped, *keywords[i + 1 :]]
                )

    def _is_imported(self, node: ast.expr) -> bool:
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id in self._imported


def _has_opposite(node: ast.expr) -> bool:
    """True if another mutant of a condition is its opposite, or if only a type checker reads it."""
    match node:
        case ast.Compare(ops=[ast.Eq() | ast.NotEq() | ast.Is() | ast.IsNot() | ast.In()]):
            return True
        case ast.Compare(ops=[ast.NotIn()]) | ast.UnaryOp(op=ast.Not()):
            return True
    return _text(node) == "TYPE_CHECKING"


def _can_swap(first: ast.expr, second: ast.expr) -> bool:
    """True if two arguments differ, and are not both constants, which have mutants of their own."""
    if isinstance(first, ast.Starred) or isinstance(second, ast.Starred):
        return False
    both_fixed = isinstance(first, ast.Constant) and isinstance(second, ast.Constant)
    return not both_fixed and _text(first) != _text(second)


def _text(node: ast.AST) -> str:
    try:
        text = ast.unparse(node)
    except AttributeError:  # an operator by itself
        text = type(node).__name__
    text = " ".join(text.split())
    return text or type(node).__name__
