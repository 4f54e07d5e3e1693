"""`reflow`: the help texts of conf/ in lines of a given width."""

import re
import textwrap
from collections.abc import Iterator

COMMAND = re.compile(r"(\s*)((?:w2v-attn|srun|torchrun|pip) .*?)(?:\s{2,}(\S.*))?")
ROW = re.compile(r"(\s*)(\S.*?\s{2,})(\S.*)")


def reflow(text: str, width: int) -> str:
    """Return a text whose lines fit a width. Only blocks that do not fit are changed.

    A block is a command with a comment behind it, a row of two columns, or a paragraph; lines that continue a row are
    indented to its second column.
    """
    return "\n".join(line for block in _blocks(text.splitlines()) for line in _fitted(block, width))


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Yield the lines of each block."""
    block: list[str] = []
    for line in lines:
        if block and line.strip() and _continues(block[0], line):
            block.append(line)
            continue
        if block:
            yield block
        block = [line]
    if block:
        yield block


def _continues(first: str, line: str) -> bool:
    if not first.strip() or COMMAND.fullmatch(line):
        return False
    indent = len(line) - len(line.lstrip())
    row = ROW.fullmatch(first)
    if COMMAND.fullmatch(first) or row is not None:
        return row is not None and indent == row.start(3) and not COMMAND.fullmatch(first)
    return ROW.fullmatch(line) is None and indent == len(first) - len(first.lstrip())


def _fitted(block: list[str], width: int) -> list[str]:
    if all(len(line) <= width for line in block):
        return block
    first = block[0]
    if found := COMMAND.fullmatch(first):
        return [*_command(found[1], found[2], width), *([f"{found[1]}    {found[3]}"] if found[3] else [])]
    if found := ROW.fullmatch(first):
        start = found.start(3)
        text = " ".join([found[3], *(line.strip() for line in block[1:])])
        return textwrap.wrap(text, width, initial_indent=first[:start], subsequent_indent=" " * start)
    indent = " " * (len(first) - len(first.lstrip()))
    text = " ".join(line.strip() for line in block)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _command(indent: str, command: str, width: int) -> list[str]:
    """Return a command in one or more lines that a shell reads as one."""
    wrapped = textwrap.wrap(
        command,
        width - 2,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{line} \\" for line in wrapped[:-1]] + wrapped[-1:]
