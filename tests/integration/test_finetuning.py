"""Fine-tuning end to end, on speech: what it computes, that it resumes after a kill, and what comes out of it."""

import csv
import fcntl
import json
import os
import signal
import time

import pytest
import torch
from conftest import FAMILIES, GROUP_NORM, LAYER_NORM, ROOT, SIZES, SPEECH, TINY, tiny_model
from safetensors.torch import load_file
from started import Started

from w2v_attn import read_audio, replace_attention, restore_attention
from w2v_attn.training import finetuning, resume, trainer
from w2v_attn.training.build_model import build_model
from w2v_attn.training.callbacks import SilentListener
from w2v_attn.training.optimization import add_lora
from w2v_attn.training.options import (
    AugmentationOptions,
    ClassificationOptions,
    CtcOptions,
    DataOptions,
    Factor,
    LoraOptions,
    OptimizerOptions,
    Recipe,
    RegularizationOptions,
    TrainingOptions,
)
from w2v_attn.training.tasks.classification import Classification
from w2v_attn.training.training_errors import DataError, TrainingError
from w2v_attn.transcription.load_recognizer import load_recognizer

CLIPS = str(SPEECH / "clips.csv")
SCRATCH = {"model_type": "wav2vec2", **{k: v for k, v in SIZES.items() if k != "vocab_size"}}
NO_DROPOUT = RegularizationOptions(
    hidden_dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    feat_proj_dropout=0.0,
    final_dropout=0.0,
    layerdrop=0.0,
    mask_time_prob=0.0,
    mask_feature_prob=0.0,
)
DROPOUT = RegularizationOptions(attention_dropout=0.1, hidden_dropout=0.1, layerdrop=0.2, mask_time_prob=0.3)


class Diary(SilentListener):
    """Remembers every loss, and asks for the end after `stop_after` updates."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.losses, self.metrics, self.warnings, self.started_at = {}, {}, [], None
        self.report, self._stop_after = {}, stop_after

    def on_data_report(self, rows):
        self.report = dict(rows)

    def on_train_begin(self, step, max_steps):
        self.started_at = step

    def on_step(self, update, loss):
        self.losses[update] = loss

    def on_evaluate(self, update, metrics, best, warning):
        self.metrics[update] = dict(metrics)
        self.warnings.append(warning)

    def interrupted(self):
        return self._stop_after is not None and len(self.losses) >= self._stop_after


def recipe(task=None, norm=GROUP_NORM, *, data=None, training=None, **changes):
    options = {
        "task": task or CtcOptions(),
        "data": DataOptions(**{"train": CLIPS, **(data or {})}),
        "checkpoint": None,
        "config": {**SCRATCH, **norm},
        "regularization": NO_DROPOUT,
        "optimizer": OptimizerOptions(lr=1e-3),
        "training": TrainingOptions(
            **{"max_steps": 6, "batch_seconds": 6, "eval_steps": 3, "freeze": "none", **(training or {})}
        ),
        **changes,
    }
    return Recipe(**options)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A manifest whose labels are the first words of the clips."""
    path = tmp_path_factory.mktemp("labels") / "clips.csv"
    with open(CLIPS) as file, path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("path", "label", "speaker"))
        for row in csv.DictReader(file):
            writer.writerow((SPEECH / row["path"], "long" if " " in row["text"] else "short", row["speaker"]))
    return {"train": str(path), "root": "/"}


# ---------------------------------------------------------------------------------------------- what it computes


