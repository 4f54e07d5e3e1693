"""One label, several labels, or values: what labels are taken for, losses as stock's, metrics as by hand."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.classification_heads import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.corpus.rows import Row
from w2v_attn.training.build_model import build_model
from w2v_attn.training.metrics import Prediction, finite
from w2v_attn.training.multi_label_metrics import label_metrics, multi_label_metrics
from w2v_attn.training.options import ClassificationOptions, DataOptions, Recipe
from w2v_attn.training.regression_metrics import concordance, output_metrics, regression_metrics
from w2v_attn.training.tasks.classification import Classification, type_of_labels
from w2v_attn.training.tasks.multi_label import MultiLabel, separator_of, split_labels
from w2v_attn.training.tasks.regression import Regression, parse_values
from w2v_attn.training.tasks.single_label import SingleLabel
from w2v_attn.training.training_errors import DataError
from w2v_attn.transcription.load_recognizer import load_recognizer
from w2v_attn.transcription.outputs import Labels, Values


def rows(*labels):
    return [Row(f"{n}.wav", Path(f"{n}.wav"), label=label) for n, label in enumerate(labels)]


def predictions(problem, pairs):
    return [
        Prediction(row, problem.reference(row.label), problem.hypothesis(found), found)
        for row, found in zip(rows(*(label for label, _ in pairs)), (found for _, found in pairs), strict=True)
    ]


# ------------------------------------------------------------------------------------------------------- losses

LABELLED = {
    SINGLE_LABEL: (SingleLabel(["a", "b", "c"]), ["b", "a", "c", "c"]),
    MULTI_LABEL: (MultiLabel(["a", "b", "c"], ";"), ["a;b", "c", "[]", '["a", "c"]']),
    REGRESSION: (Regression("xyz", "xyz"), [json.dumps({"x": 0.5 * n, "y": -n, "z": 7}) for n in range(4)]),
    "one value": (Regression(["value"], ["value"]), ["0.5", "-3", "1e2", ".25"]),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_the_mean_loss_of_recordings_is_that_of_stock(kind):
    from transformers import PretrainedConfig
    from transformers.loss.loss_utils import ForSequenceClassificationLoss

    problem, labels = LABELLED[kind]
    logits = torch.randn(4, len(problem.names))
    targets = torch.tensor([problem.target(label) for label in labels], dtype=problem.target_dtype)
    config = PretrainedConfig(num_labels=len(problem.names), problem_type=problem.type)
    theirs = ForSequenceClassificationLoss(targets.clone(), logits, config)
    assert problem.losses(logits, targets).mean().item() == pytest.approx(theirs.item(), rel=1e-6)


# ------------------------------------------------------------------------------------------------------ metrics


def test_the_concordance_correlation_is_that_of_its_definition():
    true, said = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 3.0, 5.0])
    # Means 2.5 and 3, population variances 1.25 and 1.5, covariance 1.25: 2 · 1.25 / (1.25 + 1.5 + 0.25).
    assert concordance(true, said) == pytest.approx(2.5 / 3)
    assert concordance(true, true) == pytest.approx(1)
    assert concordance(true, -true + 5) == pytest.approx(-1)
    assert concordance(true, np.full(4, 2.5)) == 0
    assert math.isnan(concordance(np.ones(4), np.ones(4)))


def test_metrics_of_a_regression_are_means_over_outputs():
    true, said = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]), np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    found = regression_metrics(true, said)
    # The first output is exact. The second has squared errors of 1 + 0 + 1 against 4 + 0 + 4 of the mean.
    assert found == {
        "r2": pytest.approx((1 + 0.75) / 2),
        "ccc": pytest.approx((1 + 0.8) / 2),
        "mae": pytest.approx(1 / 3),
    }
    each = output_metrics(true, said, ["x", "y"])
    assert each["r2_y"] == pytest.approx(0.75)
    assert each["ccc_y"] == pytest.approx(2 * (4 / 3) / (8 / 3 + 2 / 3))
    assert each["mae_y"] == pytest.approx(2 / 3)


def test_a_metric_that_is_not_defined_is_null_in_json():
    found = regression_metrics(np.array([[1.0]]), np.array([[2.0]]))
    assert finite(found) == {"r2": None, "ccc": None, "mae": 1.0}


def test_several_labels_are_measured_as_by_hand():
    found = [Labels(("a", "b"), {"a": 0.9, "b": 0.6, "c": 0.1}), Labels(("a",), {"a": 0.8, "b": 0.3, "c": 0.2}),
             Labels((), {"a": 0.4, "b": 0.2, "c": 0.3})]  # fmt: skip
    metrics = multi_label_metrics([["a"], ["a", "b"], ["b"]], found, ["a", "b", "c"])
    # a: 2 of 2 found, none too many. b: 0 of 2 found, 1 too many. c does not occur.
    assert metrics["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert metrics["macro_f1"] == pytest.approx((1 + 0) / 2)
    # Ranked by score, b is right at places 2 and 3 of 3: (1/2 + 2/3) / 2.
    assert metrics["map"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert metrics["error"] == pytest.approx(1 - metrics["map"])
    assert metrics["exact"] == pytest.approx(1 / 3 * 0 + 0)
    by_label = {one.label: one for one in label_metrics([["a"], ["a", "b"], ["b"]], found, ["a", "b", "c"])}
    assert by_label["a"].f1 == by_label["a"].average_precision == 1
    assert (by_label["b"].precision, by_label["b"].recall, by_label["b"].recordings) == (0, 0, 2)


def test_a_single_label_that_may_be_absent_is_measured():
    """scikit-learn takes one column for two exclusive classes: absence would count as a label."""
    found = [Labels(("a",), {"a": 0.9}), Labels((), {"a": 0.1}), Labels((), {"a": 0.2})]
    metrics = multi_label_metrics([["a"], [], ["a"]], found, ["a"])
    assert metrics["micro_f1"] == metrics["macro_f1"] == pytest.approx(2 / 3)
    assert metrics["map"] == 1


def test_a_label_that_the_head_lacks_counts_as_missed():
    found = [Labels(("a",), {"a": 0.9}), Labels((), {"a": 0.1})]
    metrics = multi_label_metrics([["a"], ["new"]], found, ["a"])
    assert metrics["micro_f1"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx(1 / 2)


def test_no_label_at_all_is_no_error():
    metrics = multi_label_metrics([[], []], [Labels((), {"a": 0.1}), Labels((), {"a": 0.2})], ["a"])
    assert metrics == {"micro_f1": 1, "macro_f1": 1, "map": 0, "error": 1, "exact": 1}


# ------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "type"),
    [
        (["yes", "no"], SINGLE_LABEL),
        (["0", "1", "9"], SINGLE_LABEL),
        (["0.5", "1", "-2.25"], REGRESSION),
        (["0.5", "1", "many"], SINGLE_LABEL),
        (["a;b", "c"], SINGLE_LABEL),  # a name may have any sign: several labels have to be said
        (['["a", "b"]', "[]"], MULTI_LABEL),
        (["[3, 7]", "[1]"], MULTI_LABEL),
        (["[0.3, 7]", "[1, 2]"], REGRESSION),
        (['{"arousal": 0.3}', '{"arousal": "0.1"}'], REGRESSION),
        (['{"arousal": 3}', '{"arousal": 5}'], REGRESSION),
        (['{"music": 0, "speech": 1}', '{"music": 1, "speech": 0}'], MULTI_LABEL),
        (["[braces]", "yes"], SINGLE_LABEL),
        (["nan", "inf"], SINGLE_LABEL),
    ],
)
def test_labels_are_taken_for_what_they_look_like(labels, type):
    assert type_of_labels(labels)[0] == type
    assert Classification.from_data(ClassificationOptions(), rows(*labels), None).problem.type == type


@pytest.mark.parametrize(
    ("labels", "type", "usable"),
    [
        (['{"a":"1","b":"0"}', '{"a":"0","b":"1"}', '{"a":"","b":""}'], MULTI_LABEL, 2),
        (['{"a": 1, "b": 0}', '{"a": 0, "b": 1}', '{"a": null, "b": NaN}', "n/a"], MULTI_LABEL, 2),
        (['{"a": true, "b": false}', '{"a": false, "b": true}'], MULTI_LABEL, 2),
        (['{"a": "True", "b": "False"}', '{"a": "False", "b": "True"}'], MULTI_LABEL, 2),
        (['{"a": 1, "b": 0}', '{"a": 0, "b": 1}', "loud"], MULTI_LABEL, 2),
        (['{"a": 0.5}', '{"a": 2}', "loud", '{"a": ""}', "-"], REGRESSION, 2),
        (['{"a": 0.5}', '{"a": 2}', '{"a": ""}', "-"], REGRESSION, 2),
        (["[0.1, 0.2]", "[0.3, 0.4]", "[]"], REGRESSION, 2),
        (["[0.1, 0.2]", "[0.3, 0.4]", "[0.5, null]", "n/a"], REGRESSION, 2),
        (['["a"]', '["b"]', "[0.5]"], MULTI_LABEL, 3),
        (['["a"]', "[]", "n/a"], MULTI_LABEL, 2),
        (["3.5", "4.1", "n/a"], REGRESSION, 2),
        (["3.5", "4.1", "nan", "", "-"], REGRESSION, 2),
        (["3.5"] * 9 + ["loud"], REGRESSION, 9),
        (["3.5"] * 8 + ["4.5", "loud", "soft"], SINGLE_LABEL, 11),
        (["3", "4", "n/a"], SINGLE_LABEL, 3),
        (["yes", "no", "0.5"], SINGLE_LABEL, 3),
        (["true", "false"], SINGLE_LABEL, 2),
    ],
)
def test_a_row_without_a_value_costs_only_itself_whatever_the_problem(labels, type, usable):
    assert type_of_labels(labels)[0] == type
    task = Classification.from_data(ClassificationOptions(), rows(*labels), None)
    assert task.problem.type == type
    reasons = [task.unusable_reason(row, 9) for row in rows(*labels)]
    assert reasons.count(None) == usable
    if type == MULTI_LABEL:
        assert not set(task.symbols()) & {"n/a", "loud"}
    assert all(label[:60] in reason for label, reason in zip(labels, reasons, strict=True) if reason)


@pytest.mark.parametrize(
    ("labels", "names", "separator"),
    [
        (["Male speech, man;Music", "Male speech, man"], [], ";"),
        (["a,b", "c"], [], ","),
        (["a|b", "c,d"], [], "|"),
        (["Male speech, man", "Music"], ["Male speech, man", "Music"], None),
        (['["a, b"]', "c"], [], None),
    ],
)
def test_the_separator_is_one_for_all_recordings(labels, names, separator):
    assert separator_of(labels, names) == separator


def test_labels_in_any_notation_are_the_same():
    for written in ("a;b", " b ; a;", '["b", "a", "b"]', '{"a": 1, "b": "1", "c": 0}', '{"a": true, "b": 1.0}'):
        assert set(split_labels(written, ";")) == {"a", "b"}
    assert split_labels("[]", ";") == []


@given(st.lists(st.text(min_size=1).filter(lambda name: name.strip() == name), unique=True))
def test_a_json_list_keeps_every_name(names):
    assert split_labels(json.dumps(names), ";") == names


@pytest.mark.parametrize(
    ("label", "values"),
    [
        ("0.5", {"value": 0.5}),
        (".5", {"value": 0.5}),
        ("-1e3", {"value": -1000}),
        ('{"a": 1, "b": "2.5", "note": "loud"}', {"a": 1, "b": 2.5}),
        ("[1, 2]", {"0": 1, "1": 2}),
        ("0,5", None),
        ("angry", None),
        ("NaN", None),
        ("true", None),
        ('{"a": null}', None),
        ("[" * 10_000, None),
    ],
)
def test_numbers_are_read_from_every_notation(label, values):
    assert parse_values(label) == values


def test_a_recording_without_a_number_for_an_output_costs_only_itself():
    labels = ['{"a": 1.5, "b": 2}', '{"b": 3, "a": 2}', '{"a": 1, "b": 1}', '{"a": 1}', "loud"]
    task = Classification(Regression.of_data(labels, None), ClassificationOptions())
    assert task.symbols() == ["a", "b"]
    reasons = [task.unusable_reason(row, 9) for row in rows('{"b": 3, "a": 2}', '{"a": 1}', "loud", None)]
    assert reasons[0] is None
    assert "no number for b" in reasons[1]
    assert "no number for a, b: loud" in reasons[2]
    assert reasons[3] == "has no label"
    assert task.target(rows('{"b": 3, "a": 2}')[0]) == [2, 3]


@pytest.mark.parametrize(
    ("options", "labels", "says"),
    [
        ({"problem_type": "several"}, ["a", "b"], "task.problem_type must be auto"),
        ({"threshold": 2.0}, ["a", "b"], "task.threshold must be a probability"),
        ({"problem_type": "regression"}, ["angry", "sad"], "needs numbers, but the first label is 'angry'"),
        ({"problem_type": "multi"}, ["a;b", "b;a"], "different labels are needed; all have a, b"),
        ({"problem_type": "single"}, ["1.5", "1.5"], "at least two labels; all are '1.5'"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(options, labels, says):
    with pytest.raises(DataError, match=says):
        Classification.from_data(ClassificationOptions(**options), rows(*labels), None)


# -------------------------------------------------------------------------------------------------------- heads


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Name -> a loaded checkpoint with a head of four channels."""
    folder = tmp_path_factory.mktemp("heads")
    made = {
        "emotions": {"id2label": {0: "sad", 1: "angry", 2: "calm"}},
        "dimensions": {"id2label": {0: "valence", 1: "arousal"}, "problem_type": REGRESSION},
        "sounds": {"id2label": {0: "Speech, man", 1: "Music"}, "problem_type": MULTI_LABEL},
        "quality": {"id2label": {0: "LABEL_0"}},
        "unnamed": {"id2label": {0: "LABEL_0", 1: "LABEL_1"}},
    }
    found = {}
    for name, changes in made.items():
        model = tiny_model("wav2vec2-group", "ForSequenceClassification", classifier_proj_size=4, **changes)
        found[name] = load_checkpoint(save(model, folder / name), with_head=True)
    return found


