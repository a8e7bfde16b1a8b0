//! GPT-2 for `transformers` and nanoGPT.

use std::fmt::Write;

use interlock::{Result, Weights};
use serde_json::json;

use super::{Export, ExportFormat, json, load_py, tokenizer};
use crate::{
    Transformer,
    data::{DataKind, Description},
    transformer::others::{OUTPUT, TOKENS, to_conv1d},
};

pub(super) fn export(
    model: &Transformer,
    format: ExportFormat,
    description: &Description,
    weights: &Weights,
) -> Result<Export> {
    match format {
        ExportFormat::Hf => transformers(model, description, weights),
        ExportFormat::Torch => nano_gpt(model, weights),
    }
}

fn transformers(model: &Transformer, description: &Description, weights: &Weights) -> Result<Export> {
    let Transformer { vocab, context, width, heads, layers, dropout, tied, .. } = *model;
    let config = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab,
        "n_positions": context,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "resid_pdrop": dropout,
        "tie_word_embeddings": tied,
        "bos_token_id": null,
        "eos_token_id": null,
        "torch_dtype": "float32",
    });
    let mut files = vec![("config.json".to_owned(), json(&config))];
    let mut imports = "from transformers import AutoModelForCausalLM".to_owned();
    let mut body = "model = AutoModelForCausalLM.from_pretrained(FOLDER)\n".to_owned();
    if let DataKind::Text { vocab, .. } = &description.kind {
        let settings = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "model_max_length": context,
        });
        files.push(("tokenizer.json".to_owned(), tokenizer::json(vocab)?));
        files.push(("tokenizer_config.json".to_owned(), json(&settings)));
        imports += ", AutoTokenizer";
        body += "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n";
    }
    files.push(load_py("GPT-2 in transformers: pip install torch transformers", &imports, &body));
    Ok(Export { weights: to_conv1d(weights)?, files })
}

fn nano_gpt(model: &Transformer, weights: &Weights) -> Result<Export> {
    let Transformer { vocab, context, width, heads, layers, dropout, tied, .. } = *model;
    let mut weights = weights.clone();
    let mut body = format!(
        "model = GPT(GPTConfig(block_size={context}, vocab_size={vocab}, n_layer={layers}, n_head={heads}, n_embd={width}, \
         dropout={dropout:?}, bias=True))\n\
         for block in model.transformer.h:\n    block.mlp.gelu = torch.nn.GELU(approximate=\"tanh\")  # as in GPT-2\n"
    );
    if tied {
        // nanoGPT's state has the shared matrix under both names.
        if let Some(tokens) = weights.get(TOKENS).cloned() {
            weights.insert(OUTPUT, tokens);
        }
    } else {
        let _ = writeln!(
            body,
            "model.lm_head = torch.nn.Linear({width}, {vocab}, bias=False)  # not tied to the embedding"
        );
    }
    body += "model.load_state_dict(load_file(FOLDER / \"model.safetensors\"))\n";
    let imports = "import torch\nfrom safetensors.torch import load_file\n\nfrom model import GPT, GPTConfig";
    let comment = "nanoGPT: pip install torch safetensors, with nanoGPT's model.py on PYTHONPATH";
    Ok(Export { weights, files: vec![load_py(comment, imports, &body)] })
}
