//! Residual networks for torchvision and timm, and perceptrons.

use std::fmt::Write;

use candle_core::{Device, Tensor};
use interlock::{Result, Weights};
use serde_json::json;

use super::{Export, ExportFormat, json, load_py, unknown};
use crate::{
    Mlp, ResNet,
    data::Description,
    resnet::{BlockKind, PRESETS, StemKind},
};

/// The groups of blocks of torchvision's `ResNet`.
const GROUPS: usize = 4;
/// Their planes, and the stem's output channels.
const PLANES: [usize; GROUPS] = [64, 128, 256, 512];

pub(super) fn resnet(
    model: &ResNet,
    format: ExportFormat,
    description: &Description,
    mut weights: Weights,
) -> Result<Export> {
    // Batch norms of PyTorch count batches.
    let norms: Vec<String> =
        weights.names().filter_map(|name| name.strip_suffix("running_var")).map(str::to_owned).collect();
    for norm in norms {
        weights.insert(format!("{norm}num_batches_tracked"), Tensor::new(0_i64, &Device::Cpu)?);
    }
    let files = match format {
        ExportFormat::Hf => timm(model, description)?,
        ExportFormat::Torch => vec![torchvision(model, description)?],
    };
    Ok(Export { weights, files })
}

/// Returns whether the network has the stem's channels and the planes of torchvision's.
fn has_usual_planes(model: &ResNet) -> bool {
    model.planes == PLANES && model.stem_planes == PLANES[0]
}

fn timm(model: &ResNet, description: &Description) -> Result<Vec<(String, String)>> {
    let is_same = |preset: &&crate::resnet::Preset| {
        preset.planes == model.planes && preset.blocks == model.blocks && preset.block == model.block
    };
    let preset = PRESETS.iter().find(is_same).filter(|_| has_usual_planes(model) && model.stem == StemKind::Imagenet);
    let Some(preset) = preset else {
        return Err(unknown(
            ExportFormat::Hf,
            "timm has no residual network of this shape: only resnet18, 34, 50, 101 and 152 with their own stem",
        ));
    };
    let features = PLANES[GROUPS - 1] * model.block.expansion();
    let mut pretrained = json!({
        "num_classes": model.classes,
        "input_size": [model.channels, model.height, model.width],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "first_conv": "conv1",
        "classifier": "fc",
    });
    if let Some(normalization) = &description.normalization {
        pretrained["mean"] = json!(normalization.mean);
        pretrained["std"] = json!(normalization.std);
    }
    let names = description.kind.class_names();
    if names.len() == model.classes {
        pretrained["label_names"] = json!(names);
    }
    let config = json!({
        "architecture": preset.name,
        "num_classes": model.classes,
        "num_features": features,
        "model_args": { "in_chans": model.channels },
        "pretrained_cfg": pretrained,
    });
    let body =
        format!("{}model = timm.create_model(f\"local-dir:{{FOLDER}}\", pretrained=True)\n", constants(description));
    let load = load_py("A ResNet of timm: pip install torch timm", "import timm", &body);
    Ok(vec![("config.json".to_owned(), json(&config)), load])
}

fn torchvision(model: &ResNet, description: &Description) -> Result<(String, String)> {
    let ResNet { stem, stem_planes, planes, blocks, classes, channels, .. } = model;
    if planes.len() > GROUPS {
        return Err(unknown(
            ExportFormat::Torch,
            "torchvision's ResNet has at most four groups of blocks, this network has more",
        ));
    }
    let block = match model.block {
        BlockKind::Basic => "BasicBlock",
        BlockKind::Bottleneck => "Bottleneck",
    };
    let mut body = constants(description);
    if has_usual_planes(model) {
        let _ = writeln!(body, "model = ResNet({block}, {blocks:?}, num_classes={classes})");
    } else {
        let _ = writeln!(body, "model = ResNet({block}, [1, 1, 1, 1])\nmodel.inplanes = {stem_planes}");
        let _ = writeln!(body, "model.bn1 = nn.BatchNorm2d({stem_planes})");
        for (at, (planes, blocks)) in planes.iter().zip(blocks).enumerate() {
            let stride = if at > 0 { ", stride=2" } else { "" };
            let _ = writeln!(body, "model.layer{} = model._make_layer({block}, {planes}, {blocks}{stride})", at + 1);
        }
        for group in planes.len()..GROUPS {
            let _ = writeln!(body, "model.layer{} = nn.Identity()", group + 1);
        }
        let _ = writeln!(body, "model.fc = nn.Linear(model.inplanes, {classes})");
    }
    let convolution = match stem {
        StemKind::Cifar => "3, padding=1",
        StemKind::Imagenet => "7, stride=2, padding=3",
    };
    if *stem == StemKind::Cifar || *channels != 3 || !has_usual_planes(model) {
        let _ = writeln!(body, "model.conv1 = nn.Conv2d({channels}, {stem_planes}, {convolution}, bias=False)");
    }
    if *stem == StemKind::Cifar {
        body += "model.maxpool = nn.Identity()\n";
    }
    body += "model.load_state_dict(load_file(FOLDER / \"model.safetensors\"))\n";
    let imports = format!(
        "from safetensors.torch import load_file\nfrom torch import nn\nfrom torchvision.models.resnet import {block}, ResNet"
    );
    Ok(load_py("A ResNet of torchvision: pip install torch torchvision safetensors", &imports, &body))
}

pub(super) fn mlp(model: &Mlp, format: ExportFormat, description: &Description, weights: Weights) -> Result<Export> {
    if format == ExportFormat::Hf {
        return Err(unknown(ExportFormat::Hf, "transformers and timm have no perceptron"));
    }
    let mut body = constants(description);
    let _ = write!(
        body,
        "\n\nclass Mlp(nn.Module):\n    def __init__(self, dims):\n        super().__init__()\n        \
         self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))\n\n    \
         def forward(self, x):\n        x = x.flatten(1)\n        for layer in self.layers[:-1]:\n            \
         x = layer(x).relu()\n        return self.layers[-1](x)\n\n\nmodel = Mlp({:?})\n\
         model.load_state_dict(load_file(FOLDER / \"model.safetensors\"))\n",
        model.dims
    );
    let imports = "from safetensors.torch import load_file\nfrom torch import nn";
    Ok(Export { weights, files: vec![load_py("A perceptron: pip install torch safetensors", imports, &body)] })
}

/// Returns lines of Python with what the inputs need.
fn constants(description: &Description) -> String {
    let mut lines = String::new();
    if let Some(normalization) = &description.normalization {
        lines += "# Inputs are (B, C, H, W): (pixel / 255 - MEAN) / STD for each channel.\n";
        let _ = writeln!(lines, "MEAN, STD = {:?}, {:?}", normalization.mean, normalization.std);
    }
    let names = description.kind.class_names();
    if !names.is_empty() {
        let _ = writeln!(lines, "CLASSES = {}", serde_json::Value::from(names));
    }
    lines
}
