"""Rules of the house that no linter knows: what a file may hold, what an import may pull, what a method must have."""

from __future__ import annotations

import ast
import json
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lissome
from lissome.core import registry

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lissome"
FILES = sorted(SOURCE.rglob("*.py"))
PUBLIC = {
    "Budget", "Space", "Subnet", "evaluate", "export", "extract", "fit", "list_methods", "load", "masked", "measure",
    "plan",
}  # fmt: skip
HEAVY = (
    "accelerate", "datasets", "flwr", "gguf", "lm_eval", "numpy", "optuna", "peft", "plotly", "ray", "torch",
    "transformers",
)  # fmt: skip
NO_PICKLES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def short(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def imports(module: ast.Module) -> Iterator[str]:
    """Dotted names of all modules that are imported, also inside functions and by `optional_import`."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("optional_import"):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def public_parts(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    """The module, and every class, function and method of it whose path has no leading underscore."""
    yield name, node
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            inner = f"{name}.{child.name}"
            yield from public_parts(child, inner) if isinstance(child, ast.ClassDef) else [(inner, child)]


def test_everything_public_says_what_it_is() -> None:
    silent = [
        name
        for path in FILES
        for name, node in public_parts(tree(path), short(path))
        if not ast.get_docstring(node)  # type: ignore[arg-type]
        and not any(
            "overload" in ast.dump(mark) or "setter" in ast.dump(mark) for mark in getattr(node, "decorator_list", [])
        )
    ]
    assert not silent


def test_files_end_before_line_400() -> None:
    assert not {short(path): count for path in FILES if (count := len(path.read_text().splitlines())) > 400}


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{short(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno >= 80
    }
    assert not long


def test_nothing_is_pickled() -> None:
    for path in FILES:
        module = tree(path)
        assert not NO_PICKLES.intersection(name.split(".")[0] for name in imports(module)), short(path)
        calls = {ast.unparse(node.func) for node in ast.walk(module) if isinstance(node, ast.Call)}
        assert not calls & {"torch.load", "torch.save", "np.load", "numpy.load"}, short(path)
        assert "trust_remote_code=True" not in path.read_text(), short(path)


def test_core_uses_the_standard_library_alone() -> None:
    for path in [*sorted((SOURCE / "core").glob("*.py")), SOURCE / "models" / "space.py"]:
        foreign = {name for name in imports(tree(path)) if name.split(".")[0] not in sys.stdlib_module_names}
        allowed = {name for name in foreign if name == "lissome" or name.startswith("lissome.core.")}
        assert foreign == allowed, short(path)


def test_every_library_is_declared_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for name, texts in project["optional-dependencies"].items() for text in texts]
    declared = {
        canonicalize_name(Requirement(text).name): Requirement(text) for text in [*project["dependencies"], *extras]
    }
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    for name, requirement in declared.items():
        assert requirement.specifier.contains(versions[name]), f"{name}: {versions[name]} is outside {requirement}"
    providers = packages_distributions() | {"llama_cpp": ["llama-cpp-python"]}
    used = {name.split(".")[0] for path in FILES for name in imports(tree(path))}
    for name in used - set(sys.stdlib_module_names) - {"lissome"}:
        assert declared.keys() & {canonicalize_name(owner) for owner in providers.get(name, [name])}, (
            f"{name} is not declared"
        )


def test_the_public_names() -> None:
    assert set(lissome.__all__) == PUBLIC
    assert len(lissome.__all__) <= 12
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == PUBLIC
    for name in PUBLIC:
        assert callable(getattr(lissome, name)), name
        assert getattr(lissome, name).__doc__, name
    assert set(dir(lissome)) >= PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = lissome.lod


def test_a_folder_does_not_hide_the_function_of_its_name() -> None:
    from lissome.export import gguf

    assert gguf.__name__ == "lissome.export.gguf"
    assert not isinstance(lissome.export, type(sys))


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after running `code` in a fresh process."""
    probe = f"import sys\n{code}\nimport json; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


HELP = """
import contextlib
from lissome.cli.main import main
sys.argv = ["lissome", *{words}]
with contextlib.suppress(SystemExit):
    main()
"""


@pytest.mark.parametrize(
    "code",
    [
        "import lissome",
        "import lissome; lissome.Budget.parse('params=1%'); lissome.Space",
        HELP.format(words=["--help"]),
    ],
    ids=["import", "budget and space", "help"],
)
def test_what_is_light_stays_light(code: str) -> None:
    assert not loaded_by(code).intersection(HEAVY)


def test_help_answers_at_once() -> None:
    """Half a second of processor time at best, whatever else the machine does meanwhile."""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "lissome", "--help"], capture_output=True, check=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.5


def own_methods() -> list[registry.MethodInfo]:
    return [info for info in registry.methods().values() if info.family != "plugin"]


@pytest.mark.parametrize("info", own_methods(), ids=lambda info: info.name)
def test_a_method_has_its_test_its_page_and_its_source(info: registry.MethodInfo) -> None:
    assert (ROOT / "tests" / "methods" / info.family / f"test_{info.name}.py").is_file()
    assert (ROOT / "docs" / "methods" / info.family / f"{info.name}.md").is_file()
    method = info.load()
    assert "arXiv" in (sys.modules[method.__module__].__doc__ or ""), "the paper on a postcard"
    assert method.needs
    assert method.leaves
    assert method.Config.from_toml(method.Config().to_toml()) == method.Config()


def test_no_page_is_of_a_method_that_is_gone() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "methods").glob("*/*.md") if path.stem != "index"}
    assert pages <= {info.name for info in own_methods()}


def test_the_papers_of_the_project() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make run" in readme
    assert "make test" in readme
    assert readme.index("<!-- results:begin -->") < readme.index("<!-- results:end -->")
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 80
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()
