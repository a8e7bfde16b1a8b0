//! Weights of other programs: loaded, they give the outputs that those programs computed. `others/make.py` wrote them.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::path::Path;

use candle_core::{DType, Tensor};
use interlock::{ModelSpec, Predictor, Trainer, Weights};
use interlock_models::{
    Mlp, ModelConfig, ResNet, Transformer,
    data::{DataKind, Description, LineEnds, Normalization, Vocabulary},
    export::{Export, ExportFormat},
    resnet::{BlockKind, StemKind},
};

/// Returns the weights of a file, its input and its output.
fn recorded(name: &str) -> (Weights, Tensor, Tensor) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/others").join(format!("{name}.safetensors"));
    let mut weights = Weights::load(path).unwrap();
    let (input, output) = (weights.remove("input").unwrap(), weights.remove("output").unwrap());
    let input = if input.dtype() == DType::I32 { input.to_dtype(DType::U32).unwrap() } else { input };
    (weights, input, output)
}

fn assert_output(model: impl ModelSpec + 'static, name: &str) {
    let (weights, input, expected) = recorded(name);
    let output = Predictor::new(model, weights).unwrap().predict(input).unwrap();
    let largest = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let difference = largest(&(&output - &expected).unwrap());
    assert!(difference <= 1e-5 * largest(&expected), "{name}: {difference} of {}", largest(&expected));
}

fn gpt(tied: bool) -> Transformer {
    Transformer { vocab: 13, context: 8, sequence: 8, width: 8, heads: 2, layers: 2, dropout: 0.0, tied }
}

fn resnet(block: BlockKind) -> ResNet {
    ResNet {
        block,
        stem: StemKind::Cifar,
        stem_planes: 4,
        planes: vec![4, 8],
        blocks: vec![1, 2],
        classes: 5,
        channels: 3,
        height: 8,
        width: 8,
    }
}

#[test]
fn gpt2_of_transformers_and_nanogpt_gives_their_outputs() {
    for name in ["gpt2-lm-head", "gpt2-body", "nanogpt-compiled"] {
        assert_output(gpt(false), name);
        assert_output(gpt(true), name);
    }
}

#[test]
fn resnets_of_torchvision_give_its_outputs() {
    assert_output(resnet(BlockKind::Basic), "resnet-basic");
    assert_output(resnet(BlockKind::Bottleneck), "resnet-bottleneck");
}

#[test]
fn what_was_done_to_weights_of_others_is_told() {
    let summary = |weights: Weights, tied| {
        let layout = Trainer::builder(gpt(tied)).initial_values(weights).allow_half_missing(true).layout();
        layout.map(|layout| layout.initial_values().unwrap()).map_err(|error| error.to_string())
    };
    let told = summary(recorded("gpt2-body").0, false).unwrap();
    for words in ["fit 29 of the model's 29", "names without \"transformer.\"", "transposed", "lm_head.weight is tied"]
    {
        assert!(told.contains(words), "{told}");
    }
    assert!(!summary(recorded("nanogpt-compiled").0, true).unwrap().contains("transposed"));
    // Another output projection than the embedding is not used by a model that ties them.
    let (mut weights, _, _) = recorded("gpt2-lm-head");
    weights.insert("lm_head.weight", weights["transformer.wte.weight"].ones_like().unwrap());
    assert!(summary(weights, true).unwrap_err().contains("not in the model             1  lm_head.weight"));
    let truth = recorded("resnet-basic").0.renamed(|name| name.starts_with("layer").then(|| name.to_owned())).unwrap();
    let error = Trainer::builder(gpt(false)).initial_values(truth).allow_half_missing(true).layout().err().unwrap();
    assert!(error.to_string().contains("fit 0 of the model's 29 tensors"), "{error}");
}

fn of_text(vocab: Vocabulary) -> Description {
    Description::new(DataKind::Text { vocab, context: 8 }, None)
}

