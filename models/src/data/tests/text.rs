use std::path::Path;

use candle_core::DType;
use interlock::{Dataset, Key};
use serde_json::json;

use super::{config, gzip, refused, tokens, vocabulary::tokenizer_json, write};
use crate::data::{DataKind, LineEnds, TextSet, Vocabulary};

#[test]
fn targets_are_inputs_shifted_by_one() {
    let set = TextSet::new((0..23).collect(), 5, true).expect("a set");
    // 22 tokens have a next one: four whole windows.
    assert_eq!(set.len(), 4);
    let batch = set.batch(&[3, 0], None).expect("a batch");
    assert_eq!(batch.inputs.single().expect("one tensor").dtype(), DType::U32);
    assert_eq!(batch.targets.dtype(), DType::U32);
    let (inputs, targets) = tokens(&batch);
    assert_eq!(inputs, [[15, 16, 17, 18, 19], [0, 1, 2, 3, 4]]);
    assert_eq!(targets, [[16, 17, 18, 19, 20], [1, 2, 3, 4, 5]]);
    assert!(set.batch(&[4], None).expect_err("out of range").to_string().contains("no example 4"));
}

#[test]
fn shortest_text_is_one_window_and_one_token() {
    let set = TextSet::new((0..6).collect(), 5, true).expect("a set");
    assert_eq!(set.len(), 1);
    assert_eq!(tokens(&set.batch(&[0], Some(Key::new(1))).expect("a batch")).1, [[1, 2, 3, 4, 5]]);
    assert!(TextSet::new((0..5).collect(), 5, true).expect_err("too short").is_refusal());
    assert!(TextSet::new((0..5).collect(), 0, true).expect_err("no context").is_refusal());
}

#[test]
fn windows_are_shifted_by_key_and_number_within_the_text() {
    let set = TextSet::new((0..103).collect(), 10, true).expect("a set");
    let all: Vec<usize> = (0..set.len()).collect();
    let mut shifts = std::collections::HashSet::new();
    for seed in 0..50 {
        let key = Some(Key::new(seed));
        let (inputs, targets) = tokens(&set.batch(&all, key).expect("a batch"));
        for (i, (input, target)) in inputs.iter().zip(&targets).enumerate() {
            let start = input[0];
            shifts.insert(start as usize - 10 * i);
            assert_eq!(*input, (start..start + 10).collect::<Vec<_>>());
            assert_eq!(*target, (start + 1..start + 11).collect::<Vec<_>>());
            assert_eq!(tokens(&set.batch(&[i], key).expect("a batch")).0[0], *input);
        }
    }
    assert_eq!(shifts, (0..10).collect());
    let still = TextSet::new((0..103).collect(), 10, false).expect("a set");
    let (inputs, _) = tokens(&still.batch(&all, Some(Key::new(1))).expect("a batch"));
    assert_eq!(inputs, tokens(&set.batch(&all, None).expect("a batch")).0);
}

#[test]
fn tokens_beyond_two_bytes_are_kept() {
    let set = TextSet::new(vec![70_000, 1, 80_000], 2, false).expect("a set");
    assert_eq!(tokens(&set.batch(&[0], None).expect("a batch")), (vec![vec![70_000, 1]], vec![vec![1, 80_000]]));
}

fn text_file(content: impl AsRef<[u8]>) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("text.txt");
    write(&path, content);
    (folder, path)
}

#[test]
fn last_fraction_is_for_validation() {
    let content: Vec<u8> = (0..100).collect();
    for bytes in [content.clone(), gzip(&content)] {
        let (_folder, path) = text_file(bytes);
        let json = json!({ "kind": "text", "path": path, "context": 8, "validation_fraction": 0.25 });
        let data = config(json).open().expect("data");
        // 75 and 25 tokens.
        assert_eq!((data.train.len(), data.validation.len()), (9, 3));
        let (inputs, _) = tokens(&data.validation.batch(&[0], Some(Key::new(5))).expect("a batch"));
        assert_eq!(inputs[0], (75..83).collect::<Vec<_>>());
        let DataKind::Text { vocab, context: 8 } = data.description.kind else { panic!("{:?}", data.description) };
        assert_eq!(vocab.len(), 256);
    }
}

