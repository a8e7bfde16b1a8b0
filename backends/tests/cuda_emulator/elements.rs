//! Operations on elements, casts, and indexing.

use crate::common::{cuda, distinct, indices, same, seeded, values};
use candle_core::{D, DType, Device, Tensor};

const FLOATS: [DType; 3] = [DType::F32, DType::F64, DType::BF16];

#[test]
fn unary_operations_equal_those_of_the_cpu() {
    type Unary = fn(&Tensor) -> candle_core::Result<Tensor>;
    let operations: [(&str, Unary); 22] = [
        ("neg", |x| x.neg()),
        ("abs", |x| x.abs()),
        ("sqr", |x| x.sqr()),
        ("sqrt", |x| x.abs()?.sqrt()),
        ("recip", |x| x.recip()),
        ("exp", |x| x.exp()),
        ("log", |x| x.abs()?.log()),
        ("sin", |x| x.sin()),
        ("cos", |x| x.cos()),
        ("tanh", |x| x.tanh()),
        ("erf", |x| x.erf()),
        ("gelu", |x| x.gelu()),
        ("gelu_erf", |x| x.gelu_erf()),
        ("relu", |x| x.relu()),
        ("silu", |x| x.silu()),
        ("elu", |x| x.elu(0.5)),
        ("powf", |x| x.abs()?.powf(1.5)),
        ("ceil", |x| x.ceil()),
        ("floor", |x| x.floor()),
        ("round", |x| x.round()),
        ("sign", |x| x.sign()),
        ("affine", |x| x.affine(1.5, -0.25)),
    ];
    for dtype in FLOATS {
        for (what, operation) in operations {
            same(what, dtype, |device, dtype| operation(&values(&[7, 33], dtype, device)?));
            same(what, dtype, |device, dtype| operation(&values(&[5, 9], dtype, device)?.t()?));
        }
    }
}

#[test]
fn binary_operations_and_comparisons_equal_those_of_the_cpu() {
    type Binary = fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>;
    let operations: [(&str, Binary); 12] = [
        ("add", |a, b| a.broadcast_add(b)),
        ("sub", |a, b| a.broadcast_sub(b)),
        ("mul", |a, b| a.broadcast_mul(b)),
        ("div", |a, b| a.broadcast_div(b)),
        ("maximum", |a, b| a.broadcast_maximum(b)),
        ("minimum", |a, b| a.broadcast_minimum(b)),
        ("eq", |a, b| a.broadcast_eq(b)),
        ("ne", |a, b| a.broadcast_ne(b)),
        ("lt", |a, b| a.broadcast_lt(b)),
        ("le", |a, b| a.broadcast_le(b)),
        ("gt", |a, b| a.broadcast_gt(b)),
        ("ge", |a, b| a.broadcast_ge(b)),
    ];
    for dtype in FLOATS {
        for (what, operation) in operations {
            for shape in [&[6, 11][..], &[11], &[6, 1], &[1, 1]] {
                same(what, dtype, |device, dtype| {
                    operation(&values(&[6, 11], dtype, device)?, &seeded(1, shape, dtype, device)?)
                });
            }
        }
    }
    for dtype in [DType::U8, DType::U32, DType::I64] {
        for (what, operation) in operations {
            same(what, dtype, |device, dtype| {
                let divisor = indices(&[9], 5, dtype, device)?.affine(1.0, 1.0)?;
                operation(&indices(&[4, 9], 13, dtype, device)?.affine(1.0, 5.0)?, &divisor)
            });
        }
    }
}

#[test]
fn casts_equal_those_of_the_cpu() {
    let all = [DType::F32, DType::F64, DType::BF16, DType::U8, DType::U32, DType::I64];
    for from in all {
        for to in all {
            let integers = !from.is_float() && to == DType::BF16 || from == DType::BF16 && to == DType::I64;
            if integers && (from == DType::I64 || to == DType::I64) {
                continue; // candle has no such kernel
            }
            same(&format!("cast {from:?} to {to:?}"), from, |device, from| {
                let x = if from.is_float() {
                    values(&[3, 13], from, device)?.abs()?
                } else {
                    indices(&[3, 13], 200, from, device)?
                };
                x.t()?.to_dtype(to)
            });
        }
    }
}

