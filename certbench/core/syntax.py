"""The syntax of code that runs, as text that is the same under every release of Python."""

import ast
import functools
import inspect
import types


def tree(thing: types.CodeType | type) -> bytes:
    """Return the syntax tree of a function or a class, as text that is the same under every release of Python.

    Empty if the source is not at hand, is not what runs (a file that was edited after its import, code that a tool
    has rewritten), or does not tell which code is meant (a lambda: several may stand in a line).
    """
    try:
        lines, start = inspect.findsource(thing)
        tree, compiled = _parsed("".join(lines))
    except (OSError, TypeError, SyntaxError, ValueError):  # typed in at a prompt, say
        return b""
    name = thing.co_name if isinstance(thing, types.CodeType) else thing.__name__
    node = tree.get((name, start + 1))
    if node is None or (isinstance(thing, types.CodeType) and not _alike(compiled.get((name, start + 1)), thing)):
        return b""
    return _canonical(node).encode()


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


_Place = tuple[str, int]


@functools.lru_cache(maxsize=32)
def _parsed(source: str) -> tuple[dict[_Place, _Definition], dict[_Place, types.CodeType]]:
    """Return the definitions in a file and their compiled code, by name and first line, decorators included."""
    tree = ast.parse(source)
    nodes = {
        (node.name, min([node.lineno, *(one.lineno for one in node.decorator_list)])): node
        for node in ast.walk(tree)
        if isinstance(node, _Definition)
    }
    codes, inner = [compile(source, "", "exec", dont_inherit=True)], dict[_Place, types.CodeType]()
    while codes:
        code = codes.pop()
        inner[code.co_name, code.co_firstlineno] = code
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return nodes, inner


def shape(code: types.CodeType) -> tuple[object, ...]:
    """Return what a function does, without its constants."""
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars)
    return (code.co_code, counts, names, getattr(code, "co_exceptiontable", b""))


def _alike(one: types.CodeType | None, two: types.CodeType) -> bool:
    """Say whether two functions are compiled alike, wherever they lie."""
    if one is None or shape(one) != shape(two) or len(one.co_consts) != len(two.co_consts):
        return False
    for a, b in zip(one.co_consts, two.co_consts, strict=True):
        if isinstance(a, types.CodeType) and isinstance(b, types.CodeType):
            if not _alike(a, b):
                return False
        elif isinstance(a, frozenset) and isinstance(b, frozenset):
            if a != b:  # their order is no part of them
                return False
        elif repr(a) != repr(b):
            return False
    return True


def _canonical(node: object) -> str:
    """Return a syntax tree without places, docstrings and what releases of Python add to it."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__}:{node:#x}" if type(node) is int else f"{type(node).__name__}:{node!r}"
    values = dict(ast.iter_fields(node))
    if isinstance(node, _Definition) and ast.get_docstring(node, clean=False) is not None:
        values["body"] = node.body[1:]
    shown = (
        f"{key}={_canonical(value)}"
        for key, value in values.items()
        if key not in ("ctx", "kind", "type_comment") and ((value is not None and value != []) or key == "value")
    )
    return f"{type(node).__name__}({','.join(shown)})"
