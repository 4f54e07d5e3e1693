"""The stages of a model in the order of computation, and a recorder of their outputs.

`conv_1` … are the convolutions, followed by the modules between them and the blocks under their own names, then
`embed`, `layer_01` … `layer_NN` and `final` as everywhere in this package, and `logits` if there is a head.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from w2v_attn.checkpoints.encoder_parts import base_encoder, encoder_parts
from w2v_attn.encoder import layers

HEADS = ("lm_head", "ctc_head", "classifier", "pooled_classifier")


def compared_model(model: Any) -> Any:
    """Return the part of a loaded model that is compared: all of it if its head returns logits, else its encoder."""
    return model if any(hasattr(model, name) for name in HEADS) else base_encoder(model)


def stage_modules(model: Any) -> dict[str, nn.Module]:
    """Return stage -> module whose output it is, without `embed`, `final` and `logits`, which have no such module."""
    base, found = base_encoder(model), dict[str, nn.Module]()
    parts = encoder_parts(base)
    for name, child in base.named_children():
        if child is parts.feature_encoder:
            found |= {f"conv_{number}": layer for number, layer in enumerate(parts.convolutions, 1)}
            if parts.projection in child.children():  # OmniASR's projects as well
                found[name] = child
        elif child in (parts.encoder, parts.blocks):
            found |= {f"layer_{number:02d}": layer for number, layer in enumerate(parts.blocks, 1)}
        elif child is not parts.norm and any(True for _ in child.parameters()):
            found[name] = child
    return found


def stages_of_parameters(model: Any) -> dict[str, tuple[str, str]]:
    """Return parameter -> (stage, name within it); between the stages, the part of the model that contains it."""
    paths = {module: name for name, module in model.named_modules()}
    stages = {f"{paths[module]}.": stage for stage, module in stage_modules(model).items()}
    encoder = base_encoder(model)
    base = "" if model is encoder else f"{paths[encoder]}."

    def place(name: str) -> tuple[str, str]:
        for path, stage in stages.items():
            if name.startswith(path):
                return stage, name.removeprefix(path)
        parts = name.removeprefix(base).split(".")
        depth = 2 if parts[0] == "encoder" else 1
        return ".".join(parts[:depth]), ".".join(parts[depth:])

    return {name: place(name) for name, _ in model.named_parameters()}


@contextmanager
def record_stages(model: Any) -> Iterator[dict[str, Tensor]]:
    """Record one forward: at the end the yielded dictionary has each stage except `logits`, detached.

    A module that is called several times or not at all is not recorded: some of ours are called for each recording.
    """
    modules = {**stage_modules(model), "final": base_encoder(model)}
    outputs: dict[str, list[Tensor]] = {name: [] for name in modules}

    def keep(name: str) -> Any:
        return lambda _, __, output: outputs[name].append(_first_tensor(output).detach())

    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        blocks = stack.enter_context(layers.record_layers(base_encoder(model), ("embed",)))
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(keep(name)).remove)
        yield found
    for name, tensors in outputs.items():
        if name == "layer_01":
            found["embed"] = blocks["embed"].detach()
        if len(tensors) == 1:
            found[name] = tensors[0]


def _first_tensor(output: Any) -> Tensor:
    """Return the hidden states from the output of a module."""
    if isinstance(output, Tensor):
        return output
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