#[test]
fn a_bfloat16_rounds_to_the_nearest_and_ties_to_even() {
    let exact: Vec<f32> =
        [0x3F80_8000u32, 0x3F81_8000, 0x3F80_8001, 0x3F80_7FFF, 0x7F7F_FFFF, 1].map(f32::from_bits).to_vec();
    let rounded = |device: &Device| Tensor::new(&exact[..], device)?.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    let (there, here) = (rounded(&cuda()).unwrap(), rounded(&Device::Cpu).unwrap());
    assert_eq!(there.to_vec1::<f32>().unwrap(), here.to_vec1::<f32>().unwrap());
    assert_eq!(here.to_vec1::<f32>().unwrap()[..2], [1.0, f32::from_bits(0x3F82_0000)]);
}

#[test]
fn choosing_and_indexing_equal_those_of_the_cpu() {
    for dtype in FLOATS {
        for kind in [DType::U8, DType::U32, DType::I64] {
            same("where_cond", dtype, |device, dtype| {
                let (a, b) = (values(&[4, 6], dtype, device)?, seeded(1, &[6, 4], dtype, device)?);
                indices(&[4, 6], 2, kind, device)?.where_cond(&a, &b.t()?)
            });
            same("index_select", dtype, |device, dtype| {
                values(&[5, 8, 3], dtype, device)?.index_select(&indices(&[6], 8, kind, device)?, 1)
            });
            if kind == DType::U8 {
                continue;
            }
            same("gather", dtype, |device, dtype| {
                values(&[5, 8], dtype, device)?.gather(&indices(&[5, 3], 8, kind, device)?, 1)
            });
            same("index_add", dtype, |device, dtype| {
                let (ids, more) = (indices(&[6], 4, kind, device)?, seeded(1, &[6, 7], dtype, device)?);
                values(&[4, 7], dtype, device)?.index_add(&ids, &more, 0)
            });
            same("scatter_add", dtype, |device, dtype| {
                let (ids, more) = (indices(&[4, 9], 5, kind, device)?, seeded(1, &[4, 9], dtype, device)?);
                values(&[4, 5], dtype, device)?.scatter_add(&ids, &more, 1)
            });
        }
    }
}

#[test]
fn views_copies_and_fills_equal_those_of_the_cpu() {
    for dtype in FLOATS {
        same("contiguous", dtype, |device, dtype| values(&[3, 5, 7], dtype, device)?.permute((2, 0, 1))?.contiguous());
        same("narrow", dtype, |device, dtype| values(&[9, 6], dtype, device)?.narrow(1, 2, 3)?.force_contiguous());
        same("cat", dtype, |device, dtype| {
            let (a, b) = (values(&[2, 3, 4], dtype, device)?, seeded(1, &[2, 5, 4], dtype, device)?);
            Tensor::cat(&[a, b], 1)
        });
        same("stack", dtype, |device, dtype| {
            Tensor::stack(&[values(&[6], dtype, device)?, seeded(1, &[6], dtype, device)?], D::Minus1)
        });
        same("full", dtype, |device, dtype| Tensor::full(1.5f32, (3, 4), device)?.to_dtype(dtype));
        same("ones", dtype, |device, dtype| Tensor::ones((3, 4), dtype, device));
        same("slice_set", dtype, |device, dtype| {
            let into = Tensor::zeros((4, 6), dtype, device)?;
            into.slice_set(&values(&[4, 2], dtype, device)?, 1, 3)?;
            Ok(into)
        });
    }
    same("arange", DType::F32, |device, _| Tensor::arange(0f32, 1000., device));
    same("triu", DType::F32, |device, dtype| Tensor::triu2(5, dtype, device));
    same("sort", DType::F32, |device, dtype| Ok(distinct(&[4, 50], dtype, device)?.sort_last_dim(true)?.0));
    same("arg_sort", DType::F32, |device, dtype| distinct(&[4, 50], dtype, device)?.arg_sort_last_dim(false));
}
