use serde_json::json;

use super::write;
use crate::data::{LineEnds, Vocabulary};

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
fn line_ends_are_kept_or_become_line_feeds() {
    let text = "a\r\nb\rc\n\r\n\r";
    for (line_ends, expected) in [(LineEnds::Keep, text), (LineEnds::Lf, "a\nb\nc\n\n\n")] {
        for vocabulary in [Vocabulary::bytes(), Vocabulary::of_characters("abc\r\n").expect("a vocabulary")] {
            let vocabulary = vocabulary.with_line_ends(line_ends);
            let tokens = vocabulary.encode(text).expect("tokens");
            assert_eq!(vocabulary.decode(&tokens).expect("text"), expected);
            // They are saved with the vocabulary.
            let json = serde_json::to_string(&vocabulary).expect("json");
            assert_eq!(json.contains("line_ends"), line_ends == LineEnds::Lf, "{json}");
            let read: Vocabulary = serde_json::from_str(&json).expect("a vocabulary");
            assert_eq!(read.encode(text).expect("tokens"), tokens);
        }
    }
    // An unknown character is named with its place in the text as it is.
    let vocabulary = Vocabulary::of_characters("ab\n").expect("a vocabulary").with_line_ends(LineEnds::Lf);
    for (text, message) in
        [("a\r\n\rb\r\né", "'é' at byte 7"), ("\u{e9}\r", "'é' at byte 0"), ("a\r\rb x", "' ' at byte 4")]
    {
        let error = vocabulary.encode(text).expect_err("not in the vocabulary").to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn byte_order_mark_of_a_vocabulary_is_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    for json in [tokenizer_json(), serde_json::to_string(&tokenizer()).expect("json")] {
        write(&path, format!("\u{feff}{json}"));
        assert_eq!(Vocabulary::load(&path).expect("a vocabulary").encode("be").expect("tokens"), [2]);
    }
    write(&path, tokenizer_json().encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>());
    let error = Vocabulary::load(&path).expect_err("not UTF-8").to_string();
    assert!(error.contains("tokenizer.json: is UTF-16, little-endian; convert it to UTF-8"), "{error}");
}

#[test]
fn streams_give_whole_characters_and_the_same_text() {
    let text = "né \u{1f44d}\u{1f3fd} \u{fffd}\u{fffd}x 한";
    for vocabulary in [Vocabulary::bytes(), Vocabulary::of_characters(text).expect("a vocabulary")] {
        let (mut stream, mut parts) = (vocabulary.stream(), Vec::new());
        for token in vocabulary.encode(text).expect("tokens") {
            parts.push(stream.push(&[token]).expect("text"));
        }
        parts.push(stream.finish().expect("text"));
        assert_eq!(parts.concat(), text);
        assert!(parts.iter().all(|part| !part.starts_with('\u{fffd}') || part == "\u{fffd}\u{fffd}x"), "{parts:?}");
        assert_eq!(parts[0], "n");
    }
    // Bytes that are no characters are shown once it is certain, or at the end.
    let mut stream = Vocabulary::bytes().stream();
    let parts = [&[0xff][..], &[0xe2, 0x82], b"a", &[0xc3]]
        .map(|bytes| stream.push(&bytes.iter().map(|&byte| byte.into()).collect::<Vec<u32>>()).expect("text"));
    assert_eq!(parts, ["", "", "\u{fffd}\u{fffd}a", ""]);
    assert_eq!(stream.finish().expect("text"), "\u{fffd}");
    assert!(Vocabulary::bytes().stream().push(&[256]).expect_err("no token").is_refusal());
}