@pytest.mark.slow
@pytest.mark.parametrize("norm", [GROUP_NORM, LAYER_NORM], ids=["group", "layer"])
def test_losses_over_200_updates_are_those_of_stock_attention(norm, tmp_path, monkeypatch):
    asked = recipe(norm=norm, training={"max_steps": 200, "eval_steps": 100, "batch_seconds": 3})
    ours, theirs = Diary(), Diary()
    finetuning.finetune(asked, tmp_path / "ours", ours)
    build = finetuning.build_model
    monkeypatch.setattr(finetuning, "build_model", lambda *arguments: restore_attention(build(*arguments)))
    monkeypatch.setattr("w2v_attn.encoder.waveforms.replace_attention", lambda model, backend: model)
    finetuning.finetune(asked, tmp_path / "theirs", theirs)
    assert len(ours.losses) == len(theirs.losses) == 200
    differences = [abs(ours.losses[n] - theirs.losses[n]) for n in ours.losses]
    assert max(differences) < 1e-4  # float32 noise, on losses from 15 down to 3.6
    assert ours.losses[200] < 0.7 * ours.losses[1]


def test_training_uses_our_backward(tmp_path, monkeypatch):
    from w2v_attn.attention import autograd

    calls = []
    backward = autograd.SelfAttention.backward
    monkeypatch.setattr(autograd.SelfAttention, "backward", staticmethod(lambda *a: calls.append(1) or backward(*a)))
    finetuning.finetune(recipe(training={"max_steps": 2}), tmp_path / "out")
    assert len(calls) == 2 * SIZES["num_hidden_layers"]


def test_accumulated_passes_are_one_update_of_all_their_recordings(tmp_path, monkeypatch):
    """Two passes of a budget, each recording counting the same, give the mean over all of them."""
    counted = []
    compute = trainer.SpeechTrainer.compute_loss

    def watched(self, model, inputs, **options):
        counted.append((len(inputs["frames"]), int(options["num_items_in_batch"])))
        return compute(self, model, inputs, **options)

    monkeypatch.setattr(trainer.SpeechTrainer, "compute_loss", watched)
    finetuning.finetune(recipe(training={"max_steps": 4, "gradient_accumulation_steps": 2}), tmp_path / "out")
    for (first, total), (second, same) in zip(counted[::2], counted[1::2], strict=True):
        assert first + second == total == same


@pytest.mark.slow
def test_a_model_learns_what_it_is_taught(tmp_path):
    """The bundled checkpoint knows none of the lessons' words; four minutes of them and it knows some."""
    diary = Diary()
    asked = recipe(
        checkpoint=str(TINY),
        training={"max_steps": 24, "eval_steps": 12, "batch_seconds": 10},
        optimizer=OptimizerOptions(lr=7e-4),
    )
    asked.data.train = str(ROOT / "data" / "lessons" / "lessons.csv")
    finetuning.finetune(asked, tmp_path / "out", diary)
    assert diary.losses[24] < 0.5 * diary.losses[1]
    assert diary.metrics[24]["cer"] < diary.metrics[12]["cer"]


# --------------------------------------------------------------------------------------------------- resuming


