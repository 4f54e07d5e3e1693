"""Normalization of texts to the symbols of a CTC head: one short, ordered pipeline for training and evaluation.

1. Unicode form: the vocabulary's own, NFC or NFD.
2. Character map: typographic characters become the plain ones that the vocabulary has instead.
3. Case: the vocabulary's, with dotted and dotless i in Turkic languages.
4. Removal: matches of a regular expression become spaces.
5. Word delimiter: its own symbol in a text is a space.
6. White space becomes single spaces.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from w2v_attn.checkpoints.ctc_head import CtcHead

Form = Literal["NFC", "NFD"]
FILE = "text_normalization.json"  # beside the weights of a fine-tuned model
CASES = ("auto", "lower", "upper", "keep")
AUTO = "auto"

# Punctuation that `remove_characters=auto` removes where the vocabulary lacks it.
PUNCTUATION = '.,;:!?"“”„‟«»‹›()[]{}…—–―¿¡、。，；：！？「」『』（）《》〈〉·؟،؛।॥'
# Characters that are written for each other. One that the vocabulary lacks becomes the first that it has.
LOOKALIKES = (
    "'’ʼ´`′＇ʹ",
    '"“”„‟″＂',
    "-‐‑−﹣－",
    "یي",
    "کك",
    "șş",
    "țţ",
    "ȘŞ",
    "ȚŢ",
    "μµ",
)
# An opening quotation mark that is typed for an apostrophe only after a letter: o‘zbek.
OPENING_QUOTE = "‘"
LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st", "ĳ": "ij", "Ĳ": "IJ"}
# Zero-width space, byte order mark, soft hyphen, word joiner, marks of direction, Arabic elongation.
INVISIBLE = "\u200b\ufeff\u00ad\u2060\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u0640"
# Vowels and final consonants, which NFC composes with the consonant before them.
HANGUL_PARTS = frozenset(map(chr, range(0x1160, 0x1200)))
FULL_WIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}

# Languages with a dotted and a dotless i: ISO 639-1 and 639-3.
TURKIC = frozenset("tr tur az aze azj azb crh gag kk-latn tt-latn".split())
# The share of İ among capital I, or of ı among small i, from which texts are taken to be Turkic. A few Turkish names in
# texts of another language stay far below; in Turkish it is about a third.
TURKIC_THRESHOLD = 0.1
ENOUGH_LETTERS = 20


@dataclass(frozen=True)
class TextNormalizer:
    """The normalization of texts.

    Attributes:
        form: "NFC" or "NFD".
        restored: Characters that the form changes, although the vocabulary has them: changed -> as in the vocabulary.
        character_map: Character -> replacement.
        case: "lower", "upper" or "keep".
        dotted_i: Whether I is the capital of ı, and İ that of i.
        remove_characters: A regular expression; its matches become spaces. Empty: none.
        delimiter: The symbol between words, which becomes a space; None: there is none.
    """

    form: Form = "NFC"
    restored: Mapping[str, str] = field(default_factory=dict)
    character_map: Mapping[str, str] = field(default_factory=dict)
    case: str = "keep"
    dotted_i: bool = False
    remove_characters: str = ""
    delimiter: str | None = None

    def __call__(self, text: str) -> str:
        """Return the normalized text."""
        text = self._in_form(text)
        if OPENING_QUOTE in self.character_map:
            text = re.sub(rf"(?<=\w){OPENING_QUOTE}", lambda _: self.character_map[OPENING_QUOTE], text)
        text = text.translate({ord(c): r for c, r in self.character_map.items() if c != OPENING_QUOTE})
        text = self._in_form(self._in_case(text))
        if self.remove_characters:
            text = re.sub(self.remove_characters, " ", text)
        if self.delimiter is not None:
            text = text.replace(self.delimiter, " ")
        return " ".join(text.split())

    def steps(self, texts: Sequence[str] = ()) -> Iterator[str]:
        """Yield a phrase about each step that changes one of the texts; without texts, about every step."""
        characters = set().union(*map(set, texts))
        back = [as_is for new, as_is in self.restored.items() if any(new in self._composed(text) for text in texts)]
        yield f"Unicode {self.form}{f', except {_listed(back)}' if back else ''}"
        used = {c: r for c, r in self.character_map.items() if not characters or c in characters}
        if used:
            yield "map " + ", ".join(f"{_shown(c)} → {_shown(r) if r else 'nothing'}" for c, r in [*used.items()][:20])
        if self.case != "keep":
            yield f"{self.case} case" + (", with dotted and dotless i (İ ↔ i, I ↔ ı)" if self.dotted_i else "")
        if self.remove_characters and not characters:
            yield f"remove {self.remove_characters}"
        elif self.remove_characters and (removed := self._removed(texts)):
            yield f"remove {_listed(removed)}"
        if self.delimiter is not None and self.delimiter in characters - {" "}:
            yield f"{self.delimiter} is a space"
        yield "single spaces"

    def save(self, folder: Path) -> None:
        """Write the normalization into the folder of a model."""
        (folder / FILE).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1), encoding="utf-8")

    def _removed(self, texts: Iterable[str]) -> list[str]:
        """Return what is removed from texts, the most frequent first."""
        plain = replace(self, remove_characters="", delimiter=None)
        found = Counter(match[0] for text in texts for match in re.finditer(self.remove_characters, plain(text)))
        return [text for text, _ in found.most_common()]

    def _composed(self, text: str) -> str:
        return unicodedata.normalize(self.form, text)

    def _in_form(self, text: str) -> str:
        text = self._composed(text)
        for changed, restored in self.restored.items():
            text = text.replace(changed, restored)
        return text

    def _in_case(self, text: str) -> str:
        if self.case == "lower":
            # Python lower-cases İ to i and a combining dot, which no vocabulary has.
            text = text.replace("İ", "i").replace("I\u0307", "i")
            return (text.replace("I", "ı") if self.dotted_i else text).lower()
        if self.case == "upper":
            return (text.replace("i", "İ") if self.dotted_i else text).upper()
        return text


def make_normalizer(
    head: CtcHead,
    *,
    case: str = AUTO,
    remove_characters: str = AUTO,
    character_map: Mapping[str, str] | None = None,
    language: str | None = None,
    texts: Iterable[str] = (),
) -> TextNormalizer:
    """Return the normalization of texts to the symbols of a head.

    Args:
        head: The CTC head.
        case: "lower", "upper", "keep", or "auto": that of the head's letters.
        remove_characters: A regular expression, or "auto": punctuation that the head lacks; none for phones.
        character_map: Character -> replacement, in addition to the typographic ones.
        language: An ISO 639 code, for the case of i; None: it is derived from the head and the texts.
        texts: The texts of the data.
    """
    symbols = head.ordinary
    form, restored = unicode_form(symbols)
    characters = set("".join(symbols))
    case = head.case if case == AUTO else case
    if remove_characters == AUTO:
        remove_characters = "" if head.is_phonetic else punctuation_pattern(characters)
    own = {} if head.is_phonetic else typographic_map(characters, case)
    return TextNormalizer(
        form,
        restored,
        {c: r for c, r in {**own, **(character_map or {})}.items() if c != r},
        case,
        has_dotted_i(language, texts, characters) if case in ("lower", "upper") else False,
        remove_characters,
        head.delimiter,
    )


def load_normalizer(folder: Path, **changes: Any) -> TextNormalizer | None:
    """Return the normalization that a model was fine-tuned with, with changes; None if its folder has none.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return replace(TextNormalizer(**json.loads(path.read_text(encoding="utf-8"))), **changes)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not valid ({error}): delete it, or fine-tune again") from error


