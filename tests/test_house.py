"""The house is as its map says: names lead somewhere, modules are modules, notebooks narrate."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import typing
from pathlib import Path

import pytest
import typer

import em_interp as em
from em_interp import cli
from em_interp.organisms import overview
from em_interp.texts.conversations import Span

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted(m.name for m in pkgutil.walk_packages(em.__path__, "em_interp.") if ".data" not in m.name)


def sources(notebook: Path, kind: str) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def code_of_readme() -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))


def resolve(dotted: str) -> object:
    """`em.behaviour.respond` from the front door on."""
    found: object = em
    for part in dotted.split(".")[1:]:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_what_its_path_says(name):
    """`import em_interp.behaviour.preferences` must be a module, and no function hides it under its own name."""
    module = importlib.import_module(name)
    assert inspect.ismodule(module)
    package, _, last = name.rpartition(".")
    assert inspect.ismodule(getattr(importlib.import_module(package), last))
    functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == name]
    assert last not in functions


def test_the_front_door_opens_on_what_it_lists():
    for name in em.__all__:
        assert getattr(em, name) is not None
    packages = [name for name in em.__all__ if inspect.ismodule(getattr(em, name))]
    assert len(em.__all__) - len(packages) <= 60
    for package in packages:
        module = getattr(em, package)
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{package}.{name}"


def test_signatures_say_what_they_take():
    """No `**where`, and no `Any` for a model: Jupyter shows the signature."""
    for name in em.__all__:
        function = getattr(em, name)
        if inspect.isfunction(function):
            parameters = inspect.signature(function).parameters
            assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD], name
            assert "model" not in parameters or parameters["model"].annotation is not typing.Any, name


def test_the_command_knows_the_spans():
    """It spells them out, since importing them would take seconds before any help is shown."""
    assert typing.get_args(cli.Span) == typing.get_args(Span)


class TestReadme:
    def test_names_of_the_library_exist(self):
        found = set(re.findall(r"(?<![\w./-])(em(?:\.\w+)+)", README))
        assert found
        for dotted in sorted(found):
            resolve(dotted)

    def test_code_parses_and_imports(self):
        for node in ast.walk(ast.parse(code_of_readme())):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)

    def test_commands_and_their_flags_exist(self):
        group = typer.main.get_command(cli.app)
        commands = group.commands
        lines = re.findall(r"em-interp ([a-z]+)((?: [^`\n#]*)?)", README)
        assert lines
        for verb, rest in lines:
            assert verb in commands, f"em-interp {verb}"
            flags = {flag for parameter in commands[verb].params for flag in parameter.opts}
            assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= flags, f"em-interp {verb}{rest}"

    def test_verbs_of_make_exist(self):
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for verb in re.findall(r"\bmake ([a-z][a-z-]*)", README):
            assert re.search(rf"^{verb}\b.*:", makefile, re.MULTILINE), f"make {verb}"

    def test_the_map_is_of_this_house(self):
        plan = re.search(r"```\nem_interp/\n(.*?)```", README, re.DOTALL)
        assert plan
        named = set()
        for line in plan[1].splitlines():
            for folder in re.findall(r"^\s+((?:\w+/\s+)+)", line):
                folders = re.findall(r"(\w+)/", folder)
                named |= set(folders)
                listed = re.match(r"\s+(?:\w+/\s+)+((?:\w+, )*\w+):?", line)
                if listed and len(folders) == 1 and folders[0] not in ("figures", "evals", "data"):
                    for module in listed[1].split(", "):
                        assert f"em_interp.{folders[0]}.{module}" in MODULES, line
            for file in re.findall(r"(\w+)\.py", line):
                assert f"em_interp.{file}" in MODULES
        folders = {path.name for path in (ROOT / "em_interp").iterdir() if path.is_dir() and path.name[0] != "_"}
        assert folders <= named, folders - named

    def test_its_table_of_organisms_is_that_of_their_cards(self):
        assert f"\n\n{overview()}\n" in README

    def test_links_lead_to_files(self):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
class TestNotebooks:
    def test_it_defines_nothing_and_is_kept_without_outputs(self, notebook):
        for code in sources(notebook, "code"):
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)], code
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        assert not [cell for cell in cells if cell.get("outputs")]

    def test_what_it_names_exists(self, notebook):
        code = "\n".join(sources(notebook, "code"))
        for dotted in set(re.findall(r"(?<![\w./-])(em(?:\.\w+)+)", code)):
            resolve(dotted)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("em_interp"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), node.module
