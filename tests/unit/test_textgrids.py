"""Praat's TextGrids: both forms of text say the same, and a wrong one is named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_attn import open_features
from w2v_attn.feature_files import write_features
from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.features.segments import read_segments
from w2v_attn.features.textgrids import read_textgrid

WORDS = [(0.0, 0.05, ""), (0.05, 0.21, "hé"), (0.21, 0.4, 'say "no" ! 7 <exists>')]
PHONES = [(0.0, 0.1, "h"), (0.1, 0.4, "e:")]


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def long(tiers):
    """As Praat's "Save as text file" has it. A tier that is called points is one."""
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0 ",
        "xmax = 0.4 ",
        "tiers? <exists> ",
    ]
    lines += [f"size = {len(tiers)} ", '! 7 and "this" are a comment', "item []: "]
    for number, (name, intervals) in enumerate(tiers.items(), 1):
        kind, part = ("TextTier", "points") if name == "points" else ("IntervalTier", "intervals")
        lines += [f"    item [{number}]:", f'        class = "{kind}" ', f"        name = {quoted(name)} "]
        lines += ["        xmin = 0 ", "        xmax = 0.4 ", f"        {part}: size = {len(intervals)} "]
        for place, (start, end, text) in enumerate(intervals, 1):
            lines += [f"        {part} [{place}]:"]
            if kind == "TextTier":
                lines += [f"            number = {start} ", f"            mark = {quoted(text)} "]
            else:
                lines += [
                    f"            xmin = {start} ",
                    f"            xmax = {end} ",
                    f"            text = {quoted(text)} ",
                ]
    return "\n".join(lines) + "\n"


def short(tiers):
    """As "Save as short text file" has it."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", "0.4", "<exists>", str(len(tiers))]
    for name, intervals in tiers.items():
        lines += ['"TextTier"' if name == "points" else '"IntervalTier"', quoted(name), "0", "0.4", str(len(intervals))]
        for start, end, text in intervals:
            lines += [str(start), quoted(text)] if name == "points" else [str(start), str(end), quoted(text)]
    return "\n".join(lines) + "\n"


TIERS = {"words": WORDS, "points": [(0.1, 0.1, "3")], "phones": PHONES}
INTERVAL = st.tuples(st.floats(0, 1e4), st.floats(0, 1e4), st.text(st.characters(exclude_categories=["Cs", "Cc"])))


@pytest.mark.parametrize("form", [long, short])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be with its mark"])
def test_both_forms_and_all_encodings_say_the_same(form, encoding, tmp_path):
    mark = "\ufeff" if "mark" in encoding else ""
    (tmp_path / "a.TextGrid").write_bytes((mark + form(TIERS)).encode(encoding.split(" ")[0]))
    assert read_textgrid(tmp_path / "a.TextGrid") == {"words": WORDS, "phones": PHONES}


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text(st.characters(categories=["L"]), min_size=1), st.lists(INTERVAL, max_size=4), max_size=3)
)
def test_whatever_is_written_comes_back(tmp_path_factory, tiers):
    tiers.pop("points", None)
    path = tmp_path_factory.getbasetemp() / "any.TextGrid"
    for form in (long, short):
        path.write_text(form(tiers), encoding="utf-8")
        assert read_textgrid(path) == tiers


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "ends too early"),
        (b"hello", "ends too early"),
        (b'File type = "ooTextFile"\n"Pitch 1"\n', "is not a TextGrid"),
        (long(TIERS).encode()[:-60], "ends too early"),
        (short(TIERS).replace('"words"', "").encode(), "expected a number, found"),
        (short({"a": WORDS, "b": []}).replace('"b"', '"a"').encode(), "two tiers named 'a'"),
        (long(TIERS).encode("latin-1"), "neither UTF-8 nor UTF-16"),
    ],
)
def test_what_is_no_whole_textgrid_is_named(content, says, tmp_path):
    (tmp_path / "a.TextGrid").write_bytes(content)
    with pytest.raises(FeatureSetError, match=says):
        read_textgrid(tmp_path / "a.TextGrid")


def test_a_folder_of_textgrids_names_its_recordings_and_a_tier_is_chosen(tmp_path):
    for name in ("x/a.TextGrid", "b.textgrid"):
        (tmp_path / "aligned" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "aligned" / name).write_text(long(TIERS), encoding="utf-8")
    ids = ["x/a.wav", "y/b.flac", "y/a.wav"]
    found = read_segments(tmp_path / "aligned:words", ids)
    assert (
        {id: [tuple(span) for span in spans] for id, spans in found.items()}
        == {
            "x/a.wav": WORDS[1:],  # what is empty is no segment
            "y/b.flac": WORDS[1:],
        }
    )
    assert len(read_segments(tmp_path / "aligned" / "b.textgrid:phones", ids)["y/b.flac"]) == 2
    with pytest.raises(FeatureSetError, match=r"2 tiers of intervals, words, phones: name one .*aligned:phones"):
        read_segments(tmp_path / "aligned", ids)
    with pytest.raises(FeatureSetError, match="has no tier of intervals points; its tiers are words, phones"):
        read_segments(tmp_path / "aligned:points", ids)
    with pytest.raises(FeatureSetError, match=r"interval 2 of words: b, of which there are no features"):
        read_segments(tmp_path / "aligned:words", ["x/a.wav"])


def test_the_command_pools_over_the_intervals_of_a_tier(call, tmp_path):
    frames = torch.randn(20, 5)
    about = {"id": "x/a.wav", "frame_rate": "50", "samples": "6480", "layers": "final", "flags": "", "dtype": "float32"}
    write_features(tmp_path / "features" / "x" / "a.wav.safetensors", {"final": frames}, about)
    (tmp_path / "aligned" / "x").mkdir(parents=True)
    (tmp_path / "aligned" / "x" / "a.TextGrid").write_text(short(TIERS), encoding="utf-8")
    code, _, err = call("convert", "features=features", "output=out", "pooling=mean", "segments=aligned:phones")
    assert (code, err) == (0, "")
    # Centres are at 12.5, 32.5 … ms.
    expected = torch.stack([frames[0:5].mean(0), frames[5:20].mean(0)])
    torch.testing.assert_close(open_features("out")["x/a.wav"]["final"], expected)