#[test]
fn limit_takes_the_first_windows_even_when_shifted() {
    let (_folder, path) = text_file((0..100).collect::<Vec<u8>>());
    let data = config(json!({ "kind": "text", "path": path, "context": 8, "limit": 2 })).open().expect("data");
    assert_eq!(data.train.len(), 2);
    for seed in 0..50 {
        let (_, targets) = tokens(&data.train.batch(&[0, 1], Some(Key::new(seed))).expect("a batch"));
        assert!(targets.iter().flatten().all(|&t| t <= 16), "{targets:?}");
    }
    refused(json!({ "kind": "text", "path": path, "limit": 0 }), &["data.limit"]);
}

#[test]
fn byte_order_mark_is_no_part_of_a_text() {
    let text = "abcd".repeat(10);
    for tokenizer in ["bytes", "chars"] {
        let read = |text: &str| {
            let (_folder, path) = text_file(text);
            let data = config(json!({ "kind": "text", "path": path, "context": 2, "tokenizer": tokenizer })).open();
            let data = data.expect("data");
            let DataKind::Text { vocab, .. } = data.description.kind else { panic!("{:?}", data.description) };
            (vocab.len(), tokens(&data.train.batch(&[0, 1], None).expect("a batch")))
        };
        assert_eq!(read(&format!("\u{feff}{text}")), read(&text));
    }
    let (_folder, path) = text_file("\u{feff}");
    refused(json!({ "kind": "text", "path": path }), &["text.txt: is empty"]);
}

/// Returns the text as UTF-16, with the bytes of each unit as `order` says.
fn utf16(text: &str, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(order).collect()
}

#[test]
fn byte_order_mark_of_any_file_is_left_out() {
    let (folder, path) = text_file("\u{feff}abcabcabcabc");
    let held_out = folder.path().join("held-out.txt.gz");
    write(&held_out, gzip("\u{feff}cabcab".as_bytes()));
    for (tokenizer, first) in [("bytes", b'c'.into()), ("chars", 2)] {
        let json = json!({
            "kind": "text", "path": path, "validation_path": held_out, "tokenizer": tokenizer, "context": 5
        });
        let data = config(json).open().expect("data");
        assert_eq!(tokens(&data.validation.batch(&[0], None).expect("a batch")).0[0][0], first);
    }
    // Only at the beginning.
    let mark = Vocabulary::of_characters("\u{feff}ab").expect("a vocabulary");
    assert_eq!(crate::data::text::encode(&mark, (&path, "\u{feff}a\u{feff}b".as_bytes())).expect("tokens"), [0, 2, 1]);
}

#[test]
fn utf16_and_utf32_are_refused_with_a_remedy() {
    let texts =
        ["To be, or not to be.\n", "Привет, как дела?\r\n", "你好，世界。\n这是一个例子 OK\n", "👍 \u{1d49c} x\n", "a"];
    let (_folder, path) = text_file("");
    for text in texts {
        let long = text.repeat(2000 / text.len());
        for text in [text, &long] {
            for (bytes, name) in [
                (
                    utf16(text, u16::to_le_bytes),
                    "UTF-16, little-endian; convert it to UTF-8, such as with `iconv -f UTF-16LE",
                ),
                (
                    utf16(text, u16::to_be_bytes),
                    "UTF-16, big-endian; convert it to UTF-8, such as with `iconv -f UTF-16BE",
                ),
                (
                    [&[0xff, 0xfe], &utf16(text, u16::to_le_bytes)[..]].concat(),
                    "little-endian; convert it to UTF-8, such as with `iconv -f UTF-16 ",
                ),
                (
                    [&[0xfe, 0xff], &utf16(text, u16::to_be_bytes)[..]].concat(),
                    "big-endian; convert it to UTF-8, such as with `iconv -f UTF-16 ",
                ),
                ("\u{feff}a".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect(), "UTF-32"),
            ] {
                write(&path, &bytes);
                for tokenizer in ["bytes", "chars"] {
                    refused(
                        json!({ "kind": "text", "path": path, "tokenizer": tokenizer }),
                        &["text.txt: is UTF-", name],
                    );
                }
                write(&path, gzip(&bytes));
                refused(json!({ "kind": "text", "path": path }), &["text.txt: is UTF-", name]);
            }
        }
    }
}

