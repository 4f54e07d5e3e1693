"""Trains the small checkpoint of this folder from scratch: `python data/make_checkpoint.py` writes data/tiny/.

A wav2vec 2.0 encoder of about a million parameters, in the form of wav2vec2-base (GroupNorm, post-LayerNorm), with a
CTC head on characters. Its attention is this package's, so what trains it is the derived backward. It hears only speech
that make_speech.py makes, with voices that the shipped clips do not use. About half an hour on one core.
"""

import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jiwer
import numpy as np
import torch
from make_speech import HELD_OUT_VARIANTS, SAMPLE_RATE, VARIANTS, Utterance, utterances

from w2v_attn import replace_attention, restore_attention

FOLDER = Path(__file__).parent / "tiny"
SEED = 1
CLIPS = 6000
HELD_OUT_CLIPS = 200
STEPS = 5500
BATCH = 16
PEAK_RATE = 1e-3
WARM_UP = 500
CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"'abcdefghijklmnopqrstuvwxyz"]


def main() -> None:
    """Speaks the training clips, trains, writes the folder, and prints the error on voices that were held out."""
    import transformers
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # so that anybody's run adds up in the same order
    train = speak(utterances(CLIPS, VARIANTS, seed=SEED))
    held_out = speak(utterances(HELD_OUT_CLIPS, HELD_OUT_VARIANTS, seed=SEED + 1))
    log(f"{len(train)} clips, {sum(len(w) for _, w in train) / SAMPLE_RATE / 60:.0f} minutes")

    config = Wav2Vec2Config(
        vocab_size=len(CHARACTERS),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        conv_dim=(32, 48, 64, 96, 96, 128, 128),
        num_conv_pos_embeddings=64,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.05,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.05,
        mask_time_length=5,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = replace_attention(Wav2Vec2ForCTC(config))
    log(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    fit(model, train, held_out)

    FOLDER.mkdir(exist_ok=True)
    restore_attention(model).eval().save_pretrained(FOLDER)
    vocabulary = FOLDER / "vocab.json"
    vocabulary.write_text(json.dumps({c: i for i, c in enumerate(CHARACTERS)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(vocabulary), do_lower_case=True)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(FOLDER)
    extractor.save_pretrained(FOLDER)  # also under the name that older transformers look for


def speak(texts: list[Utterance]) -> list[tuple[str, np.ndarray]]:
    """(text, float32 [samples]) of each utterance; espeak-ng runs in processes of its own."""
    with ThreadPoolExecutor(2) as pool:
        waves = list(pool.map(Utterance.speak, texts))
    return [(utterance.text, wave) for utterance, wave in zip(texts, waves, strict=True)]


def fit(model: torch.nn.Module, train: list[tuple[str, np.ndarray]], held_out: list[tuple[str, np.ndarray]]) -> None:
    """AdamW with warm-up and linear decay, on batches of clips of similar length."""
    rng, noise = random.Random(SEED), np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, max(0.0, (STEPS - step) / (STEPS - WARM_UP)))
    )
    queue: list[list[tuple[str, np.ndarray]]] = []
    started, losses = time.monotonic(), []
    model.train()
    for step in range(STEPS):
        if not queue:
            queue = batches(train, rng)
        pairs = [(text, augment(wave, noise)) for text, wave in queue.pop()]
        loss = model(**collate(pairs)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 500 == 0:
            log(
                f"step {step + 1}: loss {np.mean(losses[-500:]):.3f}, word error rate "
                f"{word_error_rate(model, held_out):.1%} on voices held out, {time.monotonic() - started:.0f} s"
            )


def batches(pairs: list[tuple[str, np.ndarray]], rng: random.Random) -> list[list[tuple[str, np.ndarray]]]:
    """One epoch: shuffled, then sorted by length inside windows, then cut into batches in random order."""
    pairs = rng.sample(pairs, len(pairs))
    window = BATCH * 20
    groups = []
    for start in range(0, len(pairs), window):
        part = sorted(pairs[start : start + window], key=lambda pair: len(pair[1]))
        groups += [part[i : i + BATCH] for i in range(0, len(part) - BATCH + 1, BATCH)]
    rng.shuffle(groups)
    return groups


def augment(wave: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """Some silence around, white noise 15 to 50 dB below, and a small change of speed."""
    if noise.random() < 0.5:
        factor = noise.uniform(0.9, 1.1)
        wave = np.interp(np.arange(0, len(wave) - 1, factor), np.arange(len(wave)), wave)
    wave = np.pad(wave, tuple(noise.integers(0, 3200, 2)))
    level = np.sqrt(np.mean(wave**2)) * 10 ** (-noise.uniform(15, 50) / 20)
    return (wave + level * noise.standard_normal(len(wave))).astype(np.float32)


def collate(pairs: list[tuple[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Normalised, padded waveforms with their mask, and character labels padded with -100."""
    waves = [torch.from_numpy(normalise(wave)) for _, wave in pairs]
    labels = [torch.tensor([CHARACTERS.index(c) for c in text.replace(" ", "|")]) for text, _ in pairs]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_values": pad(waves, batch_first=True),
        "attention_mask": pad([torch.ones(len(w), dtype=torch.long) for w in waves], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def normalise(wave: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1, as Wav2Vec2FeatureExtractor does it."""
    return ((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)).astype(np.float32)


@torch.no_grad()
def word_error_rate(model: torch.nn.Module, pairs: list[tuple[str, np.ndarray]]) -> float:
    """Of the greedy transcripts, one clip at a time."""
    model.eval()
    heard = []
    for _, wave in pairs:
        ids = model(torch.from_numpy(normalise(wave))[None]).logits[0].argmax(-1).unique_consecutive()
        heard.append("".join(CHARACTERS[i] for i in ids if i >= 4).replace("|", " "))
    model.train()
    return jiwer.wer([text for text, _ in pairs], heard)


def log(line: str) -> None:
    """One plain line, at once."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
