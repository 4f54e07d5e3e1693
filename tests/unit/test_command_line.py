"""The words behind a command: files, checkpoints, lists and texts as people type them, and what is wrong with them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir
from tempfile import TemporaryDirectory

import pytest
from conftest import ROOT, SPEECH
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from w2v_attn.cli import app, process
from w2v_attn.cli.arguments import FLAGS, WrongArguments, read_arguments
from w2v_attn.cli.command_keys import keys_of
from w2v_attn.cli.commands import COMMANDS
from w2v_attn.cli.completion import answer, candidates, choices_of, split_line
from w2v_attn.cli.former_keys import FORMER_KEYS
from w2v_attn.cli.help import WIDTH, command_help, explain_topic
from w2v_attn.cli.hydra_grammar import for_hydra, quote
from w2v_attn.cli.other_tools import OTHER_CHOICES, OTHER_TOOLS
from w2v_attn.cli.reflow import reflow
from w2v_attn.cli.wrong_keys import explain_key

CLIP = next(iter(sorted(SPEECH.rglob("*.flac"))))
NAMES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20),
    st.text("ab.=,()[]{}~$#'\"\\ :!?*&+-%@é😀\n\t|<>;`^0", min_size=1, max_size=12),
    st.binary(min_size=1, max_size=8).map(os.fsdecode).filter(lambda name: "/" not in name and "\0" not in name),
)


@pytest.fixture(autouse=True)
def resolvers():
    app._register_resolvers()


def composed(command, *words):
    arguments = read_arguments(command, words)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(command, list(arguments.overrides))


def meaning(override):
    """What Hydra and OmegaConf make of `key=value`."""
    value = OverridesParser.create().parse_override(override).value()
    return OmegaConf.create({"key": value})["key"]


# Names.


@settings(max_examples=300, deadline=None)
@given(NAMES, st.booleans())
@example("a name (with) = or é.wav", False)
@example("${audio}.wav", True)
@example("\\${x}", False)
@example("x\\", True)
@example("'quoted'", True)
@example("null", True)
@example("1e5", True)
@example("~", True)
@example("[a,b]", True)
@example("-x.wav", False)
@example("0\r", False)
def test_the_name_of_a_file_arrives_as_the_shell_passed_it(name, positional):
    assume(name not in (".", "..", "--") and name.strip() and len(os.fsencode(name)) < 200 and name not in FLAGS)
    assume(not positional or not re.match(r"(\+|~)*[\w.]+=", name))
    with TemporaryDirectory() as folder, chdir(folder):
        open(name, "w").close()
        arguments = read_arguments("extract", [name if positional else f"audio={name}"])
        (override,) = arguments.overrides
        expected = "./???" if name == "???" else name
        assert override.startswith("audio=")
        assert meaning(f"key={override.removeprefix('audio=')}") == expected
        # Hydra keeps the overrides as texts of a configuration, too.
        OmegaConf.create([override])


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_a_quoted_text_means_itself(text):
    assume(text != "???")
    assert meaning(f"key={quote(text)}") == text


@pytest.mark.parametrize("name", ["my results (1)", "a=b", "é, ü", "x{y}", "#1", "2024 [raw]"])
def test_a_text_that_names_nothing_yet_needs_no_quotes(name):
    assert composed("extract", f"output={name}").output == name


VALUES = {
    "text": ["a", "'a b'", '"x"', "${dtype}", "out/${dtype}", "[a,b]", "{a: b}", "null", r"a\,b", "int(3)", "12"],
    "number": ["1", "-2.5", "1e-3", "null", "${seed}", "inf", "int(3.2)"],
    "bool": ["true", "False", "null", "${dry_run}"],
    "list": ["[a,b]", "[]", "[1, 2]", "all", "null", "['a b', c]", "[[1,2],[3]]", "[{a: 1}]", "${layers}", "-1"],
    "null": ["null", "1", "a", "[0.2,0.8]", "mean", "'a b'", "{a: b}", "true"],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in VALUES.items() for value in values])
def test_what_hydra_understands_keeps_its_meaning(kind, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs, ours = (
        OverridesParser.create().parse_override(f"key={v}").value() for v in (value, for_hydra(value, {kind}))
    )
    assert ours == theirs
    assert type(ours) is type(theirs)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("value", ["a,b", "[a],[b]", "1,2", "range(1,3)", "choice(a,b)"])
def test_commas_of_a_sweep_stay_commas(kind, value):
    assert for_hydra(value, {kind}, sweep=True) == value


@pytest.mark.parametrize(
    "words",
    [
        ("audio='a\\${b}.wav','c.wav'",),
        ("audio=a\\${b}.wav,c.wav",),
        ("output=one,two", "audio=a${b}.wav"),
        ("output=one,two", "a${b}.wav"),
        ("output=one,two", "a${b}.wav", "g${.wav", "d\\${x}.wav"),
    ],
)
def test_the_command_of_each_job_of_a_sweep_gives_its_recordings_again(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a${b}.wav", "c.wav", "g${.wav", "d\\${x}.wav"):
        (tmp_path / name).touch()
    jobs = []

    def call(_, config):
        audio = [config.audio] if isinstance(config.audio, str) else list(config.audio)
        jobs.append((audio, shlex.split(process.command())[2:]))
        return 0

    monkeypatch.setattr(app, "_call", call)
    assert app._run("transcribe", ["-m", *words]) == 0
    assert len(jobs) == 2
    for audio, again in tuple(jobs):
        assert app._run("transcribe", again) == 0
        assert jobs[-1][0] == audio
    if len(words) == 4:
        assert jobs[0][0] == list(words[1:])


# Lists.


@pytest.mark.parametrize(
    "words",
    [
        ["layers=[final,embed]"], ["layers=[final, embed]"], ["layers=final,embed"], ["layers=final, embed"],
        ["layers=[final,", "embed]"], ["layers=final,", "embed"], ["layers=[", "final,", "embed", "]"],
    ],
)  # fmt: skip
def test_a_list_may_have_spaces_and_no_brackets(words):
    assert composed("extract", *words).layers == ["final", "embed"]


def test_elements_of_lists_need_no_quotes():
    assert composed("finetune", "data.test_speakers=José María,ä (2)").data.test_speakers == ["José María", "ä (2)"]
    assert composed("extract", "audio=[a (1).wav, é=b.wav]").audio == ["a (1).wav", "é=b.wav"]
    assert composed("extract", "layer_weights=0.2,0.8").layer_weights == [0.2, 0.8]


def test_a_single_value_becomes_a_list_where_the_recipe_has_one():
    from w2v_attn.cli.finetune import recipe_of

    recipe = recipe_of(composed("finetune", "augmentation.speed=0.9", "training.lora.targets=q_proj"))
    assert recipe.augmentation.speed == [0.9]
    assert recipe.training.lora.targets == ["q_proj"]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("{0: zero, 1: one}", {"0": "zero", "1": "one"}),
        ('{"0": zero, "é (x)": "a, b"}', {"0": "zero", "é (x)": "a, b"}),
        ("{yes: no, null: true}", {"yes": "no", "null": "true"}),
        ("{}", {}),
    ],
)
def test_names_are_given_as_a_dictionary_without_a_plus(value, names):
    assert dict(composed("evaluate", f"names={value}").names) == names
    assert dict(composed("finetune", f"data.names={value}").data.names) == names


def test_keys_inside_of_open_dictionaries_need_no_plus():
    assert composed("evaluate", "names.0=zero").names == {"0": "zero"}
    config = composed("finetune", "model=scratch", "model.config.hidden_dropout=0.25")
    assert config.model.config.hidden_dropout == 0.25


@pytest.mark.parametrize(("value", "expected"), [("yes", True), ("no", False), ("on", True), ("0", False)])
def test_yes_and_no_are_true_and_false(value, expected):
    assert composed("extract", f"dry_run={value}").dry_run is expected


# Positional arguments and checkpoints.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a.flac", "b c.flac", "x/d.flac", "y/d.flac", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CLIP.read_bytes() if name.endswith(".flac") else b"nothing")
    (tmp_path / "afile").touch()
    (tmp_path / "mymodel").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["extract", "transcribe", "evaluate"])
def test_positional_arguments_are_audio(command, folder):
    assert composed(command, "b c.flac").audio == "b c.flac"
    assert composed(command, "x", "output=out", "y").audio == ["x", "y"]
    assert composed(command, "corpus-{0..3}.tar").audio == "corpus-{0..3}.tar"
    assert composed(command, "audio=a.flac", "audio=b c.flac").audio == ["a.flac", "b c.flac"]


def test_positional_arguments_of_other_commands(folder):
    for command in ("load", "verify"):
        assert composed(command, "mymodel").model.checkpoint == "mymodel"
        assert composed(command, "facebook/wav2vec2-base").model.checkpoint == "facebook/wav2vec2-base"
        assert composed(command, "base").model.checkpoint == "facebook/wav2vec2-base"
    assert composed("convert", "x").features == "x"
    with pytest.raises(WrongArguments, match=r"data\.train=a\.flac"):
        read_arguments("finetune", ["a.flac"])


@pytest.mark.parametrize(
    "name",
    [
        "facebook/wav2vec2-base",
        "./mymodel",
        "mymodel",
        "/abs/é (1)=x",
        "wav2vec_small.pt",
        "~/models/x",
        "a.safetensors",
    ],
)
def test_a_model_that_is_no_choice_is_the_checkpoint(name, folder):
    config = composed("transcribe", f"model={name}", "model.language=fra")
    assert (config.model.checkpoint, config.model.language) == (name, "fra")


def test_a_choice_is_preferred_to_a_folder_of_its_name(folder):
    (folder / "base").mkdir()
    assert composed("extract", "model=base").model.checkpoint == "facebook/wav2vec2-base"


def test_a_sweep_takes_checkpoints(folder):
    arguments = read_arguments("extract", ["-m", "model=./mymodel,facebook/wav2vec2-base", "a.flac"])
    assert arguments.overrides[:2] == ("model=local", "model.checkpoint='./mymodel','facebook/wav2vec2-base'")


def test_choices_of_another_folder_of_configurations_are_choices(folder):
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "ours.yaml").write_text("checkpoint: /models/ours\nrevision: null\nlanguage: null\n")
    words = ["--config-dir", "conf", "model=ours"]
    assert read_arguments("extract", words).overrides == ("model=ours",)
    with pytest.raises(WrongArguments, match="there is no model ours"):
        read_arguments("extract", words[2:])


# Several sources.


def test_ids_of_several_sources_are_relative_to_the_folder_that_all_are_in(folder):
    from w2v_attn.corpus.listing import list_recordings

    def ids(*sources):
        return [row.id for row in list_recordings(list(sources)).rows]

    assert ids("x", "y") == ["x/d.flac", "y/d.flac"]
    assert ids("x/d.flac", "a.flac") == ["x/d.flac", "a.flac"]
    assert ids("x/d.flac", "x") == ["x/d.flac"]  # one file, once
    assert ids("a.flac", str(folder / "a.flac")) == ["a.flac"]
    assert [row.id for row in list_recordings("*.flac").rows] == ["a.flac", "b c.flac"]
    assert [row.id for row in list_recordings("**/*.flac").rows] == ["a.flac", "b c.flac", "x/d.flac", "y/d.flac"]


def test_beside_audio_other_files_are_counted(folder):
    from w2v_attn.corpus.listing import list_recordings

    corpus = list_recordings(["a.flac", "notes.txt", "b c.flac"])
    assert [row.id for row in corpus.rows] == ["a.flac", "b c.flac"]
    assert corpus.skipped == {".txt": 1}


def test_two_recordings_of_one_id_are_an_error(folder):
    from w2v_attn.corpus.listing import list_recordings
    from w2v_attn.corpus.rows import CorpusError

    for name, path in (("one.csv", "a.flac"), ("two.csv", "b c.flac")):
        (folder / name).write_text(f"path,id\n{path},same\n")
    with pytest.raises(CorpusError, match="two recordings have the id same"):
        list_recordings(["one.csv", "two.csv"])
    with pytest.raises(CorpusError, match=r"nope\.flac"):
        list_recordings(["a.flac", "nope.flac"])


def test_extract_and_transcribe_take_files_of_the_shell(folder, call):
    code, out, _ = call("extract", "a.flac", "b c.flac", "x", "output=out")
    assert code == 0
    assert "3 of 3" in out
    written = {path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*.safetensors")}
    assert written == {"a.flac.safetensors", "b c.flac.safetensors", "x/d.flac.safetensors"}
    code, out, _ = call("transcribe", "b c.flac", "output=texts")
    assert code == 0
    assert "b c.flac" in out


def test_the_command_that_resumes_a_run_is_the_one_that_was_typed(folder, call):
    import json

    words = ["b c.flac", "layers=final,embed", "output=o (1)"]
    assert call("extract", *words)[0] == 0
    made_by = json.loads((folder / "o (1)" / "run.json").read_text())["command"]
    assert shlex.split(made_by) == ["w2v-attn", "extract", *words]


# Reports about other tools that read Hydra's grammar, or list files.
REPORTS = {
    "hydra #1577, equals signs of Lightning's checkpoints": (
        "extract",
        "model.checkpoint",
        "log/epoch=999-step=87999.ckpt",
    ),
    "hydra #938, a text with an equals sign": ("extract", "output", "baz=qux"),
    "hydra #2891, Chinese": ("transcribe", "output", "介绍一下你。"),
    "hydra #2705, a number sign": ("transcribe", "output", "#"),
    "hydra #962, a percent sign": ("extract", "segments", "/path/to/pattern_%r (1).csv"),
    "hydra #1074, an at sign": ("evaluate", "output", "example@example.com"),
    "hydra #1843, a vertical bar in a regular expression": ("evaluate", "pattern", r"(?P<text>\d|[a-z]+)_"),
    "detrex #309, a date": ("evaluate", "output", "2023-09-16"),
    "cloudai #557, commas and colons in a text": ("extract", "output", "mlx5_0:1,mlx5_3:1"),
    "lightning-transformers #158, a name with spaces": ("finetune", "data.train", "train charts.csv"),
}


@pytest.mark.parametrize("report", REPORTS)
def test_values_of_reports_arrive(report):
    command, key, value = REPORTS[report]
    assert OmegaConf.select(composed(command, f"{key}={value}"), key) == value


def test_a_checkpoint_of_lightning_is_a_model():  # Lightning #2696, tuplan_garage #32
    assert composed("load", "model=log/epoch=6.ckpt").model.checkpoint == "log/epoch=6.ckpt"


def test_a_glob_that_the_shell_leaves_alone_is_expanded(folder, call):  # whisperX #186 and #843, faster-whisper #341
    code, out, _ = call("transcribe", "*.flac", "output=texts")
    assert code == 0
    assert "2 of 2" in out
    code, _, err = call("transcribe", "*.wav")
    assert code == 2
    assert "no file or folder *.wav" in err


def test_arguments_of_a_script_with_windows_line_ends_say_so():  # PointContrast #16
    with pytest.raises(WrongArguments, match=r"line ends of Unix"):
        read_arguments("extract", ["audio=x", "output=y\r"])


# What is wrong.

OPTIONS = {
    "--audio x": "w2v-attn extract audio=x",
    "--audio=x --layers final embed": "w2v-attn extract audio=x layers=final,embed",
    "-o out": "w2v-attn extract output=out",
    "--dry-run": "w2v-attn extract dry_run=true",
    "a.flac --output_dir out": "w2v-attn extract a.flac output=out",
    "--input_dir 'b c' --output out": "w2v-attn extract 'audio=b c' output=out",
    "-i a.flac": "w2v-attn extract audio=a.flac",
    "--model.checkpoint=x/y": "w2v-attn extract model.checkpoint=x/y",
    "--out_put x": "w2v-attn extract output=x",
    "--model_name_or_path ../last.pt": "w2v-attn extract model.checkpoint=../last.pt",
}


@pytest.mark.parametrize("typed", OPTIONS)
def test_an_option_is_answered_with_the_command_that_works(typed, folder):
    with pytest.raises(WrongArguments) as raised:
        read_arguments("extract", shlex.split(typed))
    assert str(raised.value).endswith(f"options are written key=value: {OPTIONS[typed]}")


NEWCOMERS = {
    "extract nope.flac": "there is no file or folder nope.flac",
    "extract audio": "give it a value: audio=VALUE",
    "extract help": "w2v-attn extract --help",
    "extract audio: x": "audio=VALUE",
    "extract audio = x": "without spaces",
    "extract audio= x": "expected audio=x",
    "extract a.flac audio=x": "audio is given twice",
    "extract model=bse": "Did you mean model=base?",
    "extract model=./mymodell": "Did you mean ./mymodel?",
    "extract model=nope": "a checkpoint is a hub id such as facebook/wav2vec2-base, a folder or a file",
    "extract attention=flash_attention_2": "Did you mean attention=auto?",
    "extract output=afile": "output=afile is a file",
    "extract layers=[final": "a bracket is missing",
    "extract layers=": "layers is empty",
    "extract dry_run=maybe": "expected true or false",
    "extract max_duration=1,5": "max_duration=1,5: expected one value",
    "extract max_duration=2h": "max_duration must be a number, got 2h",
    "extract a.flac dtype=fp16": "Did you mean dtype=float16?",
    "extract +layers=final": "write layers=VALUE, without +",
    "extract output=[x]": "output must be one value",
    "extract batch_size=8": "batches are formed automatically",
    "extract --cfg": "--cfg needs a value",
    "extract ==": "expected key=value",
    "extract data.train=x": "it is one of finetune",
    "extract audio_decoder=inline audio_decoder.timeout=3": "a key of audio_decoder=subprocess only",
    "load nope": "there is no model nope",
    "load a b": "expected one checkpoint",
    "convert nope": "there is no file or folder nope",
    "evaluate names={a": "expected a dictionary of texts",
    "transcribe decoder=4-gram.arpa": "decoder=beam_search decoder.lm=4-gram.arpa",
    "finetune train.csv": "data.train=train.csv",
    "finetune data=train.csv": "data=local data.train=train.csv",
    "finetune epochs=3": "epochs: here training.max_steps (",
    "finetune training.learning_rate=1e-4": "training.learning_rate: here optimizer.lr",
    "finetune training=3": "training is a section, such as training.max_steps=VALUE",
    "finetune training.lora=8": "training.lora is a section, such as training.lora.rank=VALUE",
    "finetune task.vocab=auto": "Did you mean task.vocabulary?",
    "finetune optimizer.factors=[{pattern:x,rate:3}]": "optimizer.factors[].rate. Did you mean lr?",
    "finetune max_steps=3": "Did you mean training.max_steps?",
    "finetune experiment=nope": "there is no experiment nope",
    "benchmark encoder": "expected key=value",
    "finetune --restore-file ../checkpoint_last.pt": "a run is resumed by the same command",  # fairseq #5127
    "finetune data.train = x.csv": "without spaces",  # lightning-transformers #158
    "finetune n_epochs=100 acc_batches=4": "n_epochs: here training.max_steps",  # Chemformer #38
    "finetune task=ctc;": "Did you mean task=ctc?",  # openspeech #77
}


@pytest.mark.parametrize("typed", NEWCOMERS)
def test_what_newcomers_type_is_answered_in_a_line(typed, folder, call):
    there = sorted(folder.rglob("*"))
    code, out, err = call(*shlex.split(typed))
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert NEWCOMERS[typed] in err
    assert len(lines) <= 2
    assert not any(word in err for word in ("Traceback", "EQUAL", "hydra.cc", "Key '"))
    assert sorted(folder.rglob("*")) == there


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_another_tool_is_answered_with_a_key_that_the_command_has(command):
    keys = keys_of(command)
    names = set(keys.names())
    for theirs in set(OTHER_TOOLS) - names - set(FORMER_KEYS):
        said = explain_key(theirs, keys)
        if said.startswith(f"{theirs}: here "):
            assert re.split(r"[ =]", said.removeprefix(f"{theirs}: here "))[0] in names
    for choice in (choice for choice in OTHER_CHOICES.values() if choice.partition("=")[0] in keys.groups):
        name, _, option = choice.partition("=")
        assert option in keys.groups[name].options


def test_all_keys_of_the_trainer_are_known():
    keys = keys_of("finetune")
    for theirs in """
        num_train_epochs learning_rate per_device_train_batch_size warmup_steps gradient_accumulation fp16 output_dir
        model_name_or_path sampling_rate lr epochs batch_size
    """.split():
        assert ": here " in explain_key(theirs, keys) or theirs == "sampling_rate"
    assert "resampled" in explain_key("sampling_rate", keys)


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_has_a_comment(command):
    keys = keys_of(command)
    named = [*keys.keys, *(key for group in keys.groups.values() for key in keys.of_group(group))]
    without = [
        key.name
        for key in named
        if not key.comment and key.kind != "section" and not key.name.endswith(".kind") and ".config." not in key.name
    ]
    assert not without
    assert all(option.comment for group in keys.groups.values() for option in group.options.values())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal_and_names_every_key_and_group(command):
    keys = keys_of(command)
    text = command_help(keys)
    assert max(map(len, text.splitlines())) <= WIDTH
    for name in keys.names():
        if ".config" not in name and not name.endswith((".kind", ".lora", ".schedule")):
            assert re.search(rf"(^|\s){re.escape(name)}(=|\s|$)", text, re.M), name
    assert "$" not in re.sub(r"\$\{bundled:", "", text)
    assert ("experiment=" in text) == (command == "finetune")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_and_choice_is_explained(command):
    keys = keys_of(command)
    for name in keys.names():
        text, known = explain_topic(name, keys)
        assert known
        assert text.startswith(name)
        assert max(map(len, text.splitlines())) <= WIDTH
    for group in keys.groups.values():
        text, _ = explain_topic(group.name, keys)
        assert all(f"{group.name}={option}" in text for option in group.options)


def test_help_of_a_key_says_what_it_is(call):
    code, out, _ = call("extract", "--help", "pooling")
    assert (code, out.splitlines()[0]) == (0, "pooling=none")
    assert "none, mean, statistics" in out
    assert "w2v-attn extract audio=corpus pooling=mean" in out
    assert "Above 0: low-rank" in call("finetune", "--help", "training.lora.rank")[1]
    code, _, err = call("finetune", "--help", "epochs")
    assert code == 2
    assert err.startswith("epochs: here training.max_steps")


def test_help_beside_overrides_shows_their_values(call):
    _, out, _ = call("finetune", "experiment=bundled", "--help")
    assert "training.max_steps=400" in out
    assert "optimizer.lr=0.001" in out


def test_help_of_a_command_waits_for_neither_torch_nor_hydra():
    code = (
        "import sys\nfrom w2v_attn.cli import app\n"
        "try: app.main(['finetune', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'hydra', 'omegaconf', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_the_version_behind_a_command_is_ours(call):
    from w2v_attn import __version__

    assert call("extract", "--version")[1] == f"w2v-attn {__version__}\n"


def test_hydras_flags_are_known():
    from hydra._internal.utils import get_args_parser

    assert set(get_args_parser()._option_string_actions) == set(FLAGS)


def test_hydras_own_help_stays(call):
    assert "See https://hydra.cc" in call("extract", "--hydra-help")[1]
    assert "max_duration: 12" in call("extract", "--cfg", "job", "max_duration=12")[1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abc  \n-w", max_size=300), max_size=3).map("\n".join), st.integers(20, 100))
def test_reflowed_texts_have_the_same_words(text, width):
    made = reflow(text, width)
    assert re.findall(r"\S+", made.replace(" \\\n", "\n")) == re.findall(r"\S+", text)


# Completion.


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ex"], ["extract"]),
        (["extract", "max_"], ["max_duration=", ":files"]),
        (["extract", "model=h"], ["model=hubert_base", "model=hubert_large", ":files"]),
        (["extract", "pooling="], ["pooling=none", "pooling=mean", "pooling=statistics"]),
        (["extract", "audio=x"], [":files"]),
        (["extract", "dry_run=t"], ["dry_run=true"]),
        (["finetune", "training.lora.a"], ["training.lora.alpha="]),
        (["finetune", "task=classification", "task.w"], ["task.width="]),
        (["finetune", "--help", "augm"], ["augmentation"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["nonsense", ""], []),
    ],
)
def test_completion_offers(typed, offered):
    assert [name for name, _ in candidates(typed)] == offered


@pytest.mark.parametrize("command", COMMANDS)
def test_completion_offers_only_what_the_command_accepts(command):
    keys = keys_of(command)
    for name, _ in candidates([command, ""]):
        assert name == ":files" or name.rstrip("=.") in keys.names()
    for key in keys.keys:
        assert all(len(choice.split()) == 1 for choice in choices_of(key))


def test_the_words_of_an_unfinished_line():
    assert split_line(r"w2v-attn extract a\ b 'c d' e") == ["w2v-attn", "extract", "a b", "c d", "e"]
    assert split_line('w2v-attn extract "a b') == ["w2v-attn", "extract", "a b"]
    assert split_line("w2v-attn extract ") == ["w2v-attn", "extract", ""]


@pytest.fixture
def on_path(folder, monkeypatch):
    program = folder / "bin" / "w2v-attn"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m w2v_attn "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


LINES = {
    "w2v-attn tran": ["transcribe"],
    "w2v-attn extract max_d": ["max_duration="],
    "w2v-attn extract model=tin": ["tiny"],
    "w2v-attn extract audio=b": ["b c.flac", "bin"],
    "w2v-attn extract x/d": ["x/d.flac"],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("line", LINES)
def test_bash_completes(line, on_path):
    script = f"{answer(['bash'])[0]}\nCOMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}\n_w2v_attn\n"
    script += "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split("\n")[:-1]) == LINES[line]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize("line", LINES)
def test_fish_completes(line, on_path):
    script = f"{answer(['fish'])[0]}\ncomplete -C {shlex.quote(line)}"
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True)
    offered = sorted(
        found.partition("\t")[0].rpartition("=")[2] or found.partition("\t")[0] for found in done.stdout.splitlines()
    )
    assert [name.rstrip("/") for name in offered] == LINES[line]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_the_script(on_path):
    script = f"autoload -Uz compinit; compinit -u -D\n{answer(['zsh'])[0]}\nprint $_comps[w2v-attn]"
    done = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "_w2v_attn\n"


def test_hydras_way_to_install_completion_gives_ours(call):
    script = call("completion", "bash")[1]
    assert "complete -F _w2v_attn w2v-attn" in script
    assert call("extract", "-sc", "install=bash")[1] == script
    assert call("-sc", "install=bash")[1] == script
    assert call("completion", "tcsh")[0] == 2


def test_sources_that_are_given_several_times_may_be_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["audio=[a.csv,'b c.csv']", "audio=d.csv"]
    assert read_arguments("extract", words).overrides == ("audio=['a.csv','b c.csv','d.csv']",)
    (tmp_path / "[a,b]").touch()
    assert read_arguments("extract", ["audio=[a,b]", "audio=d.csv"]).overrides == ("audio=['[a,b]','d.csv']",)
