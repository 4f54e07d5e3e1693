"""The commands from the command line: all configurations compose, errors say what to do, exit codes are documented."""

import json
import runpy
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, SPEECH, TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from started import Started

from w2v_attn import folders
from w2v_attn.cli import app
from w2v_attn.cli.finetune import recipe_of
from w2v_attn.cli.former_keys import FORMER_CHOICES, FORMER_KEYS
from w2v_attn.cli.process import INTERRUPTED

CONF = ROOT / "conf"
GROUPS = {path.name: [choice.stem for choice in sorted(path.glob("*.yaml"))] for path in sorted(CONF.iterdir())}
# What a choice leaves to the user.
MISSING = {
    ("model", "local"): {"model.checkpoint"},
    ("data", "local"): {"data.train"},
    ("data", "digits"): {"data.train"},
}
ONE_CLIP = next(iter(sorted(SPEECH.rglob("*.flac"))))


def written(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("command", app.COMMANDS)
def test_every_command_composes_with_every_choice_of_its_groups(command):
    OmegaConf.register_new_resolver("bundled", lambda name: f"/data/{name}", replace=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = compose(command)
        assert not OmegaConf.missing_keys(plain)
        groups = {group: choices for group, choices in GROUPS.items() if choices and group in plain}
        for number in range(max(map(len, groups.values()), default=0)):  # one choice of every group at a time
            choices = {group: names[number % len(names)] for group, names in groups.items()}
            chosen = compose(command, [f"{group}={choice}" for group, choice in choices.items()])
            assert OmegaConf.missing_keys(chosen) == set().union(*(MISSING.get(one, set()) for one in choices.items()))
            OmegaConf.to_container(chosen, resolve=True, throw_on_missing=False)


def test_every_attention_choice_is_a_backend_and_every_model_a_checkpoint():
    from w2v_attn.attention.backends.select import BACKENDS

    backends = [OmegaConf.load(path).backend for path in CONF.glob("attention/*.yaml")]
    assert sorted(backends) == sorted(BACKENDS)
    models = {path.stem: OmegaConf.load(path) for path in CONF.glob("model/*.yaml")}
    assert {"tiny", "base", "large", "xlsr_300m", "hubert_base", "hubert_large", "local"} <= set(models)
    assert all(
        set(model) - {"config"} == {"checkpoint", "revision", "language", "base_model"} for model in models.values()
    )


def test_extract_without_arguments_gives_features_of_the_bundled_speech(call, tmp_path):
    from safetensors.torch import load_file

    from w2v_attn import load_encoder, read_audio

    code, out, _ = call("extract")
    assert code == 0
    clips = sorted(SPEECH.rglob("*.flac"))
    assert sum(path.suffix == ".safetensors" for path in written(tmp_path / "features")) == len(clips)
    assert f"{len(clips)} of {len(clips)}" in out
    ours = load_file(tmp_path / "features" / f"{clips[0].relative_to(SPEECH)}.safetensors")["final"]
    import torch

    alone = load_encoder(TINY).extract([read_audio(clips[0])])[0]["final"]
    torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)


def test_some_failures_give_code_1_a_table_and_a_ledger(call, tmp_path):
    audio = tmp_path / "in"
    audio.mkdir()
    (audio / "good.flac").write_bytes(ONE_CLIP.read_bytes())
    (audio / "bad.wav").write_text("hello")
    (audio / "notes.txt").write_text("hello")
    code, out, _ = call("extract", f"audio={audio}", f"output={tmp_path / 'out'}")
    assert code == 1
    assert "1 of 2" in out
    assert "bad.wav" in out
    assert "1 × .txt" in out
    entries = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in entries] == ["bad.wav"]


def test_a_name_with_signs_of_hydras_grammar_needs_no_quotes(call, tmp_path):
    names = ["a b.flac", "a=b.flac", "a,b.flac", "a(b.flac", "[a].flac", "é.flac", "~a.flac", "{a}.flac"]
    for name in names:
        (tmp_path / name).write_bytes(ONE_CLIP.read_bytes())
    code, out, err = call("extract", *(f"audio={name}" for name in names))
    assert code == 0, err
    assert "8 of 8" in out


