"""`w2v-attn verify` passes for every family, finds a fault and its stage, and returns the documented exit codes."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ALL_FAMILIES, SPEECH, large_table, save, tiny_bert, tiny_model
from transformers import Wav2Vec2Config, Wav2Vec2Model

from w2v_attn import load_encoder, replace_attention
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.verification import bounds, comparisons, runners, stages, verifier
from w2v_attn.verification.report import broken, sentences


def proof(folder, *, dtypes=("float32",), count=3, seconds=1.0, backend="auto"):
    request = verifier.VerificationRequest(
        checkpoint=str(folder),
        revision=None,
        language=None,
        rows=list_recordings(SPEECH).rows,
        count=count,
        seconds=seconds,
        dtypes=dtypes,
        device=torch.device("cpu"),
        backend=backend,
    )
    costs = []
    report = verifier.verify(request, costs.append)
    assert sum(costs) == pytest.approx(request.cost)
    return report


def kinds(report, side):
    return {comparison.kind for comparison in report.comparisons if comparison.side == side}


@pytest.mark.parametrize("family", large_table(ALL_FAMILIES))
def test_every_bound_holds_for_every_family(family, tmp_path):
    report = proof(save(tiny_model(family, "ForCTC"), tmp_path / "model"), dtypes=verifier.DTYPES)
    assert list(broken(report)) == []
    assert {comparison.dtype for comparison in report.comparisons} == set(verifier.DTYPES)
    for side in ("alone", "padded"):
        assert kinds(report, side) == {"stage", "gradient", "symbols"}
        seen = {comparison.stage for comparison in report.comparisons if comparison.side == side}
        assert {"conv_1", "conv_7", "embed", "layer_01", "layer_03", "final", "logits"} <= seen
    assert kinds(report, "extract") == {"stage", "batch", "symbols"}
    assert kinds(report, "weights") == kinds(report, "input") == {"stage"}


@pytest.mark.parametrize("positions", ["relative_key", pytest.param("relative", marks=pytest.mark.slow)])
def test_every_bound_holds_for_filter_banks(positions, tmp_path):
    from transformers import SeamlessM4TFeatureExtractor

    tiny_bert(positions, "ForCTC").save_pretrained(tmp_path / "model")
    SeamlessM4TFeatureExtractor().save_pretrained(tmp_path / "model")
    report = proof(tmp_path / "model", dtypes=verifier.DTYPES)
    assert list(broken(report)) == []
    assert kinds(report, "input") == {"stage"}
    assert {"embed", "layer_03", "final", "logits"} <= {comparison.stage for comparison in report.comparisons}


@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
def test_every_bound_holds_for_every_backend(norm_style, backend, tmp_path):
    folder = save(tiny_model(norm_style, "ForCTC"), tmp_path / "model")
    assert list(broken(proof(folder, dtypes=("float64", "float32"), backend=backend))) == []


@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification", "ForPreTraining"])
def test_checkpoints_without_a_ctc_head_are_compared_without_symbols(head, tmp_path):
    report = proof(save(tiny_model("wav2vec2-group", head), tmp_path / "model"))
    assert report.holds
    stages = [c.stage for c in report.comparisons if c.side == "alone" and c.kind == "stage"]
    assert stages[-1] == ("logits" if head == "ForSequenceClassification" else "final")
    assert "symbols" not in kinds(report, "alone")


def test_every_trainable_parameter_has_a_comparison(norm_style, tmp_path):
    model = tiny_model(norm_style, "ForCTC")
    report = proof(save(model, tmp_path / "model"))
    lines = [(c.stage, c.part) for c in report.comparisons if c.side == "alone" and c.kind == "gradient"]
    places = stages.stages_of_parameters(model)
    assert set(lines) == {place for name, place in places.items() if "masked_spec_embed" not in name}
    assert lines[0][0] == "lm_head"
    assert lines[-1][0] == "conv_1"


def fault_of_a_parameter(model):
    with torch.no_grad():
        model.base_model.encoder.layers[1].attention.v_proj.weight.mul_(1.001)


def fault_of_the_scale(model):
    for layer in model.base_model.encoder.layers[1:]:
        options = layer.attention._options
        layer.attention._options = lambda mask, options=options: options(mask)._replace(
            scale=1.01 * options(mask).scale
        )


def fault_of_the_order(model):
    layers = model.base_model.encoder.layers
    layers[1], layers[2] = layers[2], layers[1]


def fault_of_a_gradient(model):
    model.base_model.encoder.layers[1].attention.v_proj.weight.register_hook(lambda gradient: 1.001 * gradient)


FAULTS = {
    "a parameter × 1.001": (fault_of_a_parameter, "stages", "layer_02"),
    "another scale": (fault_of_the_scale, "stages", "layer_02"),
    "two blocks that changed places": (fault_of_the_order, "stages", "layer_02"),
    "a gradient × 1.001": (fault_of_a_gradient, "gradients", "layer_02"),
}


def breaks(monkeypatch, break_it, *, unpad):
    """Add a fault to our attention from here on, with or without unpadding."""

    def replace_and_break(model, **options):
        replace_attention(model, **options)
        if options["unpad"] == unpad:
            break_it(model)
        return model

    monkeypatch.setattr(runners, "replace_attention", replace_and_break)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_ours_is_found_and_its_first_stage_is_named(fault, norm_style, tmp_path, monkeypatch):
    break_it, kind, stage = FAULTS[fault]
    folder = save(tiny_model(norm_style, "ForCTC"), tmp_path / "model")
    breaks(monkeypatch, break_it, unpad=False)
    report = proof(folder)
    assert not report.holds
    assert next(broken(report)).startswith(f"float32, alone, {kind}: broken first at {stage}")


def test_a_fault_of_the_encoder_is_found(tmp_path, monkeypatch):
    def load_and_break(*arguments, **options):
        encoder = load_encoder(*arguments, **options)
        fault_of_a_parameter(encoder.model)
        return encoder

    monkeypatch.setattr(verifier, "Encoder", SimpleNamespace(load=load_and_break))
    found = list(broken(proof(save(tiny_model("wav2vec2-layer"), tmp_path / "model"))))
    assert found
    assert found[0].startswith("float32, extract, stages: broken first at layer_02")


def test_features_that_depend_on_their_neighbours_are_found(group_checkpoint, monkeypatch):
    def extract(self, waveforms, layers):
        found = Encoder.extract(self, waveforms, layers)
        return [{name: x + 3e-5 * number for name, x in one.items()} for number, one in enumerate(found)]

    monkeypatch.setattr(
        verifier,
        "Encoder",
        SimpleNamespace(
            load=lambda checkpoint, **_: type("_", (Encoder,), {"extract": extract})(
                load_checkpoint(checkpoint), device=torch.device("cpu")
            )
        ),
    )
    assert any(
        line.startswith("float32, extract, batch = single: broken first at embed")
        for line in broken(proof(group_checkpoint))
    )


def test_a_flipped_symbol_is_found_and_a_tie_is_not_an_error():
    exact = torch.tensor([[0.0, 1.0, -1.0], [1.0, 1.0 + 1e-9, 0.0]], dtype=torch.float64)
    stages = {"logits": [exact.float()]}
    flipped = {"logits": [exact.float()[:, [1, 0, 2]]]}
    tied = {"logits": [torch.tensor([[0.0, 1.0, -1.0], [1.0, 0.9, 0.0]])]}
    for ours, different in ((stages, 0), (flipped, 1), (tied, 0)):
        found = comparisons.compare_symbols("alone", ours, stages, {"logits": [exact]})
        assert found.worst.value == different


def test_features_of_another_shape_or_with_nan_break_every_bound():
    exact = [torch.ones(3, 2, dtype=torch.float64)]
    for ours in (torch.ones(2, 2), torch.full((3, 2), float("nan"))):
        found = bounds.measure_errors([ours], exact, exact)
        for dtype in verifier.DTYPES:
            assert not all(check.holds for check in bounds.check_stage(dtype, found))


def test_stock_is_never_compared_with_itself(norm_style, monkeypatch):
    model = replace_attention(tiny_model(norm_style), unpad=True)
    runners.restore_model(model)
    assert all(type(module).__module__.startswith(("transformers.", "torch.")) for module in model.modules())
    monkeypatch.setattr(runners, "replace_attention", lambda model, **_: model)
    with pytest.raises(AssertionError, match="itself"):
        runners.patch_model(model, "auto")
    monkeypatch.setattr(runners, "restore_attention", lambda model: model)
    with pytest.raises(AssertionError, match="itself"):
        runners.restore_model(replace_attention(model))


def test_the_effect_of_padding_on_group_norm_features_is_reported(group_checkpoint, layer_checkpoint):
    report = proof(group_checkpoint)
    assert "normalised over all the time" in next(sentences(report))
    assert report.padding.max_abs > 1e-3
    padding = proof(layer_checkpoint).padding
    assert padding.max_abs < 1e-10
    assert not padding.group_norm


def test_the_exit_code_is_0_if_every_bound_holds_and_every_figure_is_written(call, tmp_path, group_checkpoint):
    code, out, _ = call("verify", f"model.checkpoint={group_checkpoint}", "dtypes=[float32]", "output=proof.json", *FEW)
    assert code == 0
    assert re.fullmatch(r"All \d+ bounds hold\.", out.splitlines()[0])
    assert all(word in out for word in ("embed", "layer_03", "∂ conv_1", "logits", "holds", "padding included"))
    record = json.loads((tmp_path / "proof.json").read_text())
    assert record["holds"]
    assert record["broken"] == []
    assert all(entry["holds"] for entry in record["comparisons"])
    assert len(record["recordings"]) == 2


def test_the_exit_code_is_1_if_a_bound_is_broken(call, group_checkpoint, monkeypatch):
    breaks(monkeypatch, fault_of_a_parameter, unpad=True)
    options = ("dtypes=[float32]", "show=summary", *FEW)
    code, out, err = call("verify", f"model.checkpoint={group_checkpoint}", *options)
    assert code == 1
    assert "BROKEN" in out
    assert re.match(r"\d+ of \d+ bounds do not hold\. float32, alone, stages: broken first at layer_02", out)
    assert "padded, stages: broken first at layer_02" in err


FEW = ("recordings=2", "seconds=1")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("dtypes=[float16]", "float64, float32, bfloat16"),
        ("dtypes=[]", "got none"),
        ("show=all", "stages or summary"),
        ("recordings=0", "1 or above"),
        ("seconds=0.01", "too short"),
        ("audio=absent", "no file or folder"),
        ("model.checkpoint=/absent", "there is no folder"),
    ],
)
def test_the_exit_code_of_a_wrong_request_is_2(call, override, says):
    code, _, err = call("verify", override)
    assert code == 2
    assert says in err


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_full_size_configurations_hold(size, tmp_path):
    large = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    large |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    torch.manual_seed(0)
    # Two of the blocks: the others are the same code, and a machine with little memory runs this too.
    model = Wav2Vec2Model(Wav2Vec2Config(num_hidden_layers=2, **(large if size == "large" else {}))).eval()
    assert list(broken(proof(save(model, tmp_path / "model")))) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [{}, {"hidden_size": 1280, "num_attention_heads": 20, "intermediate_size": 5120}],
    ids=["300M", "1B"],
)
def test_full_size_configurations_of_omniasr_hold(sizes, tmp_path):
    import transformers

    torch.manual_seed(0)
    model = transformers.OmniASRAudioModel(transformers.OmniASRAudioConfig(num_hidden_layers=2, **sizes)).eval()
    assert list(broken(proof(save(model, tmp_path / "model")))) == []