KEPT = {
    "fewer labels": ("emotions", {}, ["angry", "sad"], ["sad", "angry", "calm"]),
    "its problem type": ("sounds", {}, ["Speech, man", "Music"], ["Speech, man", "Music"]),
    "its separator": ("sounds", {}, ["Speech, man;Music", "Music"], ["Speech, man", "Music"]),
    "another order": ("dimensions", {}, ['{"arousal": 1, "valence": 0.5}'] * 2, ["valence", "arousal"]),
    "a list": ("dimensions", {}, ["[0.5, 1]", "[1, 2]"], ["valence", "arousal"]),
    "one value, whatever its name": ("quality", {}, ['{"mos": 3.5}', '{"mos": 1}'], ["LABEL_0"]),
    "one value without a name": ("quality", {}, ["3.5", "1"], ["LABEL_0"]),
    "whole numbers as values": ("quality", {}, ["3", "1"], ["LABEL_0"]),
    "a type that the config leaves out": ("emotions", {"problem_type": "multi"}, ["angry;sad", "sad"],
                                          ["sad", "angry", "calm"]),
    "the same structure": ("emotions", {"width": 4, "pooling": "mean", "layers": "last"}, ["angry", "sad"],
                           ["sad", "angry", "calm"]),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_a_head_whose_outputs_fit_is_kept_with_its_weights(case, heads):
    name, options, labels, outputs = KEPT[case]
    checkpoint = heads[name]
    task = Classification.from_data(ClassificationOptions(**options), rows(*labels), checkpoint)
    assert task.keeps_head
    assert task.symbols() == outputs
    assert task.head_reason.startswith("the checkpoint's, kept: ")
    recipe = Recipe(task=ClassificationOptions(**options), data=DataOptions(train=""), checkpoint="")
    trained, stock = build_model(recipe, task, checkpoint).state_dict(), checkpoint.model.state_dict()
    assert all(torch.equal(trained[key], stock[key]) for key in stock if "masked_spec_embed" not in key)


NEW = {
    "other labels": ("emotions", {}, ["angry", "bored"],
                     "the checkpoint's outputs are sad, angry, calm, the data's are angry, bored"),
    "values for labels": ("emotions", {}, ["0.5", "1.5"], "the checkpoint's outputs are sad, angry, calm"),
    "labels for values": ("dimensions", {}, ["angry", "sad"], "the checkpoint's outputs are valence, arousal"),
    "a subset of the values": ("dimensions", {}, ['{"arousal": 0.5}', '{"arousal": 1}'], "the data's are arousal"),
    "several values without names": ("unnamed", {}, ['{"a": 0.5, "b": 1}', '{"a": 1, "b": 1.5}'],
                                     "are LABEL_0, LABEL_1"),
    "another problem": ("sounds", {"problem_type": "single"}, ["Music", "Speech, man"],
                        "is for multi_label_classification, not for single_label_classification"),
    "another width": ("emotions", {"width": 5}, ["angry", "sad"], "has width=4, not 5"),
    "another pooling": ("emotions", {"pooling": "attention"}, ["angry", "sad"], "has pooling=mean, not attention"),
}  # fmt: skip


@pytest.mark.parametrize("case", NEW)
def test_a_new_head_is_announced_with_its_reason_and_consequence(case, heads):
    name, options, labels, says = NEW[case]
    task = Classification.from_data(ClassificationOptions(**options), rows(*labels), heads[name])
    assert not task.keeps_head
    assert task.head_reason.startswith("new: ")
    assert says in task.head_reason
    assert task.head_reason.endswith("; it starts from random weights")


def test_a_given_problem_type_overrides_one_that_is_not_known(tmp_path):
    model = tiny_model("wav2vec2-group", "ForSequenceClassification", id2label={0: "sad", 1: "angry"})
    model.config.problem_type = "foo"
    checkpoint = load_checkpoint(save(model, tmp_path / "m"), with_head=True)
    task = Classification.from_data(ClassificationOptions(problem_type="single"), rows("sad", "angry"), checkpoint)
    assert task.keeps_head
    assert (task.problem.type, task.symbols()) == (SINGLE_LABEL, ["sad", "angry"])
    with pytest.raises(CheckpointError, match=r"problem_type=foo, .*or say task\.problem_type="):
        Classification.from_data(ClassificationOptions(), rows("sad", "angry"), checkpoint)
    with pytest.raises(CheckpointError, match=r"problem_type=foo, .*or say problem_type="):
        load_recognizer(checkpoint.folder)


def test_a_new_regression_starts_from_the_means_of_the_training_data(heads):
    labels = ['{"level": -20.5, "year": 1990}', '{"level": -21.5, "year": 2000}']
    for pooling in ("mean", "attention"):
        options = ClassificationOptions(pooling=pooling)
        task = Classification.from_data(options, rows(*labels), heads["emotions"])
        model = build_model(Recipe(task=options, data=DataOptions(train=""), checkpoint=""), task, heads["emotions"])
        bias = model.classifier.bias if pooling == "mean" else model.pooled_classifier.bias
        assert bias.tolist() == [-21, 1995]


# --------------------------------------------------------------------------------------------------- evaluation


def recognizer(heads, name, **options):
    return load_recognizer(heads[name].folder, **options)


@pytest.mark.parametrize(
    ("name", "labels", "says"),
    [
        ("emotions", ["Angry", "Sad"], "no label of the recordings is one of the checkpoint's: they have Angry, Sad"),
        ("unnamed", ["angry"],
         r"does not say what its outputs mean: they are called LABEL_0, LABEL_1. .*names=\{angry: LABEL_0"),
        ("dimensions", ["angry"], r"gives numbers \(valence, arousal\), but the first label is 'angry'"),
        ("dimensions", ['{"mos": 1}'], "have numbers for mos; the checkpoint gives valence, arousal"),
        ("emotions", [None], "no recording has a label"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_compared_are_refused_before_anything_is_computed(name, labels, says, heads):
    with pytest.raises(DataError, match=says):
        Classification.from_recognizer(recognizer(heads, name), rows(*labels))


def test_labels_that_the_checkpoint_lacks_are_named(heads, caplog):
    Classification.from_recognizer(recognizer(heads, "emotions"), rows("angry", "bored"))
    assert "the checkpoint has no output for bored: such recordings count as errors" in caplog.text


def test_more_values_than_outputs_are_no_problem(heads):
    task = Classification.from_recognizer(
        recognizer(heads, "dimensions"), rows('{"arousal": 1, "dominance": 2, "valence": 3}')
    )
    assert task.target(rows('{"arousal": 1, "dominance": 2, "valence": 3}')[0]) == [3, 1]


def test_one_recording_with_a_number_for_each_output_is_enough_to_measure(heads):
    labels = ['{"arousal": 1}', '{"arousal": 2}', '{"arousal": 3, "valence": 1}']
    task = Classification.from_recognizer(recognizer(heads, "dimensions"), rows(*labels))
    reasons = [task.unusable_reason(row, 9) for row in rows(*labels)]
    assert reasons == [*(f"has no number for valence: {label}" for label in labels[:2]), None]


def test_a_name_that_few_recordings_have_a_number_for_is_reported_and_no_output():
    labels = ['{"a": 1}', '{"a": 2}', '{"b": 1, "a": 3}']
    problem = Regression.of_data(labels, None)
    assert problem.names == ["a"]
    report = dict(problem.describe(rows(*labels)))
    assert report["no outputs"] == "b (1 of 3): most training recordings have no number for them"
    assert "no outputs" not in dict(Regression.of_data(labels[:2], None).describe(rows(*labels[:2])))


def test_the_order_of_names_does_not_split_recordings():
    labels = ['{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"a": 1}', '{"a": 1}', '{"b": 2, "a": 1}']
    assert Regression.of_data(labels, None).names == ["a", "b"]


def test_a_model_that_learned_nothing_is_reported():
    problem = Regression(["x"], ["x"])
    same = predictions(problem, [(f'{{"x": {n}}}', Values({"x": 1.5})) for n in range(4)])
    assert "every prediction is about x 1.5" in problem.warning(same)
    other = predictions(problem, [(f'{{"x": {n}}}', Values({"x": 1.5 + n / 10})) for n in range(4)])
    assert problem.warning(other) is None
    several = MultiLabel(["a"], ";")
    assert "no recording gets a label" in several.warning(predictions(several, [("a", Labels((), {"a": 0.1}))]))


def test_reports_are_written(tmp_path):
    problem = Regression(["x", "y"], ["x", "y"])
    values = [(f'{{"x": {n}, "y": {n * n}}}', Values({"x": n + 0.5, "y": 2.0})) for n in range(5)]
    problem.report(predictions(problem, values), tmp_path)
    assert (tmp_path / "scatter.png").stat().st_size > 1000
    several = MultiLabel(["a", "b"], ";")
    found = [("a;b", Labels(("a",), {"a": 0.9, "b": 0.1})), ("b", Labels((), {"a": 0.1, "b": 0.2}))]
    several.report(predictions(several, found), tmp_path)
    assert (tmp_path / "labels.png").stat().st_size > 1000
    assert (tmp_path / "labels.csv").read_text().splitlines()[:2] == [
        "label,recordings,precision,recall,f1,average_precision",
        "a,1,1.0000,1.0000,1.0000,1.0000",
    ]


def test_options_of_a_kept_head_are_those_of_the_checkpoint(heads):
    asked = ClassificationOptions()
    task = Classification.from_data(asked, rows("angry", "sad"), heads["emotions"])
    assert task.config_changes()["classifier_proj_size"] == 4
    assert dataclasses.asdict(asked)["width"] is None
    new = Classification.from_data(asked, rows("angry", "glad"), heads["emotions"])
    assert new.config_changes()["classifier_proj_size"] == 256
