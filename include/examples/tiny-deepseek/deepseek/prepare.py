"""Raw corpus in, training documents and a tokenizer out.

The pipeline calls ``prepare_data(raw, out)`` in a process of its own, without credentials and without network use of
ours. The contract is small: write ``out/documents.jsonl`` with one ``{"id": ..., "text": ...}`` per line, and a
tokenizer that ``transformers`` can load below ``out/tokenizer/``. Equal input must give equal bytes, because the
dataset version is their digest; so nothing here depends on time, chance or the order of a folder listing.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
MIN_CHARACTERS = 80
# DeepSeek's own spelling: full-width bars and a lower block for the spaces, which no text contains by chance.
BEGIN, END, PAD = (
    f"<\N{FULLWIDTH VERTICAL LINE}{name}\N{FULLWIDTH VERTICAL LINE}>".replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
    for name in ("begin of sentence", "end of sentence", " pad ")
)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TRAILING_BLANKS = re.compile(r"[ \t]+\n")
_BLANK_LINES = re.compile(r"\n{3,}")


def prepare_data(raw: Path, out: Path) -> None:
    """Write ``documents.jsonl`` and ``tokenizer/`` below ``out`` from the JSON-lines shards below ``raw``."""
    documents = list(unique(clean(text_of(raw))))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "documents.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for name, text in documents:
            file.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
    save_tokenizer(train_tokenizer([text for _, text in documents]), out / "tokenizer")


def text_of(raw: Path) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of every line of every ``*.jsonl`` below ``raw``, in the order of the file names."""
    for shard in sorted(raw.rglob("*.jsonl")):
        with shard.open(encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                yield str(document["id"]), str(document["text"])


def clean(documents: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield documents with composed Unicode, no control characters and no trailing blanks; short ones are dropped."""
    for name, text in documents:
        plain = unicodedata.normalize("NFC", text.replace("\r\n", "\n").expandtabs(4))
        plain = _BLANK_LINES.sub("\n\n", _TRAILING_BLANKS.sub("\n", _CONTROL.sub("", plain))).strip()
        if len(plain) >= MIN_CHARACTERS:
            yield name, plain


def unique(documents: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield each text once, whatever its case and spacing: inherited docstrings repeat a lot."""
    seen: set[bytes] = set()
    for name, text in documents:
        key = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()
        if key not in seen:
            seen.add(key)
            yield name, text


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on ``texts``; every byte is in its alphabet, so nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files from which ``transformers.AutoTokenizer`` loads the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
