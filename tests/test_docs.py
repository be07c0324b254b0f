"""The documentation against the code: generated parts are fresh, links lead somewhere, examples run."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FIVE_COMMANDS = ("ft align", "ft prune", "ft split", "ft train", "ft plot-loss")


def load(name: str) -> ModuleType:
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate, transcripts = load("generate"), load("transcripts")
COMMANDS: dict[str, click.Command] = dict(generate.commands())


def text_of(page: Path) -> str:
    """A page without its code blocks, in which nothing is a link or a heading."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    plain = (heading.replace("&lt;", "<").replace("`", "").lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def blocks(page: str, language: str) -> list[str]:
    """The page's code blocks of a language."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


# -- generated pages -------------------------------------------------------------------------------------------------


def test_generated_pages_are_fresh(capsys: pytest.CaptureFixture) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_check_finds_a_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "commands.md"
    page.write_text("as it was long ago\n")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "generated", lambda: {page: "as it is now\n"})
    assert generate.main(["--check"]) == 1
    assert "stale: commands.md" in capsys.readouterr().out
    assert page.read_text() == "as it was long ago\n"
    assert generate.main([]) == 0
    assert page.read_text() == "as it is now\n"
    assert generate.main(["--check"]) == 0


def test_every_marked_part_is_known() -> None:
    for page in PAGES:
        begun = re.findall(r"<!-- generated: (\S+) -->", page.read_text())
        assert set(begun) <= set(generate.FRAGMENTS), page
        assert len(begun) == page.read_text().count("<!-- end -->"), page


def test_every_transcript_is_there() -> None:
    shown = [found for page in PAGES for found in transcripts.RAN.finditer(page.read_text())]
    assert shown
    for found in shown:
        for name in found[2].split():
            assert f"$ {transcripts.COMMANDS[name]}\n" in found[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_and_has_a_section(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"ft {name} {parameter.opts[0]}"
    assert f"ft-{name}" in slugs(ROOT / "docs" / "reference" / "commands.md")
    assert f"docs/reference/commands.md#ft-{name}" in (ROOT / "README.md").read_text()


# -- pages written by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.relative_to(ROOT)} links to {target}"
        assert there.is_relative_to(ROOT), target
        if anchor:
            assert anchor in slugs(there), f"{page.relative_to(ROOT)} links to {target}"


def test_every_page_can_be_reached_from_the_index() -> None:
    reached, todo = set(), [ROOT / "docs" / "index.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        todo += [
            (page.parent / t).resolve()
            for t in re.findall(r"\]\(([^)#\s]+)", text_of(page))
            if "://" not in t
        ]
    written = {page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "gpu"}  # by `make gpu`
    assert written - reached == set()


def test_readme_begins_with_how_to_install_and_run() -> None:
    start = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    for needed in ("make demo", "pip install -e .", *FIVE_COMMANDS):
        assert needed in start


def test_commands_in_the_pages_are_known() -> None:
    for page in PAGES:
        for block in re.findall(
            r"^```(?:sh|console)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            for name in re.findall(r"^(?:\$ )?ft (?:-C \S+ )?([a-z][a-z-]*)", block, re.MULTILINE):
                assert name in COMMANDS, f"{page.relative_to(ROOT)}: ft {name}"


def test_options_in_the_pages_are_known() -> None:
    known = {option for command in COMMANDS.values() for p in command.params for option in p.opts}
    for page in PAGES:
        for block in re.findall(
            r"^```(?:sh|console)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
        ):
            for line in re.findall(r"^(?:\$ )?ft .*", block, re.MULTILINE):
                for option in re.findall(r"(?<=\s)--[a-z-]+", line.partition("#")[0]):
                    assert option in known, f"{page.relative_to(ROOT)}: {line}"


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(
    raw: Path, tmp_path: Path, in_process: None, ft: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory, with a dataset ``faces``, split and cached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FT_WORKSPACE", raising=False)
    ft(tmp_path, "align", raw, tmp_path / "faces")
    ft(tmp_path, "split", 0.3)
    ft(tmp_path, "cache", "-j", 1)
    return tmp_path


def test_the_code_of_read_the_cache_runs(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    code = "".join(blocks("how-to/read-the-cache.md", "python"))
    names: dict[str, object] = {}
    exec(compile(code, "read-the-cache.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    shown = blocks("how-to/read-the-cache.md", "text")[0].splitlines()
    assert printed[0] == shown[0]
    assert re.fullmatch(r"\d+ crops of 6 people", printed[1])
    assert re.fullmatch(r"\d+ crops of \d+ people", shown[1])
    assert names["images"].shape == (4, 96, 96, 3)  # type: ignore[attr-defined]
    assert set(names["people"]) <= {"ann", "bob", "cat", "dan", "eve", "fay"}  # type: ignore[call-overload]


def test_the_code_of_the_loader_page_runs(workspace: Path) -> None:
    (code,) = blocks("explanation/loader.md", "python")
    names: dict[str, object] = {}
    exec(compile(code, "loader.md", "exec"), names)
    assert names["seen"]


def test_the_code_of_the_python_page_runs(
    workspace: Path, ft: Callable[..., object], capsys: pytest.CaptureFixture
) -> None:
    small = ["--epochs", 1, "--batches-per-epoch", 1, "--people", 2, "--images", 2, "--augment", 0]
    ft(workspace, "train", *small, "--set", "validation_pairs=20", "--set", "precision=fp32", "-j", 1)
    capsys.readouterr()
    exec(compile("".join(blocks("reference/python.md", "python")), "python.md", "exec"), {})
    *_, most_like, accuracy = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\w+/\d\.jpg is most like \w+/\d\.jpg", most_like)
    assert [accuracy] == blocks("reference/python.md", "text")[0].splitlines()


def test_settings_shown_in_the_configuration_page_are_valid() -> None:
    import tomllib

    from facetrain.config import train_config

    (toml,) = blocks("how-to/configuration.md", "toml")
    assert train_config(tomllib.loads(toml)).backbone == "nn4.small2"