WRONG = {
    "an unknown key": (["adio=x"], "Did you mean audio?"),
    "an unknown choice": (["model=bse"], "base"),
    "a missing value": (["model=local"], "model.checkpoint"),
    "an empty value": (["audio="], "audio is empty"),
    "no such audio": (["audio=absent"], "no file or folder"),
    "no such checkpoint": (["model.checkpoint=/absent"], "there is no folder /absent"),
    "no such layer": (["layers=[layer_77]"], "layer_77"),
    "no such dtype": (["dtype=float31"], "bfloat16"),
    "no such device": (["device=cuda:99"], "device=auto"),
    "no number": (["max_duration=long"], "max_duration must be a number"),
    "a number below 0": (["max_duration=-1"], "above 0"),
    "no such backend": (["attention.backend=fast"], "auto, tiled, sdpa"),
    "nonsense": (["=="], "w2v-attn extract --help"),
    "no layers": (["layers=null"], "layers must be a list"),
    "no group": (["model=null"], "group override"),
    "no backend": (["attention=null"], "group override"),
    "a name too long": (["audio=" + "a" * 300], "no file or folder"),
    "somebody's home": (["audio='~nobody_123/x'"], "no file or folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_gives_code_2_a_few_lines_and_leaves_nothing(call, tmp_path, case):
    overrides, says = WRONG[case]
    code, _, err = call("extract", *overrides)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("former", FORMER_KEYS)
def test_a_former_key_is_answered_with_the_present_one(former):
    error = ValueError(f"Could not override '{former}'.\nKey '{former}' is not in struct")
    said = app._explain("extract", [f"{former}=1"], error)
    assert said.startswith(f"there is no key {former}. Did you mean {FORMER_KEYS[former]}? ")


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("extract", "store=float16"), ("convert", "dtype=float16"), ("extract", "sum=[0.25,0.75]"),
        ("convert", "pool=mean"), ("extract", "share=3/64"), ("load", "form=torchaudio"),
        ("benchmark", "what=cli"), ("benchmark", "highest=layer_06"), ("finetune", "optimizer.rate=1e-3"),
        ("finetune", "optimizer.schedule.warm_up=0.1"), ("finetune", "training.updates=5"),
        ("finetune", "task.outside=drop"), ("finetune", "task.remove=x"),
    ],
)  # fmt: skip
def test_a_former_key_is_no_key_any_more(command, given, call):
    code, _, err = call(command, given)
    former = given.partition("=")[0]
    assert code == 2
    assert f"there is no key {former}. Did you mean {FORMER_KEYS[former]}?" in err


@pytest.mark.parametrize("former", FORMER_CHOICES)
def test_a_former_choice_is_answered_with_the_present_one(former, call, tmp_path):
    command = "transcribe" if former.startswith("decoder") else "finetune"
    command = "extract" if former.startswith(("long_form", "audio_decoder")) else command
    code, _, err = call(command, former, f"output={tmp_path / 'out'}")
    assert code == 2
    assert f"Did you mean {FORMER_CHOICES[former]}?" in err


def test_names_are_shown_as_they_are(call, tmp_path):
    (tmp_path / "x[").mkdir()
    for name in ("x[/b].wav", "song[live].wav", "a:smile:.wav"):
        (tmp_path / name).write_text("no audio")
    code, out, _ = call("extract", f"audio={tmp_path}", "output=out")
    assert code == 1
    assert all(name in out for name in ("x[/b].wav", "song[live].wav", "a:smile:.wav"))


def test_an_output_that_is_a_file_is_an_error_before_anything_is_loaded(call, tmp_path):
    (tmp_path / "out").touch()
    code, _, err = call("extract", f"audio={ONE_CLIP}", "output=out")
    assert code == 2
    assert "is a file" in err


