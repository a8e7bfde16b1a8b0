//! Hugging Face tokenizers of many structures. `tokenizers/make.py` made them, and recorded what Python's `tokenizers` does with them.

use std::{collections::HashMap, fs, path::PathBuf, sync::LazyLock};

use proptest::{collection::vec, prelude::*, sample::select};
use serde::Deserialize;
use serde_json::{Value, json};

use super::write;
use crate::data::Vocabulary;

/// Tokenizers that see a text as a single word, take white space away around added tokens, or have unknown regular expressions.
const WHOLE: [&str; 5] = ["added", "expressions", "gemma", "llama2", "mistral"];

/// What was recorded.
#[derive(Deserialize)]
struct Recorded {
    texts: Vec<String>,
    tokenizers: HashMap<String, Tokens>,
}

#[derive(Deserialize)]
struct Tokens {
    /// The tokens of each text.
    ids: Vec<Vec<u32>>,
    /// What they are decoded to; none: the text.
    decoded: Vec<Option<String>>,
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/data/tests/tokenizers").join(format!("{name}.json"))
}

static RECORDED: LazyLock<Recorded> = LazyLock::new(|| {
    serde_json::from_str(&fs::read_to_string(file("recorded")).expect("a file")).expect("recorded tokens")
});

/// The tokenizers by name.
static TOKENIZERS: LazyLock<Vec<(&str, Vocabulary)>> = LazyLock::new(|| {
    let mut names: Vec<&str> = RECORDED.tokenizers.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.into_iter().map(|name| (name, Vocabulary::load(&file(name)).expect("a tokenizer"))).collect()
});

/// Returns a tokenizer with changes to its file.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> interlock::Result<Vocabulary> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    let mut json = serde_json::from_str(&fs::read_to_string(file(name)).expect("a file")).expect("json");
    change(&mut json);
    write(&path, json.to_string());
    Vocabulary::load(&path)
}

#[test]
fn tokens_and_texts_are_those_of_python() {
    for (name, vocabulary) in &*TOKENIZERS {
        let Tokens { ids, decoded } = &RECORDED.tokenizers[*name];
        for ((text, ids), decoded) in RECORDED.texts.iter().zip(ids).zip(decoded) {
            assert_eq!(vocabulary.encode(text).expect("tokens"), *ids, "{name}: {text:?}");
            let expected = decoded.as_ref().unwrap_or(text);
            assert_eq!(vocabulary.decode(ids).expect("text"), *expected, "{name}: {text:?}");
        }
    }
}

#[test]
fn pieces_of_any_size_have_the_tokens_of_the_whole() {
    let whole: Vec<&str> = TOKENIZERS.iter().filter(|(_, v)| !v.cuts_texts()).map(|(name, _)| *name).collect();
    assert_eq!(whole, WHOLE);
    for (name, vocabulary) in &*TOKENIZERS {
        for (text, ids) in RECORDED.texts.iter().zip(&RECORDED.tokenizers[*name].ids) {
            // Every place in short texts, some in the longest.
            for least in (0..text.len()).step_by(1 + text.len() / 100) {
                assert_eq!(vocabulary.encode_in_pieces(text, least).expect("tokens"), *ids, "{name} {least}: {text:?}");
            }
        }
    }
}

/// Parts of texts that matter to tokenizers.
const PARTS: &[&str] = &[
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{2028}",
    "\u{200b}",
    "\u{200d}",
    "a",
    "the",
    "king",
    "New York",
    "I'm",
    "x",
    "Z",
    "7",
    "123",
    "1234",
    "é",
    "e\u{301}",
    "\u{301}",
    "ﬁ",
    "½",
    "Ω",
    "ß",
    "İ",
    "Я",
    "ا",
    "한",
    "\u{1112}\u{1161}\u{11ab}",
    "中",
    "。",
    "ไ",
    "त\u{947}",
    "👍🏽",
    "\u{1f468}\u{200d}\u{1f469}",
    ".",
    ",",
    "!!",
    "...",
    "'",
    "'s",
    "-",
    "_",
    "▁",
    "(",
    "|",
    "/",
    "<s>",
    "</s>",
    "<unk>",
    "[MASK]",
    "<mask>",
    "<left>",
    "<right>",
    "<both>",
    "line\nend",
    "<extra_id_0>",
    "<tool_call>",
    "<|end|>",
    "<|endoftext|>",
    "<|im_start|>",
    "\u{0}",
    "\u{ad}",
    "\u{feff}",
    "\u{fffd}",
];

