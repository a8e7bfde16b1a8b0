use serde_json::json;

use super::write;
use crate::data::{Vocabulary, vocabulary::pieces};

/// Returns a word-level tokenizer with truncation and padding, which must be switched off.
pub(super) fn tokenizer_json() -> String {
    json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
        "padding": {
            "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "?"
        },
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "?": 0, "to": 1, "be": 2, "or": 3, "not": 5 }, "unk_token": "?" }
    })
    .to_string()
}

fn tokenizer() -> Vocabulary {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    write(&path, tokenizer_json());
    Vocabulary::load(&path).expect("a vocabulary")
}

#[test]
fn bytes_are_encoded_and_decoded() {
    let vocabulary = Vocabulary::bytes();
    let tokens = vocabulary.encode("né\n").expect("tokens");
    assert_eq!((vocabulary.len(), &tokens[..]), (256, &[110, 195, 169, 10][..]));
    assert_eq!(vocabulary.decode(&tokens).expect("text"), "né\n");
    assert_eq!(vocabulary.decode(&tokens[1..2]).expect("text"), "\u{fffd}");
}

#[test]
fn characters_are_encoded_and_decoded_in_order_of_code_points() {
    let vocabulary = Vocabulary::of_characters("banéba").expect("a vocabulary");
    let tokens = vocabulary.encode("née").map_err(|e| e.to_string());
    assert!(tokens.expect_err("no e").contains("the character 'e' at byte 3 is not in the vocabulary"));
    let tokens = vocabulary.encode("abné").expect("tokens");
    assert_eq!(tokens, [0, 1, 2, 3]);
    assert_eq!(vocabulary.decode(&tokens).expect("text"), "abné");
    assert!(Vocabulary::of_characters("").expect_err("empty").is_refusal());
}

#[test]
fn tokenizer_encodes_and_decodes_without_truncation_or_padding() {
    let vocabulary = tokenizer();
    // Token 4 is not used, but token 5 is.
    assert_eq!(vocabulary.len(), 6);
    let tokens = vocabulary.encode("to be or not to be").expect("tokens");
    assert_eq!(tokens, [1, 2, 3, 5, 1, 2]);
    assert_eq!(vocabulary.decode(&tokens).expect("text"), "to be or not to be");
}

#[test]
fn tokens_out_of_range_are_refused() {
    for vocabulary in [Vocabulary::bytes(), Vocabulary::of_characters("ab").expect("a vocabulary"), tokenizer()] {
        let first_bad = vocabulary.len() as u32;
        let error = vocabulary.decode(&[0, first_bad]).expect_err("out of range");
        assert!(error.to_string().contains(&format!("token {first_bad} at index 1")), "{error}");
    }
}

#[test]
fn saved_vocabularies_need_no_other_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vocabulary.json");
    let text = "to be or not";
    for vocabulary in [Vocabulary::bytes(), Vocabulary::of_characters(text).expect("a vocabulary"), tokenizer()] {
        vocabulary.save(&path).expect("saves");
        let loaded = Vocabulary::load(&path).expect("loads");
        assert_eq!(loaded.len(), vocabulary.len());
        let tokens = vocabulary.encode(text).expect("tokens");
        assert_eq!(loaded.encode(text).expect("tokens"), tokens);
        assert_eq!(loaded.decode(&tokens).expect("text"), text);
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    assert!(tokenizer().save(&folder.path().join("no/such/folder.json")).expect_err("no folder").is_refusal());
}

#[test]
fn files_without_a_vocabulary_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    let refused = |part: &str| {
        let error = Vocabulary::load(&path).expect_err("no vocabulary");
        let text = error.to_string();
        assert!(error.is_refusal() && text.contains(part) && text.contains("tokenizer.json"), "{text}");
    };
    refused("no such file");
    for (content, part) in [
        (&b"{ \"version\": "[..], "line 1 column"),
        (b"{ \"version\": \"1.0\" }", "not a tokenizer"),
        (b"{ \"kind\": \"words\" }", "words"),
        (b"{ \"kind\": \"chars\", \"characters\": \"aba\" }", "each once"),
        (b"{ \"kind\": \"chars\", \"characters\": \"\" }", "at least one"),
        (b"{ \"kind\": \"tokenizer\", \"json\": \"{}\" }", "Hugging Face"),
        (b"abc\xff", "not UTF-8 at byte 3"),
    ] {
        write(&path, content);
        refused(part);
    }
}

#[test]
fn pieces_end_after_lines_and_cover_the_text() {
    let cut = |text, least| pieces(text, least).collect::<Vec<_>>();
    assert_eq!(cut("one\ntwo\n\nthree\n four\nfive\n", 1), ["one\n", "two\n\nthree\n four\n", "five\n"]);
    assert_eq!(cut("one\ntwo\nthree", 5), ["one\ntwo\n", "three"]);
    assert_eq!(cut("é\nà", 1), ["é\n", "à"]);
    assert_eq!(cut("é", 1), ["é"]);
    assert_eq!(cut("", 1), [""; 0]);
}