def test_load_reports_and_saves_a_copy_that_stock_loads(call, tmp_path):
    import transformers

    code, out, _ = call("load", f"output={tmp_path / 'copy'}")
    assert code == 0
    for expected in ("wav2vec2", "group norm", "16,000 Hz", "sdpa", "none", "Wav2Vec2ForCTC"):
        assert expected in out
    transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "copy")
    transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "copy")
    code, _, err = call("load", f"output={tmp_path / 'copy'}")
    assert code == 2
    assert "not an empty folder" in err


@pytest.mark.parametrize("attention", ["auto", "tiled", "sdpa"])
def test_the_selected_backend_is_named(call, attention):
    code, out, _ = call("load", f"attention={attention}")
    assert code == 0
    assert ("tiled on cpu" if attention == "tiled" else "sdpa on cpu") in out


@pytest.mark.parametrize("command", app.COMMANDS)
def test_help_teaches(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    assert "Examples" in out
    assert f"w2v-attn {command}" in out
    assert "All keys" in out


def test_the_command_itself_explains_its_commands(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(f"w2v-attn {command}" in out for command in app.COMMANDS)
    assert call()[0] == 2
    code, _, err = call("extrakt")
    assert code == 2
    assert "no command extrakt" in err
    assert call("--version")[1].startswith("w2v-attn ")


@pytest.mark.slow
def test_scripts_and_the_module_are_the_same_commands(capsys, monkeypatch):
    for script in (ROOT / "scripts").glob("*.py"):
        monkeypatch.setattr(sys, "argv", [str(script), "--help"])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(script), run_name="__main__")
        assert done.value.code == 0
        assert "Examples" in capsys.readouterr().out
        assert len(script.read_text().splitlines()) < 12
    done = subprocess.run([sys.executable, "-m", "w2v_attn", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("w2v-attn:")


def test_help_and_import_do_not_wait_for_torch():
    code = "import sys, w2v_attn.cli.app; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_whole_files_and_a_summary(sent, code, tmp_path):
    audio = tmp_path / "in"
    audio.mkdir()
    for number in range(400):
        (audio / f"{number}.flac").symlink_to(ONE_CLIP)
    command = ["extract", f"audio={audio}", f"output={tmp_path / 'out'}"]
    run = Started(command, tmp_path / "said")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send(sent)
    assert run.end() == code, run.said()
    assert "not reached" in run.said()
    assert "interrupted" in run.said()
    from safetensors import safe_open

    files = written(tmp_path / "out")
    assert len(files) > 1
    assert {file.name for file in files if file.suffix != ".safetensors"} == {"run.json"}
    assert f"w2v-attn {' '.join(command)}" in run.said()  # to go on
    for file in (file for file in files if file.suffix == ".safetensors"):
        with safe_open(file, "pt") as whole:
            assert whole.get_slice("final").get_shape()[1] == 128


def test_hydra_multirun_serves_several_choices(call, tmp_path):
    code, _, _ = call(
        "extract", "--multirun", f"audio={ONE_CLIP}", "attention=tiled,sdpa", "output=out/${attention.backend}"
    )
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sdpa", "tiled"]
    # Each says how it is had alone.
    made_by = json.loads((tmp_path / "out" / "sdpa" / "run.json").read_text())["command"]
    assert made_by.startswith(f"w2v-attn extract audio={ONE_CLIP} attention=sdpa ")
    assert "--multirun" not in made_by


@pytest.mark.parametrize("launcher", ["basic", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_a_sweep_ends_with_the_code_of_its_jobs_and_all_of_them_run(launcher, call, tmp_path):
    """Also where its jobs are processes elsewhere; and the other jobs continue."""
    options = (f"hydra/launcher={launcher}", f"audio={ONE_CLIP}", "output=out/${layers}")
    if launcher == "basic":
        options += ("hydra.sweeper.max_batch_size=1",)
    code, _, err = call("extract", "-m", *options, "layers=layer_99,embed")
    assert code == 2, err
    assert len(list((tmp_path / "out" / "embed").rglob("*.safetensors"))) == 1


def test_a_sweep_that_is_interrupted_begins_no_other_job(call, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(app, "_call", lambda _, config: begun.append(config.layers) or INTERRUPTED)
    code, _, _ = call("extract", "-m", f"audio={ONE_CLIP}", "output=out/${layers}", "layers=final,embed")
    assert code == INTERRUPTED
    assert begun == ["final"]


def test_conf_and_data_are_found_beside_or_above_the_package(monkeypatch, tmp_path):
    assert folders.find("conf") == CONF
    (tmp_path / "conf").mkdir()
    monkeypatch.setattr(folders, "PACKAGE", tmp_path)
    assert folders.find("conf") == tmp_path / "conf"


EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_is_complete_and_of_the_right_types(experiment):
    app._register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("finetune", [f"experiment={experiment}", "data.train=x"])
    recipe = recipe_of(config)
    assert recipe.training.max_steps > 0
    assert recipe.data.train == "x"


# Updates, rate, time mask, channel mask, layerdrop, updates with the encoder frozen: the authors' table.
AUTHORS = {
    "10m": ((13_000, 5e-5, 0.65, 0.25, 0.1, 10_000), (13_000, 1e-4, 0.65, 0.25, 0.1, 10_000)),
    "1h": ((13_000, 5e-5, 0.65, 0.25, 0.1, 10_000), (13_000, 3e-4, 0.75, 0.25, 0.1, 10_000)),
    "10h": ((20_000, 5e-5, 0.65, 0.5, 0.05, 10_000), (20_000, 1e-4, 0.65, 0.25, 0.1, 10_000)),
    "100h": ((80_000, 3e-5, 0.65, 0.5, 0.1, 0), (80_000, 3e-5, 0.5, 0.5, 0.1, 10_000)),
    "960h": ((320_000, 1e-4, 0.5, 0.1, 0.1, 0), (320_000, 3e-5, 0.5, 0.25, 0.1, 10_000)),
}


@pytest.mark.parametrize("labels", AUTHORS)
@pytest.mark.parametrize("size", ["base", "large"])
def test_librispeechs_recipes_have_the_authors_values(labels, size):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("finetune", [f"experiment=librispeech_{labels}_{size}", "data.train=x"])
    recipe = recipe_of(config)
    regularization, training = recipe.regularization, recipe.training
    found = (
        training.max_steps,
        recipe.optimizer.lr,
        regularization.mask_time_prob,
        regularization.mask_feature_prob,
        regularization.layerdrop,
        training.freeze_encoder_steps,
    )
    assert found == AUTHORS[labels][size == "large"]
    assert recipe.checkpoint == {"base": "facebook/wav2vec2-base", "large": "facebook/wav2vec2-large-lv60"}[size]
    assert (regularization.activation_dropout, regularization.mask_feature_length) == (0.1, 64)
    assert (recipe.optimizer.betas, recipe.optimizer.schedule.hold) == ([0.9, 0.98], 0.4)
    samples = training.batch_seconds * 16_000 * training.gradient_accumulation_steps
    assert samples in ({"base": {25_600_000}, "large": {25_600_000, 30_720_000}}[size])


def test_long_recordings_can_be_taken_in_sliding_windows_and_chunks(call, tmp_path):
    from safetensors.torch import load_file

    clip = next(SPEECH.rglob("*seven-*.flac"), sorted(SPEECH.rglob("*.flac"))[0])
    outputs = {}
    for kind in ("full", "sliding_window", "chunked"):
        options = [] if kind == "full" else [f"long_form={kind}", "long_form.seconds=0.6"]
        options += ["long_form.overlap=0.1"] if kind == "chunked" else []
        code, _, err = call("extract", f"audio={clip}", f"output={tmp_path / kind}", *options)
        assert (code, err) == (0, "")
        outputs[kind] = load_file(next((tmp_path / kind).rglob("*.safetensors")))["final"]
    for kind in ("sliding_window", "chunked"):
        assert outputs[kind].shape == outputs["full"].shape
        assert 1e-4 < (outputs[kind] - outputs["full"]).norm() / outputs["full"].norm() < 0.5
    code, _, err = call("extract", f"audio={clip}", "long_form=chunked", "long_form.overlap=20")
    assert code == 2
    assert "less than half" in err
