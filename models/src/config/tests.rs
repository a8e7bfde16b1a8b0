//! Tests of the models that configurations give, and of refused configurations.

use super::*;

const IMAGES: InputShape = InputShape::Images { channels: 3, height: 32, width: 32, classes: 10 };
const TEXT: InputShape = InputShape::Text { vocab: 65, context: 128 };
const VECTORS: InputShape = InputShape::Vectors { width: 12, outputs: 5 };

fn config(json: &str) -> ModelConfig {
    serde_json::from_str(json).unwrap()
}

fn refusal(json: &str, shape: InputShape) -> String {
    match config(json).build(shape) {
        Ok(_) => panic!("{json} was accepted"),
        Err(error) => {
            assert!(error.is_refusal());
            error.to_string()
        }
    }
}

#[test]
fn data_complete_omitted_keys() {
    let ModelConfig::Mlp(mlp) = config(r#"{"kind": "mlp", "hidden": [16, 8]}"#) else { panic!() };
    assert_eq!(mlp.resolve(VECTORS).unwrap(), Mlp::new([12, 16, 8, 5]));
    let flat = mlp.resolve(IMAGES).unwrap();
    assert_eq!((flat.dims, flat.flatten), (vec![3072, 16, 8, 10], true));

    let ModelConfig::Resnet(resnet) = config(r#"{"kind": "resnet", "preset": "resnet18", "stem": "cifar"}"#) else {
        panic!()
    };
    let expected = ResNet { stem: StemKind::Cifar, ..ResNet::preset("resnet18", [3, 32, 32], 10).unwrap() };
    assert_eq!(resnet.resolve(IMAGES).unwrap(), expected);

    let ModelConfig::Transformer(gpt) = config(r#"{"kind": "transformer", "preset": "gpt-mini", "dropout": 0.1}"#)
    else {
        panic!()
    };
    let expected = Transformer { dropout: 0.1, ..Transformer::preset("gpt-mini", 65, 128).unwrap() };
    assert_eq!(gpt.resolve(TEXT).unwrap(), expected);

    let ModelConfig::Transformer(gpt2) = config(r#"{"kind": "transformer", "preset": "gpt2"}"#) else { panic!() };
    let gpt2 = gpt2.resolve(TEXT).unwrap();
    assert_eq!((gpt2.vocab, gpt2.context, gpt2.sequence), (50_257, 1024, 128));
}

#[test]
fn written_configurations_are_read_back() {
    for text in [
        r#"{"kind":"mlp","dims":[12,16,5]}"#,
        r#"{"kind":"resnet","preset":"resnet20","classes":10}"#,
        r#"{"kind":"transformer","preset":"gpt2","dropout":0.1,"tied":true}"#,
    ] {
        assert_eq!(serde_json::to_string(&config(text)).unwrap(), text);
    }
}

#[test]
fn unknown_kinds_and_keys_are_refused() {
    for (text, says) in [
        (r#"{"kind": "cnn"}"#, "expected one of `mlp`, `resnet`, `transformer`"),
        (r#"{"kind": "mlp", "dim": [1, 2]}"#, "unknown field `dim`, expected `dims` or `hidden`"),
        (r#"{"kind": "resnet", "block": "wide"}"#, "expected `basic` or `bottleneck`"),
        (r#"{"kind": "transformer", "layers": -1}"#, "invalid value: integer `-1`"),
    ] {
        let error = serde_json::from_str::<ModelConfig>(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn bad_values_are_refused_with_key_and_remedy() {
    let gpt = |change: &str| {
        let mut keys = serde_json::json!({"kind": "transformer", "width": 32, "heads": 4, "layers": 2});
        let change: serde_json::Map<_, _> = serde_json::from_str(change).unwrap();
        keys.as_object_mut().unwrap().extend(change);
        keys.to_string()
    };
    for (json, shape, says) in [
        (r#"{"kind": "mlp"}"#, VECTORS, "model: it has no widths; give dims"),
        (r#"{"kind": "mlp", "dims": [12, 5], "hidden": [3]}"#, VECTORS, "dims and hidden are both given"),
        (r#"{"kind": "mlp", "dims": [12]}"#, VECTORS, "model.dims: [12] makes no layer"),
        (r#"{"kind": "mlp", "dims": [12, 0, 5]}"#, VECTORS, "model.dims[1]: it is 0"),
        (r#"{"kind": "mlp", "dims": [13, 5]}"#, VECTORS, "model.dims[0]: the model has 13, the data have 12"),
        (r#"{"kind": "mlp", "dims": [12, 4]}"#, VECTORS, "model.dims[1]: the model has 4, the data have 5"),
        (r#"{"kind": "mlp", "hidden": [3]}"#, TEXT, "mlp does not take text; mlp takes vectors and images"),
        (r#"{"kind": "resnet", "preset": "resnet21"}"#, IMAGES, "no preset \"resnet21\"; presets are resnet20, "),
        (r#"{"kind": "resnet", "block": "basic"}"#, IMAGES, "model.planes: it is not given"),
        (r#"{"kind": "resnet", "preset": "resnet20", "blocks": [1, 0, 1]}"#, IMAGES, "model.blocks[1]: it is 0"),
        (r#"{"kind": "resnet", "preset": "resnet20", "blocks": [1]}"#, IMAGES, "[1] blocks for [16, 32, 64] planes"),
        (r#"{"kind": "resnet", "preset": "resnet20", "planes": []}"#, IMAGES, "model.stem_planes"),
        (r#"{"kind": "resnet", "preset": "resnet20", "classes": 9}"#, IMAGES, "set it to 10 or more"),
        (r#"{"kind": "resnet", "preset": "resnet20", "channels": 1}"#, IMAGES, "model.channels: the model has 1"),
        (r#"{"kind": "resnet", "preset": "resnet20", "size": 28}"#, IMAGES, "model.size: the model has 28"),
        (r#"{"kind": "resnet", "preset": "resnet20"}"#, VECTORS, "resnet does not take vectors"),
        (r#"{"kind": "transformer", "preset": "gpt-5"}"#, TEXT, "presets are gpt-nano, gpt-micro"),
        (r#"{"kind": "transformer", "heads": 4, "layers": 2}"#, TEXT, "model.width: it is not given"),
        (&gpt(r#"{"vocab": 64}"#), TEXT, "model.vocab: the model has 64, the data have 65"),
        (&gpt(r#"{"context": 64}"#), TEXT, "examples have 128 tokens, but the model has positions for 64"),
        (&gpt(r#"{"dropout": 1.0}"#), TEXT, "model.dropout: it is 1"),
        (&gpt(r#"{"width": 30}"#), TEXT, "model.width: 30 is not divisible by the 4 attention heads; use 32"),
        (&gpt(r#"{"layers": 0}"#), TEXT, "model.layers: it is 0"),
        (&gpt(r#"{"heads": 0}"#), TEXT, "model.heads: it is 0"),
        (&gpt(r#"{"width": 99999999999}"#), TEXT, "model.width: it is 99999999999; give a number from 1"),
        (r#"{"kind": "transformer", "preset": "gpt2"}"#, IMAGES, "transformer does not take images"),
    ] {
        let text = refusal(json, shape);
        assert!(text.contains(says), "{json}: {text}");
    }
}

#[cfg(feature = "schema")]
#[test]
fn schema_allows_the_key_kind_of_every_model() {
    let schema = serde_json::to_value(schemars::schema_for!(ModelConfig)).unwrap();
    let kinds = schema["oneOf"].as_array().unwrap();
    let tags: Vec<&str> = kinds.iter().map(|k| k["properties"]["kind"]["const"].as_str().unwrap()).collect();
    assert_eq!(tags, ["mlp", "resnet", "transformer"]);
    assert!(kinds.iter().all(|k| k["additionalProperties"] == false && k["properties"].as_object().unwrap().len() > 2));
}