fn of_images(channels: usize, size: usize, classes: usize) -> Description {
    let class_names = (0..classes).map(|class| format!("class {class}")).collect();
    let kind = DataKind::Images { channels, height: size, width: size, classes, class_names };
    let normalization = Normalization { mean: vec![0.5; channels], std: vec![0.25; channels] };
    Description::new(kind, Some(normalization))
}

/// Asserts that an export has the names, shapes and dtypes of a program's own file, and returns its other files.
fn assert_names(export: &Export, name: &str) {
    let (expected, _, _) = recorded(name);
    let list = |weights: &Weights| -> Vec<String> {
        weights.iter().map(|(name, tensor)| format!("{name} {:?} {:?}", tensor.dims(), tensor.dtype())).collect()
    };
    assert_eq!(list(&export.weights), list(&expected), "{name}");
}

fn text<'a>(export: &'a Export, name: &str) -> &'a str {
    &export.files.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("no {name}")).1
}

/// Returns the weights of a model as its own training would save them.
fn own(model: impl ModelSpec + 'static) -> Weights {
    Trainer::builder(model).stages(1).seed(3).build().unwrap().snapshot().unwrap()
}

fn assert_same(model: impl ModelSpec + 'static, export: &Export, weights: &Weights) {
    let again = Trainer::builder(model).initial_values(export.weights.clone()).build().unwrap().snapshot().unwrap();
    assert!(again.names().eq(weights.names()));
    let bits = |tensor: &Tensor| -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    for (name, tensor) in &again {
        assert_eq!(bits(tensor), bits(&weights[name]), "{name}");
    }
}

