"""Fine-tuning and evaluation of one label, several labels and values, end to end."""

import csv
import json

import pytest
import soundfile
import torch
import transformers
from conftest import SPEECH, save, tiny_model
from safetensors.torch import load_file
from test_finetuning import Diary, recipe

from w2v_attn import read_audio
from w2v_attn.checkpoints.classification_heads import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.training import finetuning
from w2v_attn.training.options import ClassificationOptions, OptimizerOptions
from w2v_attn.training.tasks.classification import Classification
from w2v_attn.transcription.load_recognizer import load_recognizer

CLIP = SPEECH / "en-us+m5" / "00-three.flac"


def sounds(text):
    return [name for name, occurs in (("long", " " in text), ("has_e", "e" in text), ("has_o", "o" in text)) if occurs]


def measures(path):
    info = soundfile.info(path)
    return {"seconds": info.frames / info.samplerate, "speed": 0.25 * (len(path.name) % 7)}


KINDS = {
    SINGLE_LABEL: lambda path, text: "long" if " " in text else "short",
    MULTI_LABEL: lambda path, text: json.dumps(sounds(text)),
    REGRESSION: lambda path, text: json.dumps(measures(path)),
}
OUTPUTS = {SINGLE_LABEL: ["long", "short"], MULTI_LABEL: ["has_e", "has_o", "long"], REGRESSION: ["seconds", "speed"]}
METRICS = {
    SINGLE_LABEL: {"accuracy", "error", "macro_f1", "loss"},
    MULTI_LABEL: {"micro_f1", "macro_f1", "map", "error", "exact", "loss"},
    REGRESSION: {f"{metric}{output}" for metric in ("r2", "ccc", "mae") for output in ("", "_seconds", "_speed")}
    | {"loss"},
}
REPORTS = {SINGLE_LABEL: {"confusions.png"}, MULTI_LABEL: {"labels.csv", "labels.png"}, REGRESSION: {"scatter.png"}}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Problem -> a list of the bundled clips with labels of this kind."""
    found = {}
    for kind, label in KINDS.items():
        found[kind] = tmp_path_factory.mktemp("labels") / f"{kind}.csv"
        with (SPEECH / "clips.csv").open() as file, found[kind].open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(("path", "label"))
            for row in csv.DictReader(file):
                writer.writerow((SPEECH / row["path"], label(SPEECH / row["path"], row["text"])))
    return found


def asked(kind, lists, **changes):
    made = recipe(ClassificationOptions(width=7), **changes)
    made.data.train, made.data.root = str(lists[kind]), "/"
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_gives_the_same_numbers_in_stocks_pipeline(kind, lists, tmp_path):
    out = tmp_path / "model"
    done = finetuning.finetune(asked(kind, lists), out)
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == kind
    assert list(config["id2label"].values()) == OUTPUTS[kind]
    assert set(done.metrics["valid"]) == METRICS[kind]
    assert REPORTS[kind] <= {path.name for path in (out / "valid").iterdir()}
    wave = read_audio(CLIP)
    ours = load_recognizer(out).recognize(wave)
    theirs = transformers.pipeline("audio-classification", str(out))(wave.numpy(), top_k=None)
    numbers = ours.values if kind == REGRESSION else ours.scores
    assert numbers == {one["label"]: pytest.approx(one["score"], abs=1e-4) for one in theirs}
    card = (out / "README.md").read_text()
    function = {SINGLE_LABEL: "softmax", MULTI_LABEL: "sigmoid", REGRESSION: "none"}[kind]
    assert f'("recording.wav", top_k=None, function_to_apply="{function}")' in card


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_is_kept_measures_the_same_after_training_at_a_rate_of_nearly_zero(kind, lists, call, tmp_path):
    names = dict(enumerate(reversed(OUTPUTS[kind])))  # another order than a new head would have
    model = tiny_model(
        "wav2vec2-group", "ForSequenceClassification", id2label=names, problem_type=kind, classifier_proj_size=5
    )
    folder = save(model, tmp_path / "m")
    made = asked(
        kind,
        lists,
        checkpoint=str(folder),
        optimizer=OptimizerOptions(lr=1e-9),
        training={"max_steps": 2, "eval_steps": 2},
    )
    made.task = ClassificationOptions()
    diary = Diary()
    done = finetuning.finetune(made, tmp_path / "out", diary)
    assert diary.report["head"].startswith("the checkpoint's, kept")
    trained = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(trained["classifier.weight"], model.classifier.weight.data, rtol=0, atol=1e-7)
    valid = [
        json.loads(line)["path"] for line in (tmp_path / "out" / "valid" / "predictions.jsonl").read_text().splitlines()
    ]
    with lists[kind].open() as file, (tmp_path / "valid.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerows(row for number, row in enumerate(csv.reader(file)) if number == 0 or row[0] in valid)
    code, _, err = call("evaluate", f"model.checkpoint={folder}", f"audio={tmp_path / 'valid.csv'}", "root=/")
    assert code == 0, err
    measured = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert measured == {name: pytest.approx(value, abs=1e-4) for name, value in done.metrics["valid"].items()}


@pytest.mark.slow
def test_values_are_learned(lists, tmp_path):
    rows = lists[REGRESSION].read_text().splitlines()
    (tmp_path / "l.csv").write_text("\n".join(rows[:8]))
    made = asked(REGRESSION, lists, training={"max_steps": 100, "eval_steps": 50}, optimizer=OptimizerOptions(lr=5e-3))
    made.data.train, made.task = str(tmp_path / "l.csv"), ClassificationOptions(width=32)
    diary = Diary()
    finetuning.finetune(made, tmp_path / "out", diary)
    losses = list(diary.losses.values())
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    assert diary.report["problem"] == "regression (the labels are named values)"
    assert diary.report["seconds"].startswith("from 0.")


def test_predictions_have_references_and_values_as_numbers(lists, tmp_path):
    finetuning.finetune(asked(REGRESSION, lists), tmp_path / "out")
    lines = (tmp_path / "out" / "valid" / "predictions.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        assert set(record["reference"]) == set(record["hypothesis"]) == set(record["values"]) == {"seconds", "speed"}
        errors = [abs(record["reference"][name] - record["values"][name]) for name in record["reference"]]
        assert record["error"] == pytest.approx(sum(errors) / 2, abs=1e-3)
    assert [json.loads(line)["error"] for line in lines] == sorted(
        (json.loads(line)["error"] for line in lines), reverse=True
    )


def test_one_recording_with_a_bad_number_costs_only_itself(lists, call, tmp_path):
    rows = lists[REGRESSION].read_text().splitlines()
    rows[3] = rows[3].partition(",")[0] + ",loud"
    (tmp_path / "l.csv").write_text("\n".join(rows))
    folder = save(
        tiny_model(
            "wav2vec2-group", "ForSequenceClassification", id2label={0: "speed", 1: "seconds"}, problem_type=REGRESSION
        ),
        tmp_path / "m",
    )
    code, _, err = call("evaluate", f"model.checkpoint={folder}", f"audio={tmp_path / 'l.csv'}", "root=/")
    assert code == 1, err
    failure = json.loads((tmp_path / "evaluation" / "failures.jsonl").read_text())
    assert "has no number for speed, seconds: loud" in failure["reason"]
    assert len((tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()) == len(rows) - 2


def test_metrics_of_one_recording_are_valid_json(lists, call, tmp_path):
    rows = lists[REGRESSION].read_text().splitlines()
    (tmp_path / "l.csv").write_text("\n".join(rows[:2]))
    folder = save(
        tiny_model(
            "wav2vec2-group", "ForSequenceClassification", id2label={0: "speed", 1: "seconds"}, problem_type=REGRESSION
        ),
        tmp_path / "m",
    )
    assert call("evaluate", f"model.checkpoint={folder}", f"audio={tmp_path / 'l.csv'}", "root=/")[0] == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text(), parse_constant=refuse)
    assert found["r2"] is None
    assert found["mae"] > 0


# ------------------------------------------------------------------------------------------------ columns of values


COLUMNS = ["a.wav,0.5,1", "b.wav,,2", "c.wav,1.5,3"]


def values_of(corpus):
    return [json.loads(row.label) for row in corpus.rows]


def test_several_columns_are_the_values_of_a_recording(tmp_path):
    (tmp_path / "l.csv").write_text("\n".join(["path,arousal,valence", *COLUMNS]))
    corpus = list_recordings(tmp_path / "l.csv", columns={"label": ["valence", "arousal"]})
    assert values_of(corpus) == [
        {"valence": "1", "arousal": "0.5"}, {"valence": "2", "arousal": ""}, {"valence": "3", "arousal": "1.5"}
    ]  # fmt: skip
    problem = Classification.from_data(ClassificationOptions(), corpus.rows, None).problem
    assert (problem.type, problem.names) == (REGRESSION, ["valence", "arousal"])
    assert [problem.unusable_reason(row.label) is None for row in corpus.rows] == [True, False, True]
    with pytest.raises(ValueError, match="has no column power"):
        list_recordings(tmp_path / "l.csv", columns={"label": ["power"]})


def test_labels_in_json_keep_their_form(tmp_path):
    records = [{"path": "a.wav", "label": ["é", "b"]}, {"path": "b.wav", "label": {"x": 0.5}}]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert values_of(list_recordings(tmp_path / "l.jsonl")) == [["é", "b"], {"x": 0.5}]


@pytest.mark.parametrize("stored", ["parquet", "disk"])
def test_data_sets_have_lists_of_classes_and_columns_of_values(stored, tmp_path):
    import datasets

    audio = [str(CLIP), str(SPEECH / "en-us+m5" / "21-down.flac")]
    classes = datasets.Sequence(datasets.ClassLabel(names=["no", "yes"]))
    kinds = {"audio": datasets.Value("string"), "label": classes, "x": datasets.Value("float32")}
    features = datasets.Features(kinds)
    made = datasets.Dataset.from_dict({"audio": audio, "label": [[0, 1], []], "x": [0.5, 2.0]}, features=features)
    if stored == "disk":
        made.save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        made.to_parquet(tmp_path / "set" / "train.parquet")
    assert values_of(list_recordings(tmp_path / "set")) == [["no", "yes"], []]
    assert values_of(list_recordings(tmp_path / "set", columns={"label": ["x"]})) == [{"x": 0.5}, {"x": 2.0}]


def test_evaluate_finds_the_columns_of_a_regression_by_its_outputs(call, tmp_path):
    clips = [SPEECH / "en-us+m5" / name for name in ("00-three.flac", "21-down.flac")]
    (tmp_path / "l.csv").write_text(
        "path,seconds,speed\n" + "".join(f"{clip},{n}.5,{n}\n" for n, clip in enumerate(clips))
    )
    names = {0: "speed", 1: "seconds"}
    folder = save(
        tiny_model("wav2vec2-group", "ForSequenceClassification", id2label=names, problem_type=REGRESSION),
        tmp_path / "m",
    )
    code, _, err = call("evaluate", f"model.checkpoint={folder}", f"audio={tmp_path / 'l.csv'}")
    assert code == 0, err
    lines = (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()
    found = {json.loads(line)["path"]: json.loads(line)["reference"] for line in lines}
    assert found == {str(clip): {"speed": n, "seconds": n + 0.5} for n, clip in enumerate(clips)}
