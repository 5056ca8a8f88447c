"""The pages say what is true: every block runs, every command parses, every link leads somewhere."""

import argparse
import ast
import configparser
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import nondiff
import nondiff.testing
from nondiff.launch.load import load
from nondiff.launch.main import COMMANDS
from nondiff.launch.run import parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
INLINE = re.compile(
    r"`(nondiff run [^`]*\.py[^`]*|nondiff (?:resume|show) [^`]+|nondiff (?:list|doctor)[^`]*|python [^`]+)`"
)
INDENTED = re.compile(r"^    ((?:nondiff|python|pip) .*)$", re.MULTILINE)
TEST = re.compile(r"`(tests/\w+\.py)::(\w+)`")
SAID = re.compile(r"^print\(.*\)  # (.*)$")

Test = TypeVar("Test", bound=Callable[..., None])


def each_page_with(found: Callable[[Path], Iterable[Any]]) -> Callable[[Test], Test]:
    """The pages on which there is something to look at."""
    pages = [page for page in PAGES if any(True for _ in found(page))]
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The blocks of a language, each with the number of its first line."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start(2)) + 1, match[2]


def python_blocks(page: Path) -> Iterator[tuple[int, str]]:
    return blocks(page, "python")


def commands(page: Path) -> list[str]:
    """In blocks, fenced or indented, and between backticks."""
    text = page.read_text()
    fenced = [line for _, source in blocks(page, "console") for line in source.splitlines()]
    return [*fenced, *INDENTED.findall(BLOCK.sub("", text)), *INLINE.findall(text)]


def links(page: Path) -> list[str]:
    """To files of this repository, and places in them."""
    return [target for target in LINK.findall(BLOCK.sub("", page.read_text())) if "://" not in target]


def named_tests(page: Path) -> list[tuple[str, str]]:
    return TEST.findall(page.read_text())


@each_page_with(python_blocks)
def test_python_blocks_run_and_print_what_they_say(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # for the folders that they name
    module = types.ModuleType("__main__")  # as where a user types it
    monkeypatch.setitem(sys.modules, module.__name__, module)  # a class looks its module up
    for line, source in python_blocks(page):
        code = compile("\n" * (line - 1) + source, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, module.__dict__)
        said = [match[1] for text in source.splitlines() if (match := SAID.match(text))]
        assert out.getvalue().splitlines() == said, f"{page.name}, line {line}: what the comments say is not printed"
        assert said or "assert" in source or "check_" in source, f"{page.name}, line {line}: this block shows nothing"


def test_the_readme_has_two_commands() -> None:
    given = [source for _, source in blocks(ROOT / "README.md", "console")]
    assert len(given) == 2
    assert all(len(command.splitlines()) == 1 and not command.startswith("$") for command in given)


@each_page_with(commands)
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in commands(page):
        for command in line.split("&&"):
            _check_command(shlex.split(command), monkeypatch)


class Parsed(Exception):
    """The arguments are right, and that is enough."""


def _check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[:2] == ["nondiff", "run"]:
        file = ROOT / words[2]
        assert file.is_file(), f"there is no {words[2]}"
        try:
            parse(load(file, words[2]), words[2], words[3:])
        except SystemExit:
            pytest.fail(f"`{shlex.join(words)}` does not parse")
    elif words[0] == "nondiff":
        module, _, function = COMMANDS[words[1]][0].partition(":")
        parse_args = argparse.ArgumentParser.parse_args

        def only_parse(self: argparse.ArgumentParser, arguments: list[str]) -> None:
            parse_args(self, arguments)
            raise Parsed

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
            try:
                getattr(importlib.import_module(module), function)(words[2:])
            except SystemExit:
                pytest.fail(f"`{shlex.join(words)}` does not parse")
            except Parsed:
                pass
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    elif words[:2] == ["pip", "install"] and words[2].startswith(".["):
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        for extra in words[2][2:-1].split(","):
            assert extra in setup["options.extras_require"], f"there is no extra `{extra}`"


@each_page_with(links)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in _anchors(file), f"{page.name} links to {target}; the headings there are {_anchors(file)}"


def _anchors(page: Path) -> list[str]:
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_public_name_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    checks = [name for name in vars(nondiff.testing) if name.startswith("check_")]
    missing = [name for name in [*nondiff.__all__, *nondiff.prox.__all__, *checks] if f"`{name}`" not in text]
    assert not missing, f"docs/api.md says nothing of {missing}"


@each_page_with(lambda page: re.findall("::test_", page.read_text()))
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = named_tests(page)
    assert len(named) == page.read_text().count("::test_"), (
        f"{page.name} names a test in another form than `tests/FILE.py::TEST`"
    )
    for file, name in named:
        there = [node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
        assert name in there, f"{page.name} names {file}::{name}; there is {there}"


def test_every_promise_names_what_shows_it() -> None:
    """A test that `pytest` runs by default, not slow ones alone."""
    default = set(_default_tests())
    for page, head, least in (("reliability.md", "| promise |", 31), ("distributed.md", "| fault |", 8)):
        _, found, table = (ROOT / "docs" / page).read_text().partition(head)
        rows = [line.split("|")[1:-1] for line in table.partition("\n\n")[0].splitlines()[2:]]
        assert found and len(rows) >= least
        for promise, *_, shown in rows:
            shows = default & set(re.findall(r"test_\w+", shown)) or "`python experiments/" in shown
            assert shows or shown.strip() == "the same", f"nothing shows `{promise.strip()}`: {shown}"


def _default_tests() -> Iterator[str]:
    for file in (ROOT / "tests").glob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and "pytest.mark.slow" not in map(ast.unparse, node.decorator_list):
                yield node.name