@pytest.mark.slow
@pytest.mark.parametrize(("stop_after", "balanced"), [(3, False), (4, False), (4, True)])
def test_a_stopped_run_resumes_with_the_same_losses(stop_after, balanced, labelled, tmp_path):
    changes = {
        "regularization": DROPOUT,
        "augmentation": AugmentationOptions(speed=[0.9, 1.1], noise=0.5),
        "training": {"max_steps": 9, "gradient_checkpointing": True, "freeze_encoder_steps": 2},
    }
    if balanced:
        changes |= {"task": ClassificationOptions(), "data": {**labelled, "balance": True}}
        changes["training"]["batch_seconds"] = 20  # several passes over the data
    whole, first, second = Diary(), Diary(stop_after), Diary()
    finetuning.finetune(recipe(**changes), tmp_path / "whole", whole)
    assert finetuning.finetune(recipe(**changes), tmp_path / "parts", first).interrupted
    assert finetuning.finetune(recipe(**changes), tmp_path / "parts", second).interrupted is False
    assert second.started_at == stop_after + 1  # a loss is reported after the check whether to stop
    assert {**first.losses, **second.losses} == whole.losses
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def command(output):
    return [
        "finetune", "data=local", f"data.train={CLIPS}", f"output={output}",
        "training.max_steps=25", "training.eval_steps=5", "training.batch_seconds=6", "optimizer.lr=1e-4",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_as_one_that_was_not(call, tmp_path):
    assert call(*command(tmp_path / "whole"))[0] == 0
    out = tmp_path / "killed"
    for wanted in (1, 3):  # once at an early checkpoint, once at a later one
        process = Started(command(out), tmp_path / f"said {wanted}")
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            found = list(out.glob("checkpoints/checkpoint-*/sealed.json"))
            if found and max(int(path.parent.name.split("-")[1]) for path in found) >= 5 * wanted:
                break
            time.sleep(0.01)
        process.send(signal.SIGKILL)
        process.end()
        # And the last checkpoint was torn by it.
        last = max(out.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        os.truncate(last / "optimizer.pt", 1000)
    assert "is torn (optimizer.pt is damaged)" in process.said()
    code, _, err = call(*command(out))
    assert code == 0, err
    assert "resumes after step" in err
    ours, theirs = (load_file(path / "model.safetensors") for path in (out, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (out / "checkpoints").exists()


def test_another_recipe_on_a_started_run_is_refused_with_the_difference(tmp_path):
    finetuning.finetune(recipe(), tmp_path / "out", Diary(stop_after=2))
    with pytest.raises(ValueError, match=r"optimizer\.lr: was 0\.001, now 0\.002"):
        finetuning.finetune(recipe(optimizer=OptimizerOptions(lr=2e-3)), tmp_path / "out")


def test_a_finished_run_and_a_foreign_folder_are_left_alone(tmp_path):
    finetuning.finetune(recipe(), tmp_path / "out")
    with pytest.raises(ValueError, match="contains a finished run"):
        finetuning.finetune(recipe(), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="contains files that are not of a run"):
        finetuning.finetune(recipe(), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_second_run_on_a_folder_is_refused(tmp_path):
    finetuning.finetune(recipe(), tmp_path / "out", Diary(stop_after=1))
    with (tmp_path / "out" / resume.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="in use by another run"):
            finetuning.finetune(recipe(), tmp_path / "out")
    assert not finetuning.finetune(recipe(), tmp_path / "out").interrupted


# ------------------------------------------------------------------------------------------------- it is safe


def test_a_loss_that_is_not_finite_stops_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    real, calls = trainer.losses_of, []

    def broken(*arguments):
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(trainer, "losses_of", broken)
    with pytest.raises(TrainingError, match=r"loss of step 5 is nan\. Try a lower learning rate"):
        finetuning.finetune(recipe(), tmp_path / "out")
    monkeypatch.undo()
    diary = Diary()
    finetuning.finetune(recipe(), tmp_path / "out", diary)
    assert diary.started_at == 3


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    step = torch.optim.AdamW.step

    def broken(self, *arguments, **options):
        step(self, *arguments, **options)
        with torch.no_grad():
            self.param_groups[0]["params"][0].view(-1)[0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    monkeypatch.setattr(trainer, "losses_of", lambda model, batch, task: model.lm_head.weight.sum().repeat(3))
    with pytest.raises(TrainingError, match="are not finite"):
        finetuning.finetune(recipe(), tmp_path / "out")
    assert not list((tmp_path / "out").glob("checkpoints/*/sealed.json"))


def test_a_full_disk_ends_the_run_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    real, saved = torch.save, []

    def full(value, path, *arguments, **options):
        saved.append(path)
        if "checkpoint-6" in str(path):
            raise OSError(28, "No space left on device")
        return real(value, path, *arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"step 6 cannot be written.*No space left"):
        finetuning.finetune(recipe(), tmp_path / "out")
    assert saved
    monkeypatch.undo()
    diary = Diary()
    finetuning.finetune(recipe(), tmp_path / "out", diary)
    assert diary.started_at == 3


def test_a_recording_that_vanishes_ends_the_run_and_its_checkpoints_stay(tmp_path):
    clips = [f"{n}.flac" for n in range(8)]
    for name in clips:
        (tmp_path / name).write_bytes((SPEECH / "en-us+m5" / "00-three.flac").read_bytes())
    (tmp_path / "l.csv").write_text("path,text\n" + "".join(f"{name},three\n" for name in clips))
    asked = recipe(training={"batch_seconds": 1, "eval_steps": 1})
    asked.data.train = str(tmp_path / "l.csv")

    class Vandal(Diary):
        def on_evaluate(self, update, *others):
            if update == 2:
                for name in clips:
                    (tmp_path / name).rename(tmp_path / f"{name}.gone")

    with pytest.raises(TrainingError, match="could be read before training, but now it cannot be read"):
        finetuning.finetune(asked, tmp_path / "out", Vandal())
    for name in clips:
        (tmp_path / f"{name}.gone").rename(tmp_path / name)
    diary = Diary()
    finetuning.finetune(asked, tmp_path / "out", diary)
    assert diary.started_at >= 1


def test_a_model_that_says_blank_everywhere_is_reported(tmp_path):
    diary = Diary()
    done = finetuning.finetune(
        recipe(optimizer=OptimizerOptions(lr=1e-9), training={"max_steps": 1}), tmp_path / "out", diary
    )
    said = [prediction["hypothesis"] for prediction in predictions(tmp_path / "out" / "valid")]
    assert (done.warning is not None) == (said.count("") >= 0.95 * len(said))
    from w2v_attn.training.metrics import Prediction
    from w2v_attn.training.tasks.ctc import Ctc
    from w2v_attn.training.vocabulary import from_texts

    task = Ctc(from_texts(["ab"], unit="characters", case="lower", remove_characters=""))
    empty, right = (Prediction(None, "ab", said, None) for said in ("", "ab"))
    assert "19 of 20 transcripts are empty" in task.warning([empty] * 19 + [right])
    assert task.warning([empty, right]) is None


REFUSED = {
    "no text": (CtcOptions(), "path\na.wav\nb.wav\n", "no recording has a text"),
    "no label": (ClassificationOptions(), "path\na.wav\nb.wav\n", "needs at least two labels; no recording has one"),
    "one label": (ClassificationOptions(), "path,label\na.wav,x\nb.wav,x\n", "all are 'x'"),
    "empty texts": (CtcOptions(), "path,text\na.wav,\nb.wav,\n", "all texts are empty"),
    "texts too long": (
        CtcOptions(),
        f"path,text\na.wav,{'ab' * 99}\nb.wav,{'ab' * 99}\n",
        "CTC needs a frame for each",
    ),
    "an unknown unit": (CtcOptions(unit="phones"), "path,text\na.wav,a\nb.wav,b\n", "task.unit must be one of"),
    "an unknown pooling": (ClassificationOptions(pooling="max"), "path,label\na.wav,a\nb.wav,b\n", "task.pooling"),
    "no vocabulary": (CtcOptions(vocabulary="/absent.json"), "path,text\na.wav,a\nb.wav,b\n", "is not a vocabulary"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_cannot_work_is_refused_and_leaves_nothing(case, tmp_path):
    task, manifest, says = REFUSED[case]
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes((SPEECH / "en-us+m5" / "00-three.flac").read_bytes())
    (tmp_path / "l.csv").write_text(manifest)
    asked = recipe(task)
    asked.data.train = str(tmp_path / "l.csv")
    with pytest.raises(DataError, match=says):
        finetuning.finetune(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_used_is_dropped_with_its_reason(tmp_path):
    good = (SPEECH / "en-us+m5" / "00-three.flac").read_bytes()
    rows = ["path,text,split"]
    for number in range(8):
        (tmp_path / f"{number}.flac").write_bytes(good)
        rows.append(f"{number}.flac,{'three' if number else 'x' * 300},{'valid' if number > 5 else 'train'}")
    (tmp_path / "bad.wav").write_text("no audio")
    rows += ["bad.wav,three,train", "absent.wav,three,train"]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    asked = recipe()
    asked.data.train = str(tmp_path / "l.csv")
    diary = Diary()
    finetuning.finetune(asked, tmp_path / "out", diary)
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in dropped] == ["0.flac", "bad.wav", "absent.wav"]
    assert "300 symbols" not in dropped[1]["reason"]
    assert diary.report["train"].startswith("5 recordings")


def test_a_recording_in_two_splits_is_refused(tmp_path):
    asked = recipe(data={"valid": CLIPS})
    with pytest.raises(DataError, match="is in the train split and in the valid split"):
        finetuning.finetune(asked, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training": {"precision": "float8"}}, "training.precision must be one of"),
        ({"training": {"precision": "float16"}}, "needs a GPU"),
        ({"training": {"fsdp": True}}, "training.fsdp shards a model over GPUs"),
        ({"training": {"max_steps": 0}}, "training.max_steps must be above 0"),
        ({"training": {"freeze": "all"}}, "training.freeze must be one of"),
        ({"device": "tpu"}, "device must be auto, cpu or cuda"),
        ({"config": {"model_type": "bert"}}, "model_type is 'bert'"),
        ({"config": {**SCRATCH, "hidden_size": 25}}, "hidden_size|embed_dim|divisible"),
        ({"optimizer": OptimizerOptions(lr=0.0)}, "optimizer.lr must be above 0"),
    ],
)
def test_an_invalid_recipe_is_reported(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        finetuning.finetune(recipe(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- what comes out


def predictions(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_ctc_folder_is_one_that_stock_loads(tmp_path):
    import transformers

    out = tmp_path / "model"
    asked = recipe(checkpoint=str(TINY), data={"test_share": 0.2})
    done = finetuning.finetune(asked, out)
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "preprocessor_config.json", "vocab.json",
        "tokenizer_config.json", "README.md",
        "recipe.yaml", "curves.png", "results.json", "valid", "test", "tensorboard", "dropped.jsonl",
    }  # fmt: skip
    assert not {"checkpoints", ".lock", ".unfinished"} & names
    wave = read_audio(SPEECH / "en-us+m5" / "00-three.flac")
    heard = transformers.pipeline("automatic-speech-recognition", str(out))(wave.numpy())["text"]
    assert heard == load_recognizer(out).recognize(wave).text == "three"
    found = predictions(out / "test")
    assert [row["error"] for row in found] == sorted((row["error"] for row in found), reverse=True)
    assert (out / "test" / "alignments.txt").read_text().count("REF:") == len(found)
    assert (out / "test" / "speakers.csv").read_text().startswith("speaker,recordings,wer")
    assert json.loads((out / "results.json").read_text())["metrics"] == done.metrics
    card = (out / "README.md").read_text()
    assert "pipeline_tag: automatic-speech-recognition" in card
    assert "batch_seconds: 6" in card


@pytest.mark.parametrize("pooling", ["mean", "attention", "statistics"])
@pytest.mark.parametrize("layers", ["last", "weighted"])
def test_a_classifiers_folder_is_one_that_stock_loads(pooling, layers, labelled, tmp_path):
    import transformers

    asked = recipe(ClassificationOptions(pooling=pooling, layers=layers, width=7), norm=LAYER_NORM)
    asked.data.train, asked.data.root, asked.data.balance = labelled["train"], labelled["root"], True
    asked.training.freeze = "encoder" if layers == "weighted" else "feature_encoder"
    out = tmp_path / "model"
    finetuning.finetune(asked, out)
    wave = read_audio(SPEECH / "en-us+m5" / "00-three.flac")
    ours = load_recognizer(out).recognize(wave)
    stock = transformers.pipeline("audio-classification", str(out), trust_remote_code=pooling != "mean")
    theirs = {found["label"]: found["score"] for found in stock(wave.numpy())}
    assert ours.scores == {label: pytest.approx(score, abs=1e-4) for label, score in theirs.items()}
    assert (out / "valid" / "confusions.png").stat().st_size > 1000


def test_a_frozen_encoder_stays_as_it_was(labelled, tmp_path):
    asked = recipe(ClassificationOptions(layers="weighted", width=7), checkpoint=str(TINY))
    asked.data.train, asked.data.root = labelled["train"], labelled["root"]
    asked.training.freeze = "encoder"
    finetuning.finetune(asked, tmp_path / "out")
    before, after = load_file(TINY / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    shared = [name for name in after if name.startswith("wav2vec2.")]
    assert len(shared) > 50
    assert all(torch.equal(before[name], after[name]) for name in shared)
    assert after["layer_weights"].std() > 0


def test_the_frontend_is_frozen_and_the_head_alone_trains_at_first(tmp_path):
    trained = {"max_steps": 3, "freeze_encoder_steps": 3, "freeze": "feature_encoder"}
    finetuning.finetune(recipe(checkpoint=str(TINY), training=trained), tmp_path / "out")
    before, after = load_file(TINY / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"lm_head.weight", "lm_head.bias"}


def test_low_rank_updates_end_in_ordinary_weights(tmp_path):
    asked = recipe(checkpoint=str(TINY), training={"lora": LoraOptions(rank=4), "freeze": "feature_encoder"})
    finetuning.finetune(asked, tmp_path / "out")
    before, after = load_file(TINY / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) - set(after) == {"wav2vec2.masked_spec_embed"}
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "k_proj", "v_proj", "out_proj", "lm_head"}


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.endswith("layer")])
def test_low_rank_updates_find_the_attention_of_every_family(family):
    model = replace_attention(tiny_model(family, "ForCTC"))
    tuned = add_lora(model, LoraOptions(rank=2))
    learning = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    blocks = tuned.get_base_model().config.num_hidden_layers
    assert sum(".lora_A." in name for name in learning) == 4 * blocks
    assert all(".attention." in name or ".self_attn." in name for name in learning if "lora_" in name)
    assert {name.split(".")[-1] for name in learning if "lora_" not in name} == {"weight", "bias"}  # of the head


def test_targets_that_no_module_has_are_refused_with_those_there_are(caplog):
    model = replace_attention(tiny_model("wav2vec2-group", "ForCTC"))
    with pytest.raises(
        ValueError, match=r"there is no module query, value; the linear maps are intermediate_dense, k_proj"
    ):
        add_lora(model, LoraOptions(rank=2, targets=["query", "value"]))
    add_lora(model, LoraOptions(rank=2, targets=["q_proj", "linear_q"]))
    assert "there is no module linear_q" in caplog.text


def test_a_kept_head_that_weights_the_layers_is_refused_with_lora():
    model = tiny_model("wav2vec2-group", "ForSequenceClassification", use_weighted_layer_sum=True)
    with pytest.raises(ValueError, match=r"task\.layers=weighted and training\.lora cannot be combined"):
        add_lora(model, LoraOptions(rank=2))


def test_words_can_be_the_symbols(tmp_path):
    import transformers

    finetuning.finetune(recipe(CtcOptions(unit="words")), tmp_path / "out")
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "out")
    vocabulary = json.loads((tmp_path / "out" / "vocab.json").read_text())
    path = [vocabulary["play"], 0, vocabulary["|"], vocabulary["red"], vocabulary["red"]]
    assert tokenizer.decode(path) == "play red"


def test_early_stop_ends_a_run_that_no_longer_gets_better(tmp_path):
    diary = Diary()
    asked = recipe(
        training={"max_steps": 50, "eval_steps": 1, "early_stopping_patience": 3}, optimizer=OptimizerOptions(lr=1e-12)
    )
    finetuning.finetune(asked, tmp_path / "out", diary)
    assert len(diary.losses) < 10


def test_bfloat16_trains(tmp_path):
    diary = Diary()
    finetuning.finetune(recipe(training={"precision": "bfloat16", "max_steps": 3}), tmp_path / "out", diary)
    assert all(0 < loss < 1000 for loss in diary.losses.values())


# ------------------------------------------------------------------------------------------ what a review found


def clips_folder(folder, *names, text=b""):
    clip = (SPEECH / "en-us+m5" / "00-three.flac").read_bytes()
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(clip)
    return folder


def test_recordings_of_the_same_name_in_two_splits_keep_their_lengths(tmp_path):
    import soundfile

    names = [f"{label}/{n}.flac" for label in ("a", "b") for n in range(3)]
    clips_folder(tmp_path / "train", *names)
    for name in names:
        path = tmp_path / "valid" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, torch.rand(4800).numpy() - 0.5, 16_000)
    asked = recipe(ClassificationOptions(width=7))
    asked.data.train, asked.data.valid = str(tmp_path / "train"), str(tmp_path / "valid")
    diary = Diary()
    finetuning.finetune(asked, tmp_path / "out", diary)
    assert "longest 0.30 s" in diary.report["valid"]
    assert "longest 0.30 s" not in diary.report["train"]


def test_what_the_model_cannot_say_counts_as_an_error_where_it_is_measured(tmp_path):
    clips_folder(tmp_path, *(f"{n}.flac" for n in range(8)))
    lines = [f"{n}.flac,{'trèz' if n == 7 else 'three'},{'valid' if n > 5 else 'train'}" for n in range(8)]
    (tmp_path / "l.csv").write_text("\n".join(["path,text,split", *lines]), encoding="utf-8")
    asked = recipe()
    asked.data.train = str(tmp_path / "l.csv")
    done = finetuning.finetune(asked, tmp_path / "out")
    assert [row["reference"] for row in predictions(tmp_path / "out" / "valid")].count("trèz") == 1
    assert done.metrics["valid"]["wer"] >= 0.5


def test_names_that_are_no_unicode_come_through_to_the_end(tmp_path):
    names = [b"a/%d\xe9.flac" % n for n in range(6)] + [b"b/%d\xe9.flac" % n for n in range(6)]
    clips_folder(tmp_path / "in", *names)
    asked = recipe(ClassificationOptions(width=7))
    asked.data.train = str(tmp_path / "in")
    finetuning.finetune(asked, tmp_path / "out")
    assert (tmp_path / "out" / "results.json").is_file()


def test_patience_survives_an_interruption(tmp_path):
    changes = {
        "training": {"max_steps": 30, "eval_steps": 1, "early_stopping_patience": 4},
        "optimizer": OptimizerOptions(lr=1e-12),
    }
    whole, first, second = Diary(), Diary(3), Diary()
    finetuning.finetune(recipe(**changes), tmp_path / "whole", whole)
    assert finetuning.finetune(recipe(**changes), tmp_path / "parts", first).interrupted
    finetuning.finetune(recipe(**changes), tmp_path / "parts", second)
    assert max(second.metrics) == max(whole.metrics) < 30


def test_other_data_on_a_started_run_are_refused(tmp_path):
    clips_folder(tmp_path, *(f"{n}.flac" for n in range(9)))
    rows = ["path,text", *(f"{n}.flac,three" for n in range(8))]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    asked = recipe()
    asked.data.train = str(tmp_path / "l.csv")
    finetuning.finetune(asked, tmp_path / "out", Diary(stop_after=2))
    (tmp_path / "l.csv").write_text("\n".join([*rows, "8.flac,three"]))
    with pytest.raises(ValueError, match="was started with another data to train on"):
        finetuning.finetune(asked, tmp_path / "out")
    (tmp_path / "l.csv").write_text("\n".join(rows))
    assert not finetuning.finetune(asked, tmp_path / "out").interrupted


def test_noise_that_cannot_be_used_is_refused_before_training(tmp_path):
    clips_folder(tmp_path / "noise", "hum.flac")
    (tmp_path / "noise" / "bad.wav").write_text("no audio")
    asked = recipe(augmentation=AugmentationOptions(noise=1.0, noises=str(tmp_path / "noise")))
    with pytest.raises(DataError, match=r"noises has 1 recordings that cannot be used: noise bad\.wav"):
        finetuning.finetune(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "noise" / "bad.wav").unlink()
    finetuning.finetune(asked, tmp_path / "out")


def test_a_folder_that_was_empty_is_empty_after_a_refusal(tmp_path):
    (tmp_path / "out").mkdir()
    asked = recipe(augmentation=AugmentationOptions(noise=1.0, noises=str(clips_folder(tmp_path / "n", "a.flac"))))
    (tmp_path / "n" / "a.flac").write_text("no audio")
    with pytest.raises(DataError):
        finetuning.finetune(asked, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_best_checkpoint_is_not_loaded(tmp_path, caplog):
    class Vandal(Diary):
        def on_step(self, update, loss):
            super().on_step(update, loss)
            best = tmp_path / "out" / "checkpoints" / "checkpoint-3" / "model.safetensors"
            if update == 6:
                best.write_bytes(best.read_bytes()[:-4] + b"\0\1\2\3")

        def on_evaluate(self, update, metrics, best, warning):
            assert best == (update == 3)

    asked = recipe(optimizer=OptimizerOptions(lr=1e-12))
    done = finetuning.finetune(asked, tmp_path / "out", Vandal())
    assert done.step == 6
    assert "model.safetensors is damaged: the last weights are used" in caplog.text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": CtcOptions(remove_characters="(")}, "task.remove_characters=\\( is not a regular expression"),
        ({"task": CtcOptions(unit="words"), "checkpoint": str(TINY)}, "the vocabulary consists of characters"),
        ({"optimizer": OptimizerOptions(factors=[Factor(pattern="absent")])}, "no trained parameter matches absent"),
        ({"optimizer": OptimizerOptions(betas=[0.9])}, "optimizer.betas must be two"),
        ({"regularization": RegularizationOptions(mask_time_length=0)}, "mask_time_length must be 1 or above"),
        ({"regularization": RegularizationOptions(mask_time_min_masks=-1)}, "mask_time_min_masks must be 0 or above"),
        ({"data": {"balance": True}}, "data.balance=true needs classes"),
        (
            {"training": {"lora": LoraOptions(rank=2)}, "task": ClassificationOptions(layers="weighted")},
            "cannot be combined",
        ),
    ],
)
def test_options_that_contradict_each_other_are_reported(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        finetuning.finetune(recipe(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layers", ["last", "weighted"])
@pytest.mark.parametrize("pooling", ["mean", "attention", "statistics"])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_classifier_whose_encoder_squeezes_frames_gives_a_batch_what_it_gives_each(layers, pooling, factor):
    """Stock's masks squeezed frames by the lengths that they had before, and squeezes recordings with their padding."""
    sew = {**SCRATCH, "feat_extract_norm": "layer", "model_type": "sew", "squeeze_factor": factor}
    options = ClassificationOptions(layers=layers, pooling=pooling)
    model = build_model(recipe(options, config=sew), Classification(["long", "short"], options), None).eval()
    assert model.config.use_weighted_layer_sum == (layers == "weighted")
    waves = [torch.randn(samples) for samples in (9000, 6100, 4111)]
    values = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    mask = (torch.arange(9000) < torch.tensor([len(wave) for wave in waves])[:, None]).long()
    with torch.no_grad():
        batched = model(values, attention_mask=mask).logits
        alone = torch.cat([model(wave[None]).logits for wave in waves])
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-5)


def test_an_output_below_a_file_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        finetuning.finetune(recipe(), tmp_path / "file" / "out")


def test_low_rank_updates_wait_for_the_head_too(tmp_path):
    trained = {"max_steps": 3, "freeze_encoder_steps": 3, "lora": LoraOptions(rank=2)}
    finetuning.finetune(recipe(checkpoint=str(TINY), training=trained), tmp_path / "out")
    before, after = load_file(TINY / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"lm_head.weight", "lm_head.bias"}
