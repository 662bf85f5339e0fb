"""Which functions of the package open a file for reading, found in its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "precompute", "train")
CALLS = frozenset(
    {"read_file", "read_json", "read_json_text", "open_file", "read_text", "read_bytes", "safe_open", "load_file"}
    | {"ParquetFile", "load_pretrained", "from_pretrained", "read_input_file", "decode_image", "read_image"}
    | {"tensor_shapes", "digest_of_file", "memory_map", "preadv", "copyfile"}
)
"""Names of functions that open a file for reading, whoever they belong to."""
OF = frozenset(
    {("os", "open"), ("av", "open"), ("Image", "open"), ("np", "load"), ("json", "load"), ("numpy", "load")}
    | {("csv", "reader"), ("tomllib", "load"), ("np", "fromfile"), ("tarfile", "open"), ("zipfile", "ZipFile")}
)
"""Those whose name says it only with what it belongs to."""


def openers() -> set[str]:
    """`pipeline.files.plain:open_file`, … of every function that opens a file to read it."""
    found: set[str] = set()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found |= {f"{module}:{name}" for name in _openers_in(ast.parse(path.read_text()))}
    return found


def _openers_in(tree: ast.Module) -> Iterator[str]:
    todo: list[tuple[ast.AST, str]] = [(tree, "")]
    while todo:
        node, owner = todo.pop()
        for child in ast.iter_child_nodes(node):
            inside = owner
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inside = f"{owner}.{child.name}" if owner else child.name
            if isinstance(child, ast.Call) and _reads(child):
                yield owner
            todo.append((child, inside))


def _reads(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id in CALLS or (function.id == "open" and not _writes(call))
    if not isinstance(function, ast.Attribute):
        return False
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    if owner == "AnswerSession":  # opens a run, by functions that are found themselves
        return False
    if owner in ("os", "av", "Image"):
        return (owner, function.attr) in OF and not _writes(call)
    return function.attr in CALLS or (owner, function.attr) in OF or (function.attr == "open" and not _writes(call))


def _writes(call: ast.Call) -> bool:
    """Whether a call of `open` names a mode or flags that only write."""
    text = " ".join(ast.unparse(part) for part in call.args)
    return any(mark in text for mark in ("'w'", "'wb'", "'a'", "'xb'", "O_WRONLY"))
