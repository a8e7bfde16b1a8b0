"""Makes the tokenizers of this folder, and records what Python's `tokenizers` does with texts that are easily got wrong.

    pip install tokenizers sentencepiece protobuf
    python make.py

Each tokenizer has the structure of a well-known one (its normalizer, its pre-tokenizer, its model, its decoder and its added tokens), and a few
hundred tokens, trained on a part of the plays in `models/data`. `recorded.json` has the texts, and for each tokenizer the tokens of each text and
what they are decoded to (null: the text).
"""

import gzip
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

HERE = Path(__file__).parent
PLAYS = gzip.decompress((HERE / "../../../../data/shakespeare/shakespeare.txt.gz").read_bytes()).decode()
LINES = PLAYS[:150_000].splitlines(keepends=True)
# Characters that a small vocabulary shall have beside those of the plays.
OTHERS = ["Ça va? Où êtes-vous, là-bas? Naïve façade.\n", "Привет, как дела? Всё хорошо.\n", "12345 67 8.90\n"] * 20

GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def train(model, trainer, normalizer=None, pre_tokenizer=None, decoder=None, post_processor=None):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(LINES + OTHERS, trainer)
    if decoder is not None:
        tokenizer.decoder = decoder
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def byte_level_bpe(pre_tokenizer, special=(), size=400, **more):
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    keys = {key: more.pop(key) for key in ["ignore_merges"] if key in more}
    return train(models.BPE(**keys), trainer, pre_tokenizer=pre_tokenizer, decoder=decoders.ByteLevel(), **more)


def byte_tokens():
    return [f"<0x{byte:02X}>" for byte in range(256)]


def gpt2():
    return byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"],
                          post_processor=processors.ByteLevel(trim_offsets=False))


def roberta():
    tokenizer = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<s>", "</s>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


def llama3():
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = byte_level_bpe(split, ignore_merges=True)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    tokenizer.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[
        ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))])
    return tokenizer


def qwen():
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = byte_level_bpe(split, normalizer=normalizers.NFC())
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return tokenizer


def falcon():
    return byte_level_bpe(pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(), pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]), ["<|endoftext|>"])


def bloom():
    return byte_level_bpe(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(BLOOM), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), ["<unk>", "<s>", "</s>", "<pad>"])


def sentencepiece_bpe(normalizer, pre_tokenizer, decoder):
    """BPE with a token for each byte, trained on words and used as the arguments say."""
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens()],
                                  show_progress=False)
    tokenizer = train(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), trainer,
                      pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoder)
    parts = json.loads(tokenizer.to_str())
    # The bytes are tokens of the model, and not added.
    parts["added_tokens"] = parts["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    return tokenizer


def spaces_of_llama():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                              decoders.Strip(" ", 1, 0)])


def llama2():
    return sentencepiece_bpe(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None,
                             spaces_of_llama())


def mistral():
    return sentencepiece_bpe(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), spaces_of_llama())


def gemma():
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = sentencepiece_bpe(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                                  decoder)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "\t"]])
    return tokenizer


def charsmap():
    """A map of characters in the format of SentencePiece, with a few of the rules of its `nmt_nfkc`."""
    rules = [("\t", " "), ("\n", " "), ("\r", " "), ("\u00a0", " "), ("\u3000", " "), ("\u200b", " "), ("\u200d", " "),
             ("\u00ad", ""), ("\ufeff", ""), ("\ufb01", "fi"), ("\uff21", "A"), ("\uff11", "1"), ("\u2126", "\u03a9"),
             ("\u00bd", "1\u20442"), ("e\u0301", "\u00e9"), ("\u2026", "...")]
    points = lambda text: " ".join(f"{ord(c):X}" for c in text)
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write("".join(f"{points(old)}\t{points(new)}\n" for old, new in rules))
        file.flush()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, vocab_size=100,
                                                 normalization_rule_tsv=file.name, minloglevel=2)
    proto = model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto.normalizer_spec.precompiled_charsmap


def unigram(normalizer, pre_tokenizer, decoder, special=("<pad>", "</s>", "<unk>")):
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=list(special), unk_token="<unk>",
                                      show_progress=False)
    return train(models.Unigram(), trainer, normalizer, pre_tokenizer, decoder)


def t5():
    tokenizer = unigram(normalizers.Sequence([normalizers.Precompiled(charsmap()), normalizers.Replace(Regex(" {2,}"), " ")]),
                        pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace(prepend_scheme="always"))
    tokenizer.add_special_tokens([AddedToken("<extra_id_0>", rstrip=False, lstrip=False)])
    return tokenizer


def xlm_roberta():
    return unigram(normalizers.Sequence([normalizers.Precompiled(charsmap()), normalizers.Strip(left=False, right=True),
                                         normalizers.Replace(Regex(" {2,}"), "▁")]),
                   pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
                   decoders.Metaspace())


