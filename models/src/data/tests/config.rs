use serde_json::json;

use super::config;
use crate::data::{
    Augment, DataConfig, DataKind, Description,
    config::{Normalize, Tokenizer},
};

#[test]
fn defaults_are_as_documented_and_survive_a_round_trip() {
    let kinds = [
        json!({ "kind": "fashion-mnist-mini" }),
        json!({ "kind": "shakespeare" }),
        json!({ "kind": "idx", "path": "mnist" }),
        json!({ "kind": "cifar10", "path": "cifar" }),
        json!({ "kind": "cifar100", "path": "cifar" }),
        json!({ "kind": "image-folder", "path": "images", "size": 64 }),
        json!({ "kind": "text", "path": "text.txt", "tokenizer": "my/tokenizer.json" }),
    ];
    for kind in kinds {
        let config = config(kind);
        let saved = serde_json::to_value(&config).expect("json");
        assert_eq!(serde_json::from_value::<DataConfig>(saved).expect("a configuration"), config);
        match config {
            DataConfig::FashionMnistMini(c) => assert_eq!(c.augment, Augment::FLIP),
            DataConfig::Shakespeare(c) => assert_eq!((c.tokenizer, c.context), (Tokenizer::Chars, 128)),
            DataConfig::Idx(c) => assert_eq!((c.augment, c.classes), (Augment::NONE, 10)),
            DataConfig::Cifar10(c) | DataConfig::Cifar100(c) => {
                assert_eq!((c.augment, c.normalize), (Augment::ALL, Normalize::Own(true)));
            }
            DataConfig::ImageFolder(c) => assert_eq!((c.augment, c.verify), (Augment::ALL, true)),
            DataConfig::Text(c) => assert_eq!(c.tokenizer, Tokenizer::File("my/tokenizer.json".into())),
        }
    }
}

#[test]
fn augment_is_one_switch_or_two() {
    let augment = |value| {
        let DataConfig::Cifar10(c) = config(json!({ "kind": "cifar10", "path": "x", "augment": value })) else {
            panic!("another kind");
        };
        c.augment
    };
    assert_eq!(augment(json!(true)), Augment::ALL);
    assert_eq!(augment(json!(false)), Augment::NONE);
    assert_eq!(augment(json!({ "flip": true })), Augment::FLIP);
    assert_eq!(augment(json!({ "crop": true, "flip": false })), Augment { crop: true, ..Augment::NONE });
}

#[test]
fn errors_name_the_possible_keys_and_values() {
    for (json, parts) in [
        (json!({ "kind": "fashion-mnist" }), &["fashion-mnist", "fashion-mnist-mini"][..]),
        (json!({ "kind": "cifar10" }), &["path"]),
        (json!({ "kind": "cifar10", "path": "x", "contxt": 3 }), &["contxt", "augment"]),
        (json!({ "kind": "shakespeare", "path": "x" }), &["path", "tokenizer"]),
        (json!({ "kind": "cifar10", "path": "x", "augment": "yes" }), &["true, false or { crop"]),
        (json!({ "kind": "cifar10", "path": "x", "augment": { "mirror": true } }), &["true, false or { crop"]),
        (json!({ "kind": "cifar10", "path": "x", "normalize": 1 }), &["true, false or { mean"]),
        (json!({ "kind": "text", "path": "x", "tokenizer": "words" }), &["words", "bytes", ".json"]),
        (json!({ "kind": "text", "path": "x", "line_ends": "crlf" }), &["crlf", "keep", "lf"]),
    ] {
        let error = serde_json::from_value::<DataConfig>(json).expect_err("misspelt").to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
}

#[cfg(feature = "schema")]
#[test]
fn schema_has_every_kind() {
    let schema = serde_json::to_string(&schemars::schema_for!(DataConfig)).expect("json");
    for kind in ["fashion-mnist-mini", "shakespeare", "idx", "cifar10", "cifar100", "image-folder", "text"] {
        assert!(schema.contains(&format!("\"{kind}\"")), "{kind}");
    }
}

#[test]
fn descriptions_are_read_back() {
    for kind in ["fashion-mnist-mini", "shakespeare"] {
        let description = config(json!({ "kind": kind })).open().expect("data").description;
        let json = serde_json::to_string(&description).expect("json");
        let read: Description = serde_json::from_str(&json).expect("a description");
        assert_eq!(read.normalization, description.normalization);
        match (read.kind, description.kind) {
            (DataKind::Images { class_names: a, .. }, DataKind::Images { class_names: b, .. }) => assert_eq!(a, b),
            (DataKind::Text { vocab: a, .. }, DataKind::Text { vocab: b, .. }) => {
                let text = "Enter a fairy";
                assert_eq!(a.encode(text).expect("tokens"), b.encode(text).expect("tokens"));
            }
            kinds => panic!("{kinds:?}"),
        }
    }
}
