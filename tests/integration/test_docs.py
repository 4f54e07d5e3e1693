"""The documentation is true: its commands and snippets run, and the pages, files and keys that it names are there.

A fence of ```bash or ```python is run, in the order of its page, in a folder that has what the pages presume: see
`reader_folder`. A comment on the line before it leaves it out, `<!-- no-run: needs the network -->`, or runs something
first, `<!-- run-first: w2v-attn extract -->`. Fences of other kinds (```text, ```json) are for reading.
"""

import csv
import inspect
import re
import shlex
import shutil
import subprocess
import tarfile
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import soundfile
import yaml
from conftest import ROOT, SPEECH
from omegaconf import DictConfig, OmegaConf

import w2v_attn
from w2v_attn.cli import app
from w2v_attn.cli.arguments import KEY, read_arguments

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONF = ROOT / "conf"
CLIP = "en-us+m5/00-three.flac"
SLOW_PAGES = {"docs/verification.md"}  # `verify` takes 20 seconds
# Why a fence may be left out.
REASONS = {
    "needs the network",
    "needs data sets and the network",
    "needs an adapter",
    "needs a file of Omnilingual ASR",
    ".ci/run runs it",
    ".ci/run does it, with the README",
}
# Keyword arguments of other people's functions, and fields, that pages name as `name=`.
FOREIGN = {"create_graph", "add_adapter", "output_attentions", "output_hidden_states", "collate_fn", "ids"}


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, its text without indentation, and the comment on the line before it."""

    line: int
    language: str
    text: str
    comment: str

    @property
    def reason(self) -> str | None:
        """Why it is not run; None where it is."""
        found = re.fullmatch(r"no-run: (.+)", self.comment)
        return found[1] if found else None


def fences(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    found, before, number = [], "", 0
    while number < len(lines):
        opening = re.fullmatch(r"( *)```(\w*)", lines[number])
        if opening:
            end = next(n for n in range(number + 1, len(lines)) if lines[n] == f"{opening[1]}```")
            text = textwrap.dedent("\n".join(lines[number + 1 : end]))
            comment = re.fullmatch(r"<!-- (.*?) -->", before)
            found.append(Fence(number + 1, opening[2], text, comment[1] if comment else ""))
            number = end
        before, number = lines[number].strip(), number + 1
    return found


def name(page):
    return page.relative_to(ROOT).as_posix()


def runnable(page):
    return [fence for fence in fences(page) if fence.language in ("bash", "python") and fence.reason is None]


def prose(page):
    """The lines outside of fences."""
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture
def reader_folder(tmp_path, monkeypatch):
    """What the pages presume: recordings of one's own, a list of them, shards, segments; and the project's `data`."""
    speech = [SPEECH / CLIP, *sorted(SPEECH.glob("en-gb+m5/*.flac"))[:2]]
    for clip in speech:
        for folder in ("recordings", "corpus"):
            target = tmp_path / folder / clip.relative_to(SPEECH)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(clip, target)
    wave, rate = soundfile.read(speech[0])
    for file in ("talk.mp3", "recordings/a.wav", "a name (with) = or é.wav"):
        soundfile.write(tmp_path / file, wave, rate)
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "text"), (f"recordings/{CLIP}", "three")])
    for file in ("phones.csv", "words.csv"):
        (tmp_path / file).write_text(f"id,start,end,label\n{CLIP},0.05,0.2,TH\n{CLIP},0.2,0.5,R\n")
    tier = tmp_path / "aligned" / Path(CLIP).with_suffix(".TextGrid")
    tier.parent.mkdir(parents=True)
    tier.write_text(
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n0.57\n<exists>\n1\n'
        '"IntervalTier"\n"phones"\n0\n0.57\n1\n0.05\n0.2\n"TH"\n'
    )
    for number, clip in enumerate(speech[1:]):
        with tarfile.open(tmp_path / f"corpus-{number:03d}.tar", "w") as shard:
            shard.add(clip, clip.name)
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_line(line, where):
    """One line of a shell: our commands in this process, which saves their start; others in a shell."""
    if line.startswith("w2v-attn ") and not re.search(r"[|;&>]", line):
        with pytest.raises(SystemExit) as done:
            app.main(shlex.split(line)[1:])
        assert done.value.code == 0, f"{where}: {line} ends with {done.value.code}"
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True, timeout=120)


def run_fence(fence, namespace, where):
    first = re.fullmatch(r"run-first: (.+)", fence.comment)
    if first:
        run_line(first[1], where)
    if fence.language == "python":
        exec(compile(fence.text, where, "exec"), namespace)
        return
    for line in fence.text.replace("\\\n", "").splitlines():
        if line.strip():
            run_line(line.partition("  #")[0].strip(), where)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name(page), marks=[pytest.mark.slow] if name(page) in SLOW_PAGES else [])
        for page in PAGES
        if runnable(page)
    ],
)
def test_every_command_and_snippet_of_a_page_runs(page, reader_folder):
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for fence in runnable(page):
        run_fence(fence, namespace, f"{name(page)}, line {fence.line}")


def test_fences_are_left_out_for_known_reasons_alone():
    left_out = [(name(page), fence.line, fence.reason) for page in PAGES for fence in fences(page) if fence.reason]
    assert left_out, "the comment is read no more"
    assert not [found for found in left_out if found[2] not in REASONS]
    read = {fence.language for page in PAGES for fence in fences(page)}
    assert read <= {"bash", "python", "text", "json", "", "yaml"}, "a language that nobody decided to run or to leave"


def test_a_fence_that_is_wrong_is_noticed(reader_folder):
    with pytest.raises(AssertionError, match="ends with 2"):
        run_fence(Fence(1, "bash", "w2v-attn extract ouput=x", ""), {}, "here")
    with pytest.raises(AttributeError):
        run_fence(Fence(1, "python", "import w2v_attn\nw2v_attn.load_encoders", ""), {}, "here")


# Pages and files.


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    def entries(node):
        if isinstance(node, str):
            yield node
        else:
            for child in node.values() if isinstance(node, dict) else node:
                yield from entries(child)

    listed = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(listed) == len(set(listed))
    folder = ROOT / "docs"
    there = {path.relative_to(folder).as_posix() for kind in ("*.md", "*.ipynb") for path in folder.rglob(kind)}
    assert set(listed) == {path for path in there if ".ipynb_checkpoints" not in path}


def test_the_readme_is_short_and_its_lines_are_too():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 10_000
    long = [line for line in prose(ROOT / "README.md").splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


def test_the_first_three_commands_of_the_readme_are_those_that_ci_runs():
    commands = [fence for fence in fences(ROOT / "README.md") if fence.language == "bash"]
    ends = ("w2v-attn extract", "pytest --quiet", "w2v-attn finetune experiment=bundled")
    for command, end in zip(commands[:3], ends, strict=True):
        assert command.text.startswith("python3 -m venv ")
        assert command.text.endswith(end)
        assert command.reason == ".ci/run runs it"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=name)
def test_links_outside_of_the_site_lead_to_files(page):  # `mkdocs build --strict` checks those of the site
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", prose(page))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_the_picture_is_drawn_by_the_script_beside_it(tmp_path):
    pytest.importorskip("matplotlib")
    script = ROOT / "docs" / "images" / "attention.py"
    namespace: dict[str, object] = {"__name__": "__docs__", "__file__": str(script)}
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), namespace)
    namespace["main"](tmp_path / "attention.png")  # type: ignore[operator]
    assert (tmp_path / "attention.png").stat().st_size > 10_000


# Keys.


def keys_of(config, before=""):
    for key in config:
        yield f"{before}{key}"
        below = config._get_node(key)
        if isinstance(below, DictConfig):
            yield from keys_of(below, f"{before}{key}.")


@cache
def known_keys():
    found = set()
    for path in CONF.rglob("*.yaml"):
        group = path.parent.relative_to(CONF).as_posix()
        config = OmegaConf.load(path)
        found |= set(keys_of(config)) - {"defaults"}
        if group != ".":
            found |= {group, *keys_of(config, f"{group}.")}
    return found


@cache
def known_arguments():
    """Keyword arguments of everything public, and of the methods of what it returns."""
    from w2v_attn.encoder.encoder import Encoder

    functions = [getattr(w2v_attn, name) for name in w2v_attn.__all__]
    functions += [w2v_attn.MultiHeadSelfAttention.forward, Encoder.extract]
    return {argument for function in functions for argument in inspect.signature(function).parameters}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_key_that_a_page_names_exists(page):
    known = known_keys() | known_arguments() | FOREIGN
    text = prose(page)
    codes = re.findall(r"`([^`\n]+)`", text)
    named = {key for code in codes for key in re.findall(r"(?<![\w./-])([a-z_][\w.]*)=", code)}
    for table in re.findall(r"^\| key \|.*\n\|[-| ]+\n((?:\|.*\n?)+)", text, re.M):
        for row in table.splitlines():
            named |= set(re.findall(r"`([a-z_][\w.]*)`", row.split("|")[1]))
    assert not sorted(key for key in named if key not in known)


def commands_of(page):
    for fence in fences(page):
        if fence.language in ("bash", "text", ""):
            for line in fence.text.splitlines():
                found = re.search(rf"(?:w2v-attn|-m w2v_attn) ({'|'.join(app.COMMANDS)})\b(.*)", line)
                if found and "│" not in line:
                    yield fence.line, found[1], found[2].partition("  #")[0]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_a_page_shows_composes(page):
    from hydra import compose, initialize_config_dir

    OmegaConf.register_new_resolver("bundled", lambda name: str(ROOT / "data" / name), replace=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for line, command, rest in commands_of(page):
            overrides = [part for part in shlex.split(rest) if KEY.fullmatch(part)]
            overrides = read_arguments(command, overrides).overrides
            assert compose(command, list(overrides)) is not None, f"{name(page)}, line {line}"
