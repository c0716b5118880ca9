"""Small data sets and tokenizers of our own, in the files of public ones, with the faults and habits of those."""

import csv
import io
import json
from itertools import product
from pathlib import Path

import torch
import yaml

PHRASES = yaml.safe_load((Path(__file__).parent / "phrases.yaml").read_text(encoding="utf-8"))
LABELS = ("negative", "neutral", "positive")
EAST = {"chinese": "", "japanese": ""}  # these write no blanks
LEVELS = ("50", "66", "75", "All")
BALANCED = {"train": 9, "valid": 2, "test": 4}  # texts of each label
SIZES = {
    "indonesian": {"train": 10, "valid": 3, "test": 2},
    "malay": {"train": 8, "valid": 3, "test": 4},
    "chinese": {"valid": 6, "test": 5},
    "japanese": {"valid": 6, "test": 5},
}
CHATTER = """
Text: a warm film
Sentiment: positive
[INST] <<SYS>>
Is it negative or positive?
<</SYS>>

a dull film [/INST] negative

Was it good? It was so so. Is it unhappy? I was unhappy with the ending, and she was unhappy too.
terrible terrible terrible meh meh meh wonderful wonderful wonderful great awful bad good 1 2 3
the kindness of the film, the coldness of the drama, the weakness of the sequel


a very long story about a film and some films
""".strip()
PIECES = (
    r"'(?i:s|t|re|ve|m|ll|d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 splits a text before it joins bytes: up to three digits are a piece, without the blank before them."""


def sentences(group: str, label: str) -> list[str]:
    """Return every sentence of a label: each subject with each predicate."""
    words = PHRASES[group]
    return [f"{subject}{EAST.get(group, ' ')}{said}" for said, subject in product(words[label], words["subjects"])]


def pairs(group: str, label: str, joined: str) -> list[str]:
    """Return every two different sentences of a label, joined."""
    single = sentences(group, label)
    return [f"{one}{joined}{other}" for one, other in product(single, single) if one != other]


def write_sst2(folder: Path) -> None:
    """Write GLUE's three files: sentences keep a trailing blank, train repeats some, the test split has no labels."""
    folder.mkdir()
    rows = [(text, label) for label in (0, 1) for text in pairs("reviews", LABELS[2 * label], " , and ")[::3][:320]]
    rows += [*rows[:9], ("never dull", 1), ("a waste", 0)]
    known = [(text, label) for label in (0, 1) for text in sentences("reviews", LABELS[2 * label])[: 20 + 4 * label]]
    for name, part in {"train": rows, "validation": known}.items():
        lines = [f"{text} \t{label}\n" for text, label in part]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines), newline="")
    hidden = [f"{row}\t{text} .\n" for row, text in enumerate(sentences("reviews", "neutral"))]
    (folder / "test.tsv").write_text("index\tsentence\n" + "".join(hidden), newline="")


def write_fpb(folder: Path) -> None:
    """Write the four files of the phrase bank in latin-1, each within the one before; a few sentences come twice."""
    folder.mkdir()
    rows = [(text, label) for label in LABELS for text in sentences("news", label)]
    agreed = [(text, label, LEVELS[(0, 3, 1, 3, 2, 3, 3)[row % 7]]) for row, (text, label) in enumerate(rows)]
    agreed += agreed[1:3]  # the same again
    agreed += [(agreed[row][0], label, "50") for row, label in ((50, "positive"), (60, "negative"))]
    for number, level in enumerate(LEVELS):
        lines = [f"{text}@{label}\r\n" for text, label, least in agreed if LEVELS.index(least) >= number]
        (folder / f"Sentences_{level}Agree.txt").write_bytes("".join(lines).encode("latin-1"))


def write_languages(folder: Path) -> None:
    """Write a folder of files for each of twelve languages; some texts are in two splits, four have a lost letter."""
    for language in sorted(PHRASES.keys() - {"reviews", "news"}):
        (folder / language).mkdir(parents=True)
        parts: dict[str, list[tuple[str, str]]] = {}
        left = {label: sentences(language, label) for label in LABELS}
        for name, size in SIZES.get(language, BALANCED).items():
            parts[name] = [(left[label].pop(0), label) for _ in range(size) for label in LABELS]
        if language in ("french", "indonesian", "malay"):
            parts["valid"][0], parts["test"][-1] = parts["train"][0], parts["train"][-1]
        if language in EAST:
            parts["test"][0] = parts["valid"][0]
        if language == "german":
            lost = [row for row, (text, _) in enumerate(parts["train"]) if "ü" in text][:4]
            for row in lost:
                parts["train"][row] = (parts["train"][row][0].replace("ü", "\ufffd", 1), parts["train"][row][1])
        for name, rows in parts.items():
            with (folder / language / f"{name}.csv").open("w", newline="", encoding="utf-8") as out:
                writer = csv.writer(out, lineterminator="\n")
                writer.writerows([("text", "label", "source"), *((text, label, "ours") for text, label in rows)])


def write_imdb(folder: Path) -> None:
    """Write reviews as CSV with HTML breaks in two of three."""
    folder.mkdir()
    for name, rows in {"train": slice(0, 60, 2), "test": slice(61, 91, 2)}.items():
        with (folder / f"{name}.csv").open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(("text", "label"))
            for label in (0, 1):
                whole, broken = (pairs("reviews", LABELS[2 * label], joined) for joined in (". ", ".<br /><br />"))
                for number in range(*rows.indices(len(whole))):
                    writer.writerow((f'"{(whole if number % 3 == 0 else broken)[number]}."', label))


def texts_to_learn() -> list[str]:
    """Return what the tokenizers are trained on."""
    rows = [text for group in ("reviews", "news", "english") for label in LABELS for text in sentences(group, label)]
    return rows + CHATTER.split("\n") * 20


def write_llama2(folder: Path, size: int) -> None:
    """Write a tokenizer in Llama 2's files: SentencePiece, a blank before the first word, bytes, <s> before a text."""
    import sentencepiece

    folder.mkdir(exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts_to_learn()),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings |= {"add_bos_token": True, "add_eos_token": False, "legacy": False, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_bytes(folder: Path, llama3: bool) -> None:
    """Write a tokenizer of bytes: GPT-2's, whose files name no special token, or Llama 3's, with one before a text."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder.mkdir()
    made = Tokenizer(models.BPE(ignore_merges=llama3))
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not llama3)
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, own]) if llama3 else own
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [text + "\n\n" for text in texts_to_learn()]
    made.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False)
    )
    if llama3:
        made.add_special_tokens([AddedToken(f"<|{name}|>") for name in ("begin_of_text", "end_of_text")])
        first = "<|begin_of_text|>", made.token_to_id("<|begin_of_text|>")
        begins = processors.TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begins])
        special = {"bos_token": first[0], "eos_token": "<|end_of_text|>"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        made.add_special_tokens([AddedToken("<|endoftext|>")])
    made.save(str(folder / "tokenizer.json"))


def write_llama(folder: Path) -> None:
    """Write a whole Llama as the hub has it: random weights, 512 positions, no pad token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    write_llama2(folder, 512)
    shape = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(shape).save_pretrained(folder)
