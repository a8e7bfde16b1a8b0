//! Layers of sequences: embeddings and attention.

use candle_core::{Device, Tensor};
use interlock::{Differentiable, Pass, Sequential};
use interlock_backends::layers::*;

use crate::{
    contract::{check, eval, same},
    support::{random, store, tokens, values},
};

#[test]
fn embeddings_keep_the_contract() {
    for dims in [vec![1, 1], vec![4, 5], vec![2, 3, 2]] {
        check("embedding", &tokens(&dims, 17), &|vb| Ok(Box::new(Embedding::new(17, 3, vb)?)));
    }
    for dims in [vec![1, 1], vec![3, 5], vec![4, 9]] {
        check("token and position", &tokens(&dims, 5), &|vb| Ok(Box::new(TokenAndPosition::new(5, 9, 3, vb)?)));
    }
}

#[test]
fn embeddings_look_up_rows() {
    let store = store();
    let layer = TokenAndPosition::new(3, 4, 2, store.builder(&Device::Cpu).pp("transformer")).expect("an embedding");
    let entries = store.entries();
    assert_eq!(entries[0].name, "transformer.wte.weight");
    assert_eq!(entries[1].name, "transformer.wpe.weight");
    let (wte, wpe) = (values(&entries[0].var), values(&entries[1].var));
    let x = Tensor::new(&[[2_u32, 0], [1, 1]], &Device::Cpu).expect("a tensor");
    let wanted: Vec<f32> = [(2, 0), (0, 1), (1, 0), (1, 1)]
        .into_iter()
        .flat_map(|(t, s)| [wte[2 * t] + wpe[2 * s], wte[2 * t + 1] + wpe[2 * s + 1]])
        .collect();
    assert_eq!(eval(&layer, &x), wanted);
}

#[test]
fn bad_tokens_and_long_sequences_are_refused_by_name() {
    let vb = store().builder(&Device::Cpu).pp("transformer");
    let layer = TokenAndPosition::new(5, 3, 2, vb).expect("an embedding");
    let refusal = |x: Tensor| layer.forward(&x.into(), &Pass::eval()).err().expect("a refusal").to_string();
    assert_eq!(
        refusal(Tensor::new(&[[4_u32, 5, 0]], &Device::Cpu).expect("a tensor")),
        "embedding transformer.wte: token 5 at index 1 of an input of shape [1, 3]; tokens must be below 5, the size of the vocabulary"
    );
    assert_eq!(
        refusal(tokens(&[1, 4], 5)),
        "token and position embedding transformer: input of shape [1, 4]; it takes (B, T) with T ≤ 3, its context"
    );
    assert!(refusal(random("x", &[1, 2])).contains("a tensor of f32; convert it to u32"));
}

#[test]
fn attention_keeps_the_contract() {
    for (dims, heads, dropout) in [([1, 1, 2], 1, 0.0), ([2, 5, 6], 3, 0.0), ([1, 7, 4], 1, 0.3), ([1, 67, 2], 2, 0.2)]
    {
        let name = format!("attention {dims:?}, {heads} heads, dropout {dropout}");
        let build =
            |vb: candle_nn::VarBuilder<'static>| CausalSelfAttention::new(dims[2], heads, dropout, 0.7, 0.5, vb);
        check(&name, &random("x", &dims), &|vb| Ok(Box::new(build(vb)?)));
    }
}

#[test]
fn attention_of_a_norm_equals_a_norm_followed_by_attention() {
    let attention = |vb: candle_nn::VarBuilder<'static>| CausalSelfAttention::new(6, 3, 0.2, 0.7, 0.5, vb.pp("attn"));
    let of = |vb: candle_nn::VarBuilder<'static>| -> interlock::Result<Box<dyn Differentiable>> {
        let norm = LayerNorm::new(6, vb.pp("ln"))?;
        Ok(Box::new(attention(vb)?.of(norm)))
    };
    let x = random("x", &[3, 37, 6]);
    same("attention of a norm", &x, &of, &|vb| {
        let norm = LayerNorm::new(6, vb.pp("ln"))?;
        Ok(Box::new(Sequential::default().add(norm).add(attention(vb)?)))
    });
    check("attention of a norm", &random("x", &[2, 5, 6]), &of);
}

#[test]
fn attention_equals_the_plain_sum_and_sees_no_later_position() {
    const T: usize = 70;
    let (width, heads, head) = (6, 2, 3);
    let store = store();
    let vb = store.builder(&Device::Cpu);
    let layer = CausalSelfAttention::new(width, heads, 0.1, 0.9, 0.8, vb).expect("attention");
    let names: Vec<String> = store.entries().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["c_attn.weight", "c_attn.bias", "c_proj.weight", "c_proj.bias"]);
    let [wa, _, wp, _] = [0, 1, 2, 3].map(|i| values(&store.entries()[i].var));
    let x = random("x", &[1, T, width]);
    let input = values(&x);
    let qkv = |t: usize, part: usize, h: usize, i: usize| -> f64 {
        let row = part * width + h * head + i;
        (0..width).map(|j| f64::from(input[t * width + j]) * f64::from(wa[row * width + j])).sum()
    };
    let got = eval(&layer, &x);
    for t in [0, 1, 33, 63, 64, T - 1] {
        let mut mixed = Vec::new();
        for h in 0..heads {
            let score =
                |s: usize| (0..head).map(|i| qkv(t, 0, h, i) * qkv(s, 1, h, i)).sum::<f64>() / (head as f64).sqrt();
            let weights: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
            let total: f64 = weights.iter().sum();
            mixed.extend(
                (0..head).map(|i| weights.iter().enumerate().map(|(s, w)| w / total * qkv(s, 2, h, i)).sum::<f64>()),
            );
        }
        for o in 0..width {
            let wanted: f64 = (0..width).map(|j| mixed[j] * f64::from(wp[o * width + j])).sum();
            assert!((f64::from(got[t * width + o]) - wanted).abs() < 2e-5, "position {t}, column {o}");
        }
    }
    assert!(CausalSelfAttention::new(6, 4, 0.0, 1.0, 1.0, store.builder(&Device::Cpu).pp("other")).is_err());
}

#[test]
fn a_transformer_block_keeps_the_contract() {
    check("block", &random("x", &[2, 5, 8]), &|vb| {
        let attention = Sequential::default().add(LayerNorm::new(8, vb.pp("ln_1"))?).add(CausalSelfAttention::new(
            8,
            2,
            0.1,
            0.5,
            0.5,
            vb.pp("attn"),
        )?);
        let mlp = Sequential::default()
            .add(LayerNorm::new(8, vb.pp("ln_2"))?)
            .add(Linear::new(8, 32, true, vb.pp("mlp.c_fc"))?)
            .add(Gelu)
            .add(Linear::new(32, 8, true, vb.pp("mlp.c_proj"))?)
            .add(Dropout::new(0.1, "mlp"));
        let blocks =
            Sequential::default().add(Residual::new(Box::new(attention), None)).add(Residual::new(Box::new(mlp), None));
        Ok(Box::new(blocks))
    });
}