#[test]
fn transformers_are_exported_as_their_programs_save_them_and_come_back_the_same() {
    let characters: String = ('a'..='m').collect();
    let description = of_text(Vocabulary::of_characters(&characters).unwrap());
    for tied in [true, false] {
        let toml = format!(r#"{{"kind": "transformer", "width": 8, "heads": 2, "layers": 2, "tied": {tied}}}"#);
        let config: ModelConfig = serde_json::from_str(&toml).unwrap();
        let weights = own(gpt(tied));
        let hf = config.export(ExportFormat::Hf, &description, &weights).unwrap();
        assert_same(gpt(tied), &hf, &weights);
        let settings: serde_json::Value = serde_json::from_str(text(&hf, "config.json")).unwrap();
        assert_eq!(
            (settings["n_positions"].as_u64(), settings["tie_word_embeddings"].as_bool()),
            (Some(8), Some(tied))
        );
        let torch = config.export(ExportFormat::Torch, &description, &weights).unwrap();
        assert_same(gpt(tied), &torch, &weights);
        assert!(torch.weights.contains("lm_head.weight"));
        assert_eq!(text(&torch, "load.py").contains("not tied"), !tied);
        if tied {
            assert_names(&hf, "gpt2-lm-head");
        }
    }
}

#[test]
fn every_vocabulary_is_exported_as_a_tokenizer_of_the_same_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let sample = "A line,\r\n\ttwo — ünïcödé 🦀!\n\n  end ";
    let config: ModelConfig = serde_json::from_str(r#"{"kind": "transformer", "preset": "gpt-nano"}"#).unwrap();
    let lf = |vocabulary: Vocabulary| vocabulary.with_line_ends(LineEnds::Lf);
    let vocabularies = [Vocabulary::bytes(), Vocabulary::of_characters(sample).unwrap(), lf(Vocabulary::bytes())];
    for vocabulary in vocabularies {
        let description = of_text(vocabulary.clone());
        let model = Transformer::preset("gpt-nano", vocabulary.len(), 8).unwrap();
        let export = config.export(ExportFormat::Hf, &description, &own(model)).unwrap();
        std::fs::write(&path, text(&export, "tokenizer.json")).unwrap();
        let exported = Vocabulary::load(&path).unwrap();
        let tokens = vocabulary.encode(sample).unwrap();
        assert_eq!((exported.len(), exported.encode(sample).unwrap()), (vocabulary.len(), tokens.clone()));
        assert_eq!(exported.decode(&tokens).unwrap(), vocabulary.decode(&tokens).unwrap());
        // A tokenizer is exported as it is, but for the line ends.
        let with_lf = config.export(
            ExportFormat::Hf,
            &of_text(lf(exported.clone())),
            &own(Transformer::preset("gpt-nano", vocabulary.len(), 8).unwrap()),
        );
        std::fs::write(folder.path().join("lf.json"), text(&with_lf.unwrap(), "tokenizer.json")).unwrap();
        let with_lf = Vocabulary::load(&folder.path().join("lf.json")).unwrap();
        assert_eq!(with_lf.encode("end\r\n").unwrap(), vocabulary.encode("end\n").unwrap());
        let export = config.export(
            ExportFormat::Hf,
            &of_text(exported),
            &own(Transformer::preset("gpt-nano", vocabulary.len(), 8).unwrap()),
        );
        assert_eq!(text(&export.unwrap(), "tokenizer.json"), std::fs::read_to_string(&path).unwrap());
    }
}

#[test]
fn image_models_are_exported_as_torchvision_saves_them_or_refused() {
    for (block, name) in [("basic", "resnet-basic"), ("bottleneck", "resnet-bottleneck")] {
        let config =
            format!(r#"{{"kind": "resnet", "block": "{block}", "stem": "cifar", "planes": [4, 8], "blocks": [1, 2]}}"#);
        let config: ModelConfig = serde_json::from_str(&config).unwrap();
        let model = || resnet(if block == "basic" { BlockKind::Basic } else { BlockKind::Bottleneck });
        let weights = own(model());
        let torch = config.export(ExportFormat::Torch, &of_images(3, 8, 5), &weights).unwrap();
        assert_same(model(), &torch, &weights);
        if block == "basic" {
            assert_names(&torch, name);
        }
        assert!(text(&torch, "load.py").contains("model.layer2 = model._make_layer"));
        let error = config.export(ExportFormat::Hf, &of_images(3, 8, 5), &weights).unwrap_err().to_string();
        assert!(error.contains("format hf: timm has no residual network of this shape"), "{error}");
    }
    let five = r#"{"kind": "resnet", "block": "basic", "stem": "cifar", "planes": [1, 1, 1, 1, 1], "blocks": [1, 1, 1, 1, 1]}"#;
    let five: ModelConfig = serde_json::from_str(five).unwrap();
    let error = five.export(ExportFormat::Torch, &of_images(3, 32, 5), &Weights::default()).unwrap_err().to_string();
    assert!(error.contains("at most four groups") && error.contains("the run's own safetensors files"), "{error}");
    let config: ModelConfig = serde_json::from_str(r#"{"kind": "resnet", "preset": "resnet18"}"#).unwrap();
    let weights = Weights::default();
    let hf = config.export(ExportFormat::Hf, &of_images(1, 32, 7), &weights).unwrap();
    let settings: serde_json::Value = serde_json::from_str(text(&hf, "config.json")).unwrap();
    assert_eq!((settings["architecture"].as_str(), settings["num_classes"].as_u64()), (Some("resnet18"), Some(7)));
    assert_eq!(settings["pretrained_cfg"]["label_names"][6], "class 6");
    let config: ModelConfig = serde_json::from_str(r#"{"kind": "mlp", "hidden": [6]}"#).unwrap();
    let weights = own(Mlp { dims: vec![3 * 64, 6, 5], flatten: true });
    let torch = config.export(ExportFormat::Torch, &of_images(3, 8, 5), &weights).unwrap();
    assert!(text(&torch, "load.py").contains("model = Mlp([192, 6, 5])"));
    assert!(config.export(ExportFormat::Hf, &of_images(3, 8, 5), &weights).is_err());
}
