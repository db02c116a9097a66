"""Imports go down only, and importing the library is cheap."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HEAVY = ("ray", "torch", "transformers", "tokenizers", "lancedb", "vllm", "wordfreq", "dateparser")
ROOT = Path(__file__).parents[2]
PACKAGES = {
    "lightmem_core": ROOT / "lightmem_core",
    "lightmem_pipelines": ROOT / "pipelines" / "lightmem_pipelines",
    "lightmem_serve": ROOT / "serve" / "lightmem_serve",
}
LOWER = ("sensory", "short_term", "long_term", "encoders", "formats", "llm")
FORBIDDEN = {
    "lightmem_core": {"ray", "lightmem_pipelines", "lightmem_serve"},
    "lightmem_pipelines": {"lightmem_serve"},
    "lightmem_serve": {"lightmem_pipelines"},
}


def imports(file: Path) -> Iterator[str]:
    """The packages that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    "module",
    ["lightmem_core", "lightmem_core.factory", "lightmem_core.formats", "lightmem_core.types"],
)
def test_importing_the_core_loads_nothing_heavy(module: str):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.split() == []


def test_sensory_memory_needs_neither_configuration_nor_store():
    """Of a box with torch and transformers nothing more is asked."""
    code = (
        "import sys\n"
        "for name in ('pydantic', 'yaml', 'ray', 'lancedb', 'wordfreq'): sys.modules[name] = None\n"
        "import lightmem_core\n"
        "from lightmem_core.sensory import (\n"
        "    attention, causal_entropy, compress, joint, segment, token_classifier, valley)\n"
        "from lightmem_core.formats import parse_file\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_imports_only_what_lies_below_it(package: str):
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    wrong = {
        str(file.relative_to(ROOT)): bad
        for file in files
        if (bad := set(imports(file)) & FORBIDDEN[package])
    }
    assert wrong == {}


def test_the_core_does_not_name_what_is_built_on_it():
    above = "|".join(FORBIDDEN["lightmem_core"] - {"ray"})
    files = [f for f in PACKAGES["lightmem_core"].rglob("*") if f.suffix in (".py", ".md")]
    named = [str(f) for f in files if re.search(above, f.read_text(encoding="utf-8"))]
    assert named == []


def test_inside_the_core_the_lower_folders_import_nothing_of_the_online_one():
    """Nor for the sake of a type."""
    core = PACKAGES["lightmem_core"]
    lower = [f for f in core.rglob("*.py") if f.parent.name in LOWER or f.parent == core]
    wrong = [str(f) for f in lower if "lightmem_core.online" in f.read_text(encoding="utf-8")]
    assert wrong == []


def test_no_module_of_the_core_imports_a_model_at_its_top():
    files = sorted(PACKAGES["lightmem_core"].rglob("*.py"))
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.partition(".")[0] for n in names} & set(HEAVY), file


def test_every_package_is_typed():
    assert all((folder / "py.typed").exists() for folder in PACKAGES.values())