def unicode_form(symbols: Iterable[str]) -> tuple[Form, dict[str, str]]:
    """Return the Unicode form of a vocabulary, and what it has in another form: changed by the form -> as it has it."""
    symbols = set(symbols)
    characters = set("".join(symbols))
    composed = any(unicodedata.normalize("NFD", symbol) != symbol for symbol in symbols)
    parts = any(unicodedata.combining(c) or c in HANGUL_PARTS for c in characters)
    form: Form = "NFD" if parts and not composed else "NFC"
    changed = {unicodedata.normalize(form, symbol): symbol for symbol in symbols}
    restored = {new: symbol for new, symbol in changed.items() if new != symbol and new not in symbols}
    if parts and composed:  # some letters composed, others as letter and mark: é, but not ǵ
        for code in range(0xC0, 0x2000):
            composite, parts_of_it = chr(code), unicodedata.normalize("NFD", chr(code))
            if len(parts_of_it) > 1 and composite not in characters and characters.issuperset(parts_of_it):
                restored.setdefault(unicodedata.normalize("NFC", composite), parts_of_it)
    return form, restored


def typographic_map(characters: set[str], case: str) -> dict[str, str]:
    """Return typographic character -> the plain one, of which the vocabulary has only the plain one.

    Args:
        characters: The characters of the vocabulary.
        case: The case of normalized texts; characters are mapped before they are brought into it.
    """

    def known(text: str) -> bool:
        cased = {"lower": text.lower(), "upper": text.upper()}.get(case, text)
        return all(character in characters for character in cased)

    found: dict[str, str] = {}
    for lookalikes in LOOKALIKES:
        plain = next((character for character in lookalikes if known(character)), None)
        if plain is not None:
            found |= {character: plain for character in lookalikes if not known(character)}
    apostrophe = next((character for character in LOOKALIKES[0] if known(character)), None)
    if apostrophe is not None and not known(OPENING_QUOTE):
        found[OPENING_QUOTE] = apostrophe
    for character, plain in (LIGATURES | FULL_WIDTH).items():
        if character not in found and known(plain) and not known(character):
            found[character] = plain
    return found | {character: "" for character in INVISIBLE if character not in characters}