#[test]
fn other_bytes_are_no_utf16() {
    let all: Vec<u8> = (0..=255).collect();
    let random: Vec<u8> = (0..5000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let samples: Vec<u8> = (0..3000_i16).flat_map(|i| (i % 900 - 450).to_le_bytes()).collect();
    let utf8 = "Привет, как дела? 你好。 \u{1f44d}\r\n".repeat(50);
    let escapes = "\x1b[1mbold\x1b[0m text ".repeat(90);
    let nul = "record\0".repeat(50);
    let texts =
        [&all, &random, &samples, utf8.as_bytes(), escapes.as_bytes(), nul.as_bytes(), b"a\0bc\0d and more text"];
    for bytes in texts {
        let (_folder, path) = text_file(bytes);
        let data = config(json!({ "kind": "text", "path": path, "context": 1, "validation_fraction": 0.5 })).open();
        assert!(data.is_ok(), "{data:?}: {:?}", &bytes[..20]);
    }
}

#[test]
fn line_ends_are_those_of_the_setting() {
    let (folder, path) = text_file("ab\r\nab\rab\n".repeat(10));
    let held_out = folder.path().join("held-out.txt");
    write(&held_out, "b\r\na\r");
    for tokenizer in ["bytes", "chars"] {
        let mut json = json!({
            "kind": "text", "path": path, "validation_path": held_out, "tokenizer": tokenizer, "context": 3
        });
        let read = |json: &serde_json::Value| {
            let data = config(json.clone()).open().expect("data");
            let DataKind::Text { vocab, .. } = data.description.kind.clone() else { panic!("{:?}", data.description) };
            let windows = tokens(&data.train.batch(&[0, 1, 2], None).expect("a batch")).0.concat();
            let held_out = tokens(&data.validation.batch(&[0], None).expect("a batch")).0.concat();
            (vocab.decode(&windows).expect("text"), vocab.decode(&held_out).expect("text"), vocab, data.description)
        };
        let (text, validation, vocabulary, _) = read(&json);
        assert_eq!((text.as_str(), validation.as_str()), ("ab\r\nab\rab", "b\r\n"));
        json["line_ends"] = "keep".into();
        assert_eq!(read(&json).0, text);
        json["line_ends"] = "lf".into();
        let (text, validation, lf, description) = read(&json);
        assert_eq!((text.as_str(), validation.as_str()), ("ab\nab\nab\n", "b\na"));
        assert_eq!(vocabulary.len() - lf.len(), usize::from(tokenizer == "chars"));
        // The trained model treats other texts alike.
        let saved = serde_json::to_string(&description).expect("json");
        let saved: crate::data::Description = serde_json::from_str(&saved).expect("a description");
        let expected = lf.encode("a\nb").expect("tokens");
        assert_eq!(saved.encode(&path, b"a\r\nb").expect("tokens"), expected);
        assert_eq!(
            tokens(&saved.open_labelled(&held_out).expect("a set").batch(&[0], None).expect("a batch")).0.concat(),
            lf.encode("b\na").expect("tokens")
        );
        // So does a run with its vocabulary.
        let file = folder.path().join("saved.json");
        lf.save(&file).expect("saves");
        json["line_ends"] = "keep".into();
        json["tokenizer"] = file.to_str().expect("UTF-8").into();
        assert_eq!(read(&json).0, text);
        assert_eq!(lf.clone().with_line_ends(LineEnds::Keep).len(), lf.len());
    }
}

#[test]
fn text_is_divided_after_it_is_encoded() {
    // The tokens are those of the whole text: the words around the division are not cut.
    let (folder, path) = text_file("to be or not ".repeat(5));
    let tokenizer = folder.path().join("tokenizer.json");
    write(&tokenizer, tokenizer_json());
    let json = json!({
        "kind": "text", "path": path, "tokenizer": tokenizer, "context": 2, "validation_fraction": 0.49
    });
    let config = config(json);
    let data = config.open().expect("data");
    // 20 tokens: 10 and 10.
    assert_eq!((data.train.len(), data.validation.len()), (4, 4));
    assert_eq!(tokens(&data.validation.batch(&[0], None).expect("a batch")).0, [[3, 5]]);
    let opened = config.open_validation(&data.description).expect("validation");
    assert_eq!(
        tokens(&opened.batch(&[0, 3], None).expect("a batch")),
        tokens(&data.validation.batch(&[0, 3], None).expect("a batch"))
    );
}

#[test]
fn validation_file_shares_the_vocabulary() {
    let (folder, path) = text_file("abcabcabcabc");
    let held_out = folder.path().join("held-out.txt");
    write(&held_out, "xyzxyz");
    let json = json!({
        "kind": "text", "path": path, "validation_path": held_out, "tokenizer": "chars", "context": 4
    });
    let data = config(json.clone()).open().expect("data");
    assert_eq!((data.train.len(), data.validation.len()), (2, 1));
    assert_eq!(tokens(&data.validation.batch(&[0], None).expect("a batch")).0, [[3, 4, 5, 3]]);
    let mut both = json;
    both["validation_fraction"] = 0.1.into();
    refused(both, &["data.validation_fraction", "give one of the two"]);
}

#[test]
fn tokenizer_file_gives_the_tokens() {
    let (folder, path) = text_file("to be or not to be\n".repeat(10));
    let tokenizer = folder.path().join("tokenizer.json");
    write(&tokenizer, tokenizer_json());
    let json = json!({
        "kind": "text", "path": path, "tokenizer": tokenizer, "context": 5, "validation_fraction": 0.5
    });
    let data = config(json.clone()).open().expect("data");
    assert_eq!((data.train.len(), data.validation.len()), (5, 5));
    assert_eq!(tokens(&data.train.batch(&[0], None).expect("a batch")).1, [[2, 3, 5, 1, 2]]);
    write(&tokenizer, "{}");
    refused(json.clone(), &["tokenizer.json", "not a tokenizer"]);
    std::fs::remove_file(&tokenizer).expect("removes");
    refused(json, &["tokenizer.json", "no such file"]);
}

#[test]
fn saved_vocabulary_encodes_another_text_or_names_an_unknown_character() {
    let (folder, path) = text_file("abcabcabcabc");
    let saved = folder.path().join("vocabulary.json");
    crate::data::Vocabulary::of_characters("cba").expect("a vocabulary").save(&saved).expect("saves");
    let json = json!({ "kind": "text", "path": path, "tokenizer": saved, "context": 1, "validation_fraction": 0.5 });
    assert_eq!(config(json.clone()).open().expect("data").train.len(), 5);
    write(&path, "abcabd");
    refused(json, &["text.txt", "'d' at byte 5"]);
}

#[test]
fn bad_texts_are_refused() {
    refused(json!({ "kind": "text", "path": Path::new("/no/such.txt") }), &["/no/such.txt: no such file"]);
    let (folder, path) = text_file("");
    refused(json!({ "kind": "text", "path": folder.path() }), &["is a folder, not a file"]);
    refused(json!({ "kind": "text", "path": path }), &["text.txt: is empty"]);
    write(&path, "ten bytes.");
    refused(
        json!({ "kind": "text", "path": path, "context": 9 }),
        &["text.txt: training", "9 tokens are too few for a window of 9", "smaller context"],
    );
    refused(
        json!({ "kind": "text", "path": path, "context": 2 }),
        &["text.txt: validation, the last 0.1", "1 tokens are too few", "or a larger data.validation_fraction"],
    );
    refused(json!({ "kind": "text", "path": path, "context": 0 }), &["data.context"]);
    for fraction in [0.0, 1.0, -0.5, 1.5] {
        refused(json!({ "kind": "text", "path": path, "validation_fraction": fraction }), &["between 0 and 1"]);
    }
    write(&path, b"abc\xffdef");
    refused(json!({ "kind": "text", "path": path, "tokenizer": "chars" }), &["text.txt", "not UTF-8 at byte 3"]);
    let mut damaged = gzip(b"some text");
    damaged.truncate(15);
    write(&path, damaged);
    refused(json!({ "kind": "text", "path": path }), &["text.txt", "damaged gzip data"]);
}