fn texts() -> impl Strategy<Value = String> {
    vec(select(PARTS), 0..24).prop_map(|parts| parts.concat())
}

/// Asserts that a text has the same tokens in pieces of every size.
fn assert_cuts_change_nothing(name: &str, vocabulary: &Vocabulary, text: &str) -> Result<(), TestCaseError> {
    let whole = vocabulary.encode(text).expect("tokens");
    for least in 0..text.len() {
        let pieces = vocabulary.encode_in_pieces(text, least).expect("tokens");
        prop_assert_eq!(&pieces, &whole, "{} {}: {:?}", name, least, text);
    }
    Ok(())
}

/// The tokenizer `llama3` with each regular expression of well-known tokenizers.
static PATTERNS: LazyLock<Vec<(&str, Vocabulary)>> = LazyLock::new(|| {
    let of =
        |pattern| changed("llama3", |json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern);
    let patterns = crate::data::vocabulary::CUT_PATTERNS.iter();
    patterns.map(|&pattern| (pattern, of(json!(pattern)).expect("a tokenizer"))).collect()
});

#[test]
fn unknown_structures_are_not_cut() {
    let cut = |name, change: fn(&mut Value)| changed(name, change).expect("a tokenizer").cuts_texts();
    assert!(
        cut("gpt2", |_| {}) && cut("bert", |_| {}) && PATTERNS.iter().all(|(_, vocabulary)| vocabulary.cuts_texts())
    );
    for (name, change) in [
        ("gpt2", (|json| json["pre_tokenizer"] = Value::Null) as fn(&mut Value)),
        ("gpt2", |json| json["pre_tokenizer"]["use_regex"] = json!(false)),
        ("gpt2", |json| json["normalizer"] = json!({ "type": "Strip", "strip_left": true, "strip_right": true })),
        ("gpt2", |json| json["normalizer"] = json!({ "type": "Prepend", "prepend": "x" })),
        ("gpt2", |json| {
            json["normalizer"] = json!({ "type": "Replace", "pattern": { "String": "e t" }, "content": "x" })
        }),
        ("gpt2", |json| {
            json["normalizer"] = json!({ "type": "Replace", "pattern": { "Regex": "e." }, "content": "x" })
        }),
        ("gpt2", |json| json["added_tokens"][0]["rstrip"] = json!(true)),
        ("gpt2", |json| json["added_tokens"][0]["content"] = json!("New York")),
        ("llama3", |json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\p{L}+ ?|\s+")),
        ("llama3", |json| json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = json!("MergedWithPrevious")),
        ("unigram_first", |json| json["pre_tokenizer"]["split"] = json!(false)),
    ] {
        assert!(!cut(name, change), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    #[test]
    fn cuts_change_no_token(text in texts()) {
        for (name, vocabulary) in TOKENIZERS.iter().chain(&*PATTERNS).filter(|(_, vocabulary)| vocabulary.cuts_texts()) {
            assert_cuts_change_nothing(name, vocabulary, &text)?;
        }
    }

    #[test]
    fn streams_are_the_text_of_all_tokens(draws in vec(any::<u32>(), 0..40)) {
        for (name, vocabulary) in &*TOKENIZERS {
            let tokens: Vec<u32> = draws.iter().map(|draw| draw % vocabulary.len() as u32).collect();
            let mut stream = vocabulary.stream();
            let mut text: String = tokens.iter().map(|&token| stream.push(&[token]).expect("text")).collect();
            text.push_str(&stream.finish().expect("text"));
            prop_assert_eq!(text, vocabulary.decode(&tokens).expect("text"), "{}: {:?}", name, tokens);
        }
    }

    #[test]
    fn streams_of_texts_have_only_whole_characters(text in texts()) {
        for (name, vocabulary) in &*TOKENIZERS {
            let tokens = vocabulary.encode(&text).expect("tokens");
            let expected = vocabulary.decode(&tokens).expect("text");
            let mut stream = vocabulary.stream();
            let mut parts: Vec<String> = tokens.iter().map(|&token| stream.push(&[token]).expect("text")).collect();
            parts.push(stream.finish().expect("text"));
            let replaced = |text: &str| text.matches('\u{fffd}').count();
            prop_assert_eq!(parts.concat(), expected.as_str(), "{}", name);
            prop_assert_eq!(parts.iter().map(|part| replaced(part)).sum::<usize>(), replaced(&expected), "{}", name);
        }
    }
}

#[test]
fn long_texts_have_the_tokens_of_the_whole() {
    let text = RECORDED.texts.concat() + &"the king of France and the queen \n".repeat(32_000);
    let vocabulary = Vocabulary::load(&file("gpt2")).expect("a tokenizer");
    let whole = vocabulary.encode_in_pieces(&text, text.len()).expect("tokens");
    assert!(text.len() > 1 << 20 && vocabulary.encode(&text).expect("tokens") == whole);
}

fn message<T: std::fmt::Debug>(result: interlock::Result<T>) -> String {
    let error = result.expect_err("must be refused");
    assert!(error.is_refusal(), "{error:?}");
    error.to_string()
}

#[test]
fn panics_of_tokenizers_are_errors() {
    let fixed = changed("gpt2", |json| json["pre_tokenizer"] = json!({ "type": "FixedLength", "length": 0 }));
    let text = message(fixed.expect("a tokenizer").encode("text"));
    assert!(text.contains("the tokenizer failed: it panicked: chunk size must be non-zero"), "{text}");
    let strip = json!({ "type": "Strip", "content": "a", "start": 0, "stop": 9 });
    let strip = changed("gpt2", |json| json["decoder"] = strip).expect("a tokenizer");
    let tokens = strip.encode("a").expect("tokens");
    for text in [message(strip.decode(&tokens)), message(strip.stream().push(&tokens))] {
        assert!(text.contains("the tokenizer failed: it panicked: attempt to subtract"), "{text}");
    }
    let text =
        message(changed("t5", |json| json["normalizer"]["normalizers"][0]["precompiled_charsmap"] = json!("AAAA")));
    assert!(text.contains("tokenizer.json: not a tokenizer: it panicked: Precompiled"), "{text}");
}

#[test]
fn numbers_of_tokens_have_a_limit_and_few_gaps() {
    let words = |last: u32| changed("words", |json| json["model"]["vocab"]["far"] = json!(last));
    assert_eq!(words(65_535).expect("a tokenizer").len(), 65_536);
    let text = message(words(65_536));
    assert!(text.contains("the token \"far\" has the number 65536, but there are 401 tokens"), "{text}");
    for last in [1 << 24, u32::MAX] {
        let text = message(words(last));
        assert!(
            text.contains(&format!("the token \"far\" has the number {last}; the numbers of tokens must")),
            "{text}"
        );
    }
    let none = message(changed("words", |json| {
        json["model"]["vocab"] = json!({});
        json["added_tokens"] = json!([]);
    }));
    assert!(none.contains("has no tokens"), "{none}");
}

#[test]
fn tokens_of_a_unigram_model_have_a_longest_length() {
    let with = |length: usize| {
        changed("t5", |json| {
            let vocabulary = json["model"]["vocab"].as_array_mut().expect("a vocabulary");
            vocabulary.push(json!(["a.".repeat(length / 2), -9.0]));
        })
    };
    // Threads have 2 MiB for calls.
    assert!(with(2048).expect("a tokenizer").encode("a.a").is_ok());
    let text = message(with(2050));
    assert!(text.contains("a token has 2050 bytes; the tokens of a Unigram model may have 2048"), "{text}");
    message(with(1 << 20));
}

#[test]
fn dropout_of_a_tokenizer_is_switched_off() {
    let vocabulary = changed("gpt2", |json| json["model"]["dropout"] = json!(0.9)).expect("a tokenizer");
    let tokens = TOKENIZERS.iter().find(|(name, _)| *name == "gpt2").expect("GPT-2").1.encode(&RECORDED.texts[6]);
    assert_eq!(vocabulary.encode(&RECORDED.texts[6]).expect("tokens"), tokens.expect("tokens"));
}

#[test]
fn white_space_that_stops_regular_expressions_is_refused() {
    let text = |count| format!("é a{} b c", " ".repeat(count));
    let [gpt2, bert] = ["gpt2", "bert"].map(|name| Vocabulary::load(&file(name)).expect("a tokenizer"));
    // The last space belongs to the letter behind it.
    let tokens = gpt2.encode(&text(499_999)).expect("tokens");
    assert_eq!(tokens[tokens.len() - 2..], gpt2.encode(" b c").expect("tokens")[..]);
    let text = text(500_000);
    assert!(
        message(gpt2.encode(&text)).contains("more than 500000 characters of white space in a row, from byte 4 on")
    );
    assert_eq!(bert.encode(&text).expect("tokens"), bert.encode("é a b c").expect("tokens"));
}
