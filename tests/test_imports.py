"""What may import what, and what must not be imported for a word of help."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import facetrain

PACKAGE = Path(facetrain.__file__).parent
PARTS = ("preprocess", "datasets", "train", "evaluate")
ABOVE = ("cli", "commands", "terminal")  # command line and what it shows
HEAVY = ("torch", "dlib", "nvidia.dali", "cv2", "matplotlib", "sklearn", "pyarrow", "scipy", "PIL", "pandas")


def modules() -> list[str]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def imports_of(module: str) -> Iterator[str]:
    """The modules of this package that a module imports anywhere, functions and type checking included."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [node.module or ""]
            names += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "facetrain"]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "facetrain")


def layer(module: str) -> tuple[int, str]:
    """(height, name of the part): a module may import what is lower, and its own part."""
    _, _, rest = module.partition(".")
    top = rest.split(".")[0]
    if top in ABOVE:
        return 4, "above"
    if top in ("pipeline", "testing"):  # both put the parts together
        return 3, top
    if top in PARTS:
        return 2, top
    if top == "kernels":
        return 1, top
    return 0, "base"


@pytest.mark.parametrize("module", modules())
def test_imports_lead_downwards(module: str) -> None:
    height, part = layer(module)
    for name in imports_of(module):
        if name == "facetrain":
            continue
        other_height, other_part = layer(name)
        assert other_height < height or (other_height, other_part) == (height, part), (
            f"{module} imports {name}"
        )


def test_the_layers_are_those_of_the_package() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders >= {*PARTS, "pipeline", "testing", "kernels"}
    assert {layer(module)[0] for module in modules()} == {0, 1, 2, 3, 4}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_is_light() -> None:
    code = f"""
import sys
from click.testing import CliRunner
from facetrain.cli import main
names = ["", *main.commands]
for name in names:
    result = CliRunner().invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0, (name, result.output)
    assert "Usage: " in result.output
    heavy = [module for module in {HEAVY} if module in sys.modules]
    assert not heavy, (name, heavy)
print(*main.commands)
"""
    assert set(run(code).split()) >= {
        "synth",
        "align",
        "prune",
        "split",
        "cache",
        "train",
        "evaluate",
        "plot-loss",
        "status",
    }


def test_the_version_is_light() -> None:
    code = f"""
import sys
from facetrain.cli import main
try:
    main(["--version"])
except SystemExit as end:
    assert end.code == 0
assert not [module for module in {HEAVY} if module in sys.modules]
"""
    assert facetrain.__version__ in run(code)


@pytest.mark.parametrize(
    "module",
    [
        "cluster",
        "config",
        "errors",
        "files",
        "image_spec",
        "plugins",
        "progress",
        "workers",
        "workspace",
        "batch",
    ],
)
def test_base_modules_are_light(module: str) -> None:
    code = f"""
import sys
import facetrain.{module}
print(*[module for module in {HEAVY} if module in sys.modules])
"""
    assert run(code).split() == []


def test_the_index_needs_pyarrow_alone() -> None:
    code = f"""
import sys
import facetrain.index, facetrain.file_table
print(*[module for module in {HEAVY} if module in sys.modules])
"""
    assert run(code).split() == ["pyarrow"]