def unigram_first():
    return unigram(None, pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(prepend_scheme="first"))


def bert():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    return train(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100), trainer,
                 normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer(),
                 decoders.WordPiece(prefix="##"), processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)))


def words():
    trainer = trainers.WordLevelTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    return train(models.WordLevel(unk_token="[UNK]"), trainer, pre_tokenizer=pre_tokenizers.Whitespace())


def characters_bpe():
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], end_of_word_suffix="</w>",
                                  show_progress=False)
    return train(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), trainer,
                 normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), pre_tokenizers.WhitespaceSplit(),
                 decoders.BPEDecoder("</w>"))


def added():
    """Added tokens with every option."""
    tokenizer = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizer=normalizers.Lowercase())
    tokenizer.add_tokens([
        AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False),
        AddedToken("king", single_word=True, normalized=True), AddedToken("New York", normalized=True),
        AddedToken("<both>", lstrip=True, rstrip=True, single_word=True), AddedToken("line\nend", normalized=False)])
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def expressions():
    """Regular expressions that other libraries than Oniguruma read in another way."""
    split = [pre_tokenizers.Split(Regex(text), "isolated") for text in
             [r"^[ \t]+|,$", r"\w+|[^\w\s]+", r"\bk|\B[[:alpha:]]\B", r"[^[:punct:]\W]+", r"[\^$[:upper:]]"]]
    return byte_level_bpe(pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
                          normalizer=normalizers.Replace(Regex(r"^-|\bthe\b"), "THE"))


TEXTS = [
    "", " ", "\n", "\r\n", "\t", "  \n \n\n  ", "To be, or not to be: that is the question.",
    "  leading and trailing white space \t ", "one\ntwo\r\nthree\rfour\n\nfive\r\n\r\nsix\n\n\nseven", "line\n  indented\n\tby a tab\n",
    "x\n\n y", "a \nb  c   d\n e", "no\u00a0break\u2003em\u3000wide\u200bzero\u2028line\u0085next\u000bvertical\fform",
    "Cafe\u0301 caf\u00e9 \u0301 a\u0308\u0304 \u1e69 s\u0323\u0307 \u2126 \ufb01ne \u00bd \uff21\uff11", "\u0130stanbul \u00df \u03a3\u03c3\u03c2 Ca va? \u00c7a va!",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd\U0001f1e9\U0001f1ea \u2764\ufe0f", "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \u0928\u092e\u0938\u094d\u0924\u0947",
    "Привет, как дела? \u0627\u0644\u0633\u0644\u0627\u0645 \u05e9\u05dc\u05d5\u05dd",
    "it's we'll I'M THEY'RE 'tis don\u2019t", "1 12 123 1234 12345.678 3\u00b2 \u2167 \u0663", "a\u0000b \u0007 \ufffd \ufeff \u00ad end",
    "!!!??? ...--- (a) [b] {c} <d> \"e\" 'f' `g` \\ / | ~ @ # $ % ^ & * _ + =", "<s>the king</s> <mask> x <|endoftext|>y [MASK] [UNK]<unk>",
    "say  <mask>  and <left>  now  <right>  here <both> king kings King asking king.", "in New York, new york NEW YORK New  York line\nend line\n end",
    "<|begin_of_text|><|im_start|>user\nHello<|im_end|>\n<|eot_id|> <tool_call> <|end|> <extra_id_0>", "▁ ▁▁the▁king ▁", "word" * 40, "\u00e9" * 30 + " " * 30 + "-" * 30 + "1" * 30,
    "the quick brown fox jumps over the lazy dog\n" * 3 + " \t\r\n" * 3, "".join(LINES[100:112]),
]

TOKENIZERS = [gpt2, roberta, llama3, qwen, falcon, bloom, llama2, mistral, gemma, t5, xlm_roberta, unigram_first, bert, words,
              characters_bpe, added, expressions]


def main():
    recorded = {"texts": TEXTS, "tokenizers": {}}
    for make in TOKENIZERS:
        tokenizer = make()
        # Pieces with equal scores are in no fixed order after training: what is recorded is of the file.
        (HERE / f"{make.__name__}.json").write_text(tokenizer.to_str(pretty=False))
        tokenizer = Tokenizer.from_file(str(HERE / f"{make.__name__}.json"))
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        decoded = [tokenizer.decode(of, skip_special_tokens=False) for of in ids]
        recorded["tokenizers"][make.__name__] = {
            "ids": ids, "decoded": [None if found == text else found for found, text in zip(decoded, TEXTS)]}
        print(make.__name__, tokenizer.get_vocab_size(), sum(map(len, ids)))
    text = json.dumps(recorded, ensure_ascii=False, separators=(",", ":"))
    (HERE / "recorded.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
