"""What the host formats into the texts of exceptions: at each of its own sites, no value is left after redaction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.faults.redaction import WITHHELD, account_of

vllm = pytest.importorskip("vllm")

HOST = Path(vllm.__path__[0])
# Where requests pass through: what is raised there may be of a user. The rest of the host would take a minute.
PARTS = (
    "sampling_params.py",
    "pooling_params.py",
    "inputs/*.py",
    "renderers/*.py",
    "multimodal/inputs.py",
    "v1/core/**/*.py",
    "v1/engine/*.py",
    "v1/sample/**/*.py",
    "v1/structured_output/*.py",
)
SECRET = "Dear doctor, my password is hunter2 [31373, 11, 616]"
SHREDS = ("doctor", "hunter2", "31373", "616")


class Secret:
    """Every value of a site: whatever is done to it, its text is the secret."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter((self, self))

    def __format__(self, spec: str) -> str:
        return SECRET

    def __str__(self) -> str:
        return SECRET

    def __len__(self) -> int:
        return 616

    def __index__(self) -> int:
        return 31373

    __getitem__ = __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __or__ = __call__
    __radd__ = __rsub__ = __rmul__ = __call__
    __repr__ = __str__
    __hash__ = object.__hash__


class Names(dict[str, Any]):
    """Names of a site: `str` and the like are themselves, every other one is a secret."""

    def __missing__(self, name: str) -> Any:
        return Secret()


REAL = {"str": str, "repr": repr, "sorted": list, "list": list, "type": type, "map": map, "tuple": tuple, "set": list}


def sites(path: Path) -> Iterator[ast.Raise]:
    """Yield the statements of a file that raise an exception with a formatted text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            formats = (ast.JoinedStr, ast.BinOp, ast.Call)
            if any(isinstance(part, formats) for part in ast.walk(node.exc.args[0])):
                yield node


def raising(site: ast.Raise, path: Path) -> Any:
    """Return a function with the statement of a site alone, whose names all stand for secrets."""
    assert isinstance(site.exc, ast.Call)
    site.exc.func = ast.copy_location(ast.Name("RuntimeError", ast.Load()), site.exc.func)
    site.exc.args, site.exc.keywords, site.cause = site.exc.args[:1], [], None
    nothing = ast.arguments([], [], None, [], [], None, [])
    function = ast.FunctionDef("site", nothing, [site], [], lineno=1, col_offset=0)
    module = ast.fix_missing_locations(ast.Module([function], []))
    names = Names({"RuntimeError": RuntimeError, **REAL})
    exec(compile(module, str(path), "exec"), names)
    return names["site"]


def test_no_value_that_the_host_formats_survives_and_its_own_words_do() -> None:
    count, withheld = 0, 0
    for path in (path for part in PARTS for path in sorted(HOST.glob(part))):
        for site in sites(path):
            where = f"{path.relative_to(HOST)}:{site.lineno}"
            try:
                raising(site, path)()
            except RuntimeError as error:
                account = account_of(error)
            except Exception:  # a value that is no stand-in's: an error of the site itself
                continue
            shreds = [shred for shred in SHREDS if shred in account.message and "len(" not in ast.unparse(site)]
            assert shreds == [], f"{where}: {account.message}"
            assert SECRET not in account.message, where
            count += 1
            withheld += account.message == WITHHELD
    assert count > 150, "the host's sites were not found"
    assert withheld < 0.1 * count, f"of {count} texts {withheld} were withheld as a whole"