def punctuation_pattern(characters: set[str]) -> str:
    """Return a regular expression of the punctuation that a vocabulary lacks."""
    absent = "".join(re.escape(character) for character in PUNCTUATION if character not in characters)
    return f"[{absent}]" if absent else ""


def has_dotted_i(language: str | None, texts: Iterable[str], characters: Iterable[str] = ()) -> bool:
    """Return whether the case of i is that of Turkic languages.

    The language decides; without one, the texts if they have enough letters i, then the vocabulary, then the texts.
    """
    if language is not None:
        code = language.lower().replace("_", "-")
        return code in TURKIC or code.split("-")[0] in TURKIC
    found: Counter[str] = Counter()
    for text in texts:
        composed = unicodedata.normalize("NFC", text)
        for letter in "iıIİ":
            found[letter] += composed.count(letter)
    for plain, turkic in (("i", "ı"), ("I", "İ")):
        if found[plain] + found[turkic] >= ENOUGH_LETTERS:
            return found[turkic] > TURKIC_THRESHOLD * (found[plain] + found[turkic])
    if vocabulary := set(characters):
        return not vocabulary.isdisjoint("ıİ")
    return any(
        found[turkic] > TURKIC_THRESHOLD * (found[plain] + found[turkic]) for plain, turkic in (("i", "ı"), ("I", "İ"))
    )


def unknown_digits(unknown: Iterable[str]) -> list[str]:
    """Return the digits among symbols, sorted."""
    return sorted(symbol for symbol in unknown if len(symbol) == 1 and unicodedata.category(symbol) in ("Nd", "No"))


def _listed(found: Iterable[str]) -> str:
    """Return texts separated by spaces; of many only the first."""
    found = list(found)
    return " ".join(map(_shown, found[:20])) + (f" … and {len(found) - 20} more" if len(found) > 20 else "")


def _shown(character: str) -> str:
    """Return a character as people can see it: an invisible one by its code point."""
    return " ".join(
        c if c.isprintable() and not unicodedata.combining(c) and c not in INVISIBLE else f"U+{ord(c):04X}"
        for c in character
    )
