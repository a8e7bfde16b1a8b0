//! Vocabularies as `tokenizer.json` of Hugging Face's `tokenizers`.

use interlock::{Error, Result};
use serde_json::{Map, Value, json};

use crate::data::{LineEnds, Vocabulary};

/// Returns the text of a `tokenizer.json` that makes the same tokens as `vocabulary`.
pub(super) fn json(vocabulary: &Vocabulary) -> Result<String> {
    let is_lf = vocabulary.line_ends() == LineEnds::Lf;
    if let Some(text) = vocabulary.tokenizer_json() {
        if !is_lf {
            return Ok(text.to_owned());
        }
        let mut tokenizer: Value = serde_json::from_str(text).map_err(|e| Error::other(e.to_string()))?;
        tokenizer["normalizer"] = line_feeds(tokenizer["normalizer"].take());
        return Ok(super::json(&tokenizer));
    }
    let (model, before, decoder) = match vocabulary.characters() {
        Some(characters) => {
            let tokens = characters.iter().enumerate();
            let tokens: Map<String, Value> = tokens.map(|(token, c)| (c.to_string(), json!(token))).collect();
            // A character that is not in the vocabulary is an error, since there is no such token.
            let model = json!({ "type": "WordLevel", "vocab": tokens, "unk_token": "[UNK]" });
            let each =
                json!({ "type": "Split", "pattern": { "Regex": "[\\s\\S]" }, "behavior": "Isolated", "invert": false });
            (model, each, json!({ "type": "Fuse" }))
        }
        None => {
            let tokens: Map<String, Value> = (0..=255).map(|byte| (letter(byte).to_string(), json!(byte))).collect();
            let model = json!({
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": tokens,
                "merges": [],
            });
            let bytes =
                json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
            (model, bytes.clone(), bytes)
        }
    };
    Ok(super::json(&json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": if is_lf { line_feeds(Value::Null) } else { Value::Null },
        "pre_tokenizer": before,
        "post_processor": null,
        "decoder": decoder,
        "model": model,
    })))
}

/// Returns a normalizer that turns line ends into line feeds, and then does what `next` does.
fn line_feeds(next: Value) -> Value {
    let replace = |from: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": "\n" });
    let mut normalizers = vec![replace("\r\n"), replace("\r")];
    normalizers.extend(Some(next).filter(|next| !next.is_null()));
    json!({ "type": "Sequence", "normalizers": normalizers })
}

/// Returns the letter that stands for a byte in byte-level tokenizers: itself if it can be seen, otherwise one of those from U+0100 on, in turn.
fn letter(byte: u8) -> char {
    let is_seen = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_seen(&byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|other| !is_seen(other)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}
