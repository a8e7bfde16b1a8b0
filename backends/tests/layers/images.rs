//! Layers of images: convolution, batch normalization, pooling.

use candle_core::{Device, Tensor};
use interlock::{Activation, Differentiable, ParameterStore, Pass, Sequential, Wants};
use interlock_backends::layers::*;

use crate::{
    contract::{check, check_bits, eval, one},
    support::{
        cases::{block, blocks, conv, link},
        distinct, numbers, random, store, values,
    },
};

/// Returns batch sizes, image sizes and convolutions: odd sizes, every case at the border, one image and several.
fn cases() -> Vec<(usize, [usize; 2], Conv2dConfig)> {
    vec![
        (1, [5, 7], conv(1, 3, 3, 1, 1, true)),
        (2, [5, 7], conv(3, 17, 3, 1, 1, false)),
        (3, [5, 7], conv(17, 3, 1, 1, 0, true)),
        (3, [5, 7], conv(3, 2, 1, 2, 0, false)),
        (2, [5, 7], conv(3, 2, 3, 2, 1, true)),
        (1, [5, 7], conv(3, 3, 7, 2, 3, true)),
        (1, [7, 7], conv(1, 2, 7, 1, 0, true)),
        (9, [2, 2], conv(3, 5, 3, 1, 1, true)),
        (9, [3, 2], conv(2, 3, 3, 3, 2, true)),
        (2, [16, 17], conv(2, 3, 1, 1, 0, true)),
        (2, [1, 1], conv(2, 3, 1, 1, 0, false)),
        (1, [2, 3], conv(1, 1, 3, 2, 3, false)),
        // Several chunks of images for the weight gradient: large images one at a time, small ones together.
        (19, [16, 17], conv(1, 2, 3, 1, 1, true)),
        (70, [6, 7], conv(1, 2, 3, 1, 0, false)),
    ]
}

fn naive(config: Conv2dConfig, x: &Tensor, store: &ParameterStore) -> Vec<f32> {
    let (batch, inputs, height, width) = x.dims4().expect("an image");
    let Conv2dConfig { outputs, kernel, stride, padding, .. } = config;
    let named = |name: &str| store.entries().iter().find(|e| e.name == name).map(|e| values(&e.var));
    let (x, weight) = (values(x), named("weight").expect("a weight"));
    let bias = named("bias").unwrap_or_else(|| vec![0.0; outputs]);
    let mut y = Vec::new();
    for b in 0..batch {
        for (o, bias) in bias.iter().enumerate() {
            for place_y in 0..(height + 2 * padding - kernel) / stride + 1 {
                for place_x in 0..(width + 2 * padding - kernel) / stride + 1 {
                    let mut sum = f64::from(*bias);
                    for (i, u, v) in taps(inputs, kernel) {
                        let row = (place_y * stride + u).wrapping_sub(padding);
                        let column = (place_x * stride + v).wrapping_sub(padding);
                        if row < height && column < width {
                            let x = x[((b * inputs + i) * height + row) * width + column];
                            sum += f64::from(x) * f64::from(weight[((o * inputs + i) * kernel + u) * kernel + v]);
                        }
                    }
                    y.push(sum as f32);
                }
            }
        }
    }
    y
}

fn taps(inputs: usize, kernel: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..inputs).flat_map(move |i| (0..kernel).flat_map(move |u| (0..kernel).map(move |v| (i, u, v))))
}

fn near(name: &str, got: &[f32], wanted: &[f32]) {
    assert_eq!(got.len(), wanted.len(), "{name}: number of values");
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert!((got - wanted).abs() <= 2e-5 * wanted.abs().max(1.0), "{name}: value {i} is {got}, not {wanted}");
    }
}

#[test]
fn convolution_equals_the_plain_sum() {
    for (batch, [height, width], config) in cases() {
        let store = store();
        let layer = Conv2d::new(config, store.builder(&Device::Cpu)).expect("a convolution");
        let x = random("x", &[batch, config.inputs, height, width]);
        near(&format!("{config:?}"), &eval(&layer, &x), &naive(config, &x, &store));
    }
}

#[test]
fn convolution_keeps_the_contract() {
    for (batch, [height, width], config) in cases() {
        let x = random("x", &[batch, config.inputs, height, width]);
        check(&format!("{config:?}"), &x, &|vb| Ok(Box::new(Conv2d::new(config, vb)?)));
    }
}

#[test]
fn convolution_is_initialized_by_its_fan_out() {
    let store = store();
    Conv2d::new(conv(64, 32, 3, 1, 1, true), store.builder(&Device::Cpu)).expect("a convolution");
    let [weight, bias] = [0, 1].map(|i| values(&store.entries()[i].var));
    let deviation = (weight.iter().map(|w| w * w).sum::<f32>() / weight.len() as f32).sqrt();
    assert!((deviation / (2.0_f32 / (32.0 * 9.0)).sqrt() - 1.0).abs() < 0.03);
    let bound = 1.0 / (64.0_f32 * 9.0).sqrt();
    assert!(bias.iter().all(|b| b.abs() <= bound) && bias.iter().any(|b| b.abs() > bound / 2.0));
}

#[test]
fn wrong_images_are_refused_with_both_shapes() {
    let vb = || store().builder(&Device::Cpu).pp("layer1.0.conv1");
    let layer = Conv2d::new(conv(3, 4, 5, 1, 0, false), vb()).expect("a convolution");
    let refusal = |dims: &[usize]| match layer.forward(&random("x", dims).into(), &Pass::eval()) {
        Ok(_) => panic!("{dims:?} was accepted"),
        Err(error) => error.to_string(),
    };
    assert_eq!(refusal(&[2, 4, 8, 8]), "conv2d layer1.0.conv1: input of shape [2, 4, 8, 8]; it takes (B, 3, H, W)");
    assert_eq!(
        refusal(&[2, 3, 4, 8]),
        "conv2d layer1.0.conv1: input of shape [2, 3, 4, 8]; it takes images on which a window of 5×5 (padding 0, stride 1) fits"
    );
    let tokens = Tensor::zeros((1, 3, 8, 8), candle_core::DType::U32, &Device::Cpu).expect("a tensor");
    let error = layer.forward(&tokens.into(), &Pass::eval()).err().expect("a refusal").to_string();
    assert_eq!(error, "conv2d layer1.0.conv1: a tensor of u32; convert it to f32");
    let (_, saved) = layer.forward(&random("x", &[1, 3, 5, 5]).into(), &Pass::train(0, 0, 0)).expect("a pass");
    let error = layer.backward(&saved, &random("c", &[1, 4, 2, 1]).into(), Wants::BOTH).err().expect("a refusal");
    assert_eq!(
        error.to_string(),
        "conv2d layer1.0.conv1: output gradient of shape [1, 4, 2, 1]; the output had shape [1, 4, 1, 1]"
    );
}

#[test]
fn batch_norm_keeps_the_contract() {
    for dims in [[4, 1, 5, 7], [3, 3, 5, 7], [1, 17, 2, 3], [5, 3, 1, 1]] {
        check(&format!("batch norm {dims:?}"), &random("x", &dims), &|vb| Ok(Box::new(BatchNorm2d::new(dims[1], vb)?)));
    }
}

#[test]
fn batch_norm_moves_its_statistics_only_when_it_should() {
    let store = store();
    let layer = BatchNorm2d::scaled(2, 0.5, store.builder(&Device::Cpu)).expect("a batch norm");
    let named =
        |name: &str| store.entries().iter().find(|e| e.name == name).map(|e| values(&e.var)).expect("a named tensor");
    assert_eq!(store.parameters().len(), 2);
    // Channel 0: 1 2 3 6, mean 3, squares 4+1+0+9 = 14; channel 1: 10 10 20 20, mean 15, squares 100.
    let x = Tensor::new(&[[[[1_f32, 2.]], [[10., 10.]]], [[[3., 6.]], [[20., 20.]]]], &Device::Cpu).expect("a tensor");
    let forward = |pass: Pass| one(&layer.forward(&x.clone().into(), &pass).expect("a pass").0);

    forward(Pass { track: false, ..Pass::train(0, 0, 0) });
    forward(Pass::eval());
    assert_eq!((named("running_mean"), named("running_var")), (vec![0.0; 2], vec![1.0; 2]));

    let y = forward(Pass::train(0, 0, 0));
    let scale = [0.5 / (3.5_f32 + 1e-5).sqrt(), 0.5 / (25.0_f32 + 1e-5).sqrt()];
    let wanted = [-2.0, -1.0, -5.0, -5.0, 0.0, 3.0, 5.0, 5.0];
    near("training", &y, &std::array::from_fn::<f32, 8, _>(|i| wanted[i] * scale[i / 2 % 2]));
    near("running mean", &named("running_mean"), &[0.3, 1.5]);
    // Unbiased: 14/3 and 100/3.
    near("running variance", &named("running_var"), &[0.9 + 0.1 * 14.0 / 3.0, 0.9 + 0.1 * 100.0 / 3.0]);

    let y = forward(Pass::eval());
    let expected = |x: f32, mean: f32, var: f32| 0.5 * (x - mean) / (var + 1e-5).sqrt();
    near("evaluation", &y[..1], &[expected(1.0, 0.3, 0.9 + 1.4 / 3.0)]);
    near("evaluation", &y[7..], &[expected(20.0, 1.5, 0.9 + 10.0 / 3.0)]);

    let single = random("x", &[1, 2, 1, 1]);
    assert!(layer.forward(&single.clone().into(), &Pass::train(0, 0, 0)).is_err());
    assert_eq!(eval(&layer, &single).len(), 2);
}

#[test]
fn batch_norm_is_exact_far_from_zero() {
    let store = store();
    let layer = BatchNorm2d::new(1, store.builder(&Device::Cpu)).expect("a batch norm");
    let near_thousand: Vec<f32> = (0..4096).map(|i| 1000.0 + (i % 2) as f32 / 64.0).collect();
    let x = Tensor::from_vec(near_thousand, (4, 1, 32, 32), &Device::Cpu).expect("a tensor");
    let y = one(&layer.forward(&x.into(), &Pass::train(0, 0, 0)).expect("a pass").0);
    let deviation = (1.0_f32 / 128.0).powi(2);
    let size = 1.0 / 128.0 / (deviation + 1e-5).sqrt();
    near("normal", &y[..2], &[-size, size]);
}

#[test]
fn pools_keep_the_contract() {
    for dims in [[1, 1, 5, 7], [2, 3, 5, 7]] {
        let x = distinct("x", &dims);
        for [kernel, stride, padding] in [[2, 2, 0], [3, 2, 1], [3, 1, 1], [1, 2, 0], [5, 3, 2]] {
            let name = format!("max pool {kernel} {stride} {padding}");
            check(&name, &x, &|_| Ok(Box::new(MaxPool2d::new(kernel, stride, padding))));
        }
        for [kernel, stride] in [[2, 2], [3, 2], [3, 1], [1, 2], [5, 1]] {
            check("average pool", &x, &|_| Ok(Box::new(AvgPool2d::new(kernel, stride))));
        }
        check("global average pool", &x, &|_| Ok(Box::new(GlobalAvgPool)));
        check("flatten", &x, &|_| Ok(Box::new(Flatten)));
    }
}

#[test]
fn pools_equal_plain_loops_at_the_borders() {
    let x = distinct("x", &[1, 1, 5, 7]);
    let pixels = values(&x);
    // All values are negative, so that chosen padding would show.
    let lowered: Vec<f32> = pixels.iter().map(|p| p - 100.0).collect();
    let lowered = Tensor::from_vec(lowered, x.dims(), &Device::Cpu).expect("a tensor");
    for [kernel, stride, padding] in [[3_usize, 2_usize, 1_usize], [4, 3, 2], [2, 2, 0]] {
        let mut wanted = Vec::new();
        for place_y in 0..(5 + 2 * padding - kernel) / stride + 1 {
            for place_x in 0..(7 + 2 * padding - kernel) / stride + 1 {
                let rows = (0..kernel).map(|u| (place_y * stride + u).wrapping_sub(padding)).filter(|&row| row < 5);
                let seen = rows.flat_map(|row| {
                    let columns = (0..kernel).map(move |v| (place_x * stride + v).wrapping_sub(padding));
                    columns.filter(|&column| column < 7).map(move |column| row * 7 + column)
                });
                wanted.push(seen.map(|at| pixels[at] - 100.0).fold(f32::NEG_INFINITY, f32::max));
            }
        }
        assert_eq!(eval(&MaxPool2d::new(kernel, stride, padding), &lowered), wanted);
    }
    let means = eval(&AvgPool2d::new(2, 2), &x);
    near("average", &means[..1], &[(pixels[0] + pixels[1] + pixels[7] + pixels[8]) / 4.0]);
    assert_eq!(means.len(), 6);
    near("global average", &eval(&GlobalAvgPool, &x), &[pixels.iter().sum::<f32>() / 35.0]);
}

#[test]
fn first_of_equal_pixels_gets_the_gradient_and_nan_stays_nan() {
    let pool = MaxPool2d::new(2, 2, 0);
    let x = Tensor::ones((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).expect("a tensor");
    let (_, saved) = pool.forward(&x.into(), &Pass::train(0, 0, 0)).expect("a pass");
    let c: Activation = Tensor::new(&[[[[3_f32]]]], &Device::Cpu).expect("a tensor").into();
    let gradients = pool.backward(&saved, &c, Wants::BOTH).expect("a backward pass");
    assert_eq!(one(&gradients.input.expect("a gradient")), [3.0, 0.0, 0.0, 0.0]);
    let x = Tensor::new(&[[[[1_f32, f32::NAN], [2.0, 3.0]]]], &Device::Cpu).expect("a tensor");
    assert!(eval(&pool, &x)[0].is_nan() && eval(&Relu, &x)[1].is_nan());
    assert!(MaxPool2d::new(2, 2, 2).forward(&x.clone().into(), &Pass::eval()).is_err());
    assert!(MaxPool2d::new(0, 1, 0).forward(&x.clone().into(), &Pass::eval()).is_err());
    assert!(AvgPool2d::new(2, 0).forward(&x.into(), &Pass::eval()).is_err());
}

#[test]
fn residual_blocks_keep_the_contract() {
    let x = random("x", &[2, 3, 5, 7]);
    check("identity shortcut", &x, &|vb| {
        let main = Sequential::default()
            .add(Conv2d::new(conv(3, 3, 3, 1, 1, false), vb.pp("conv1"))?)
            .add(BatchNorm2d::new(3, vb.pp("bn1"))?);
        Ok(Box::new(Residual::new(Box::new(main), None)))
    });
    check("downsampling shortcut", &x, &|vb| {
        let main = Sequential::default()
            .add(Conv2d::new(conv(3, 4, 3, 2, 1, false), vb.pp("conv1"))?)
            .add(BatchNorm2d::new(4, vb.pp("bn1"))?);
        let short = Sequential::default()
            .add(Conv2d::new(conv(3, 4, 1, 2, 0, false), vb.pp("downsample.0"))?)
            .add(BatchNorm2d::new(4, vb.pp("downsample.1"))?);
        Ok(Box::new(Residual::new(Box::new(main), Some(Box::new(short)))))
    });
    let unequal = Residual::new(Box::new(AvgPool2d::new(2, 2)), None);
    let error = unequal.forward(&x.into(), &Pass::eval()).err().expect("a refusal").to_string();
    assert_eq!(
        error,
        "residual: branches of shapes [2, 3, 2, 3] and [2, 3, 5, 7]; give a shortcut that changes the shape as the main branch does"
    );
}

#[test]
fn convolution_blocks_equal_their_layers_one_after_another() {
    for (name, dims, links, projection) in blocks() {
        let x = random("x", &dims);
        let (block_store, layer_store) = (store(), store());
        let vb = block_store.builder(&Device::Cpu);
        let block = block(&links, projection, &vb).expect("a block");
        let vb = layer_store.builder(&Device::Cpu);
        let mut main = Sequential::default();
        for (at, &config) in links.iter().enumerate() {
            if at > 0 {
                main.push(Relu);
            }
            let (conv, norm) = link(config, &vb, at).expect("a link");
            main = main.add(conv).add(norm);
        }
        let short = projection.map(|config| {
            let (conv, norm) = link(config, &vb, 9).expect("a link");
            Box::new(Sequential::default().add(conv).add(norm)) as Box<dyn Differentiable>
        });
        let layers = match name {
            "biased" => main.add(Relu),
            _ => Sequential::default().add(Residual::new(Box::new(main), short)).add(Relu),
        };
        let pass = Pass::train(7, 3, 1);
        let forward = |layer: &dyn Differentiable| layer.forward(&x.clone().into(), &pass).expect("a pass");
        let ((y, saved), (y_layers, saved_layers)) = (forward(&block), forward(&layers));
        near(name, &one(&y), &one(&y_layers));
        let c = Activation::from(random("c", y.single().expect("one tensor").dims()));
        let block_gradients = block.backward(&saved, &c, Wants::BOTH).expect("a backward pass");
        let wanted = layers.backward(&saved_layers, &c, Wants::BOTH).expect("a backward pass");
        near(name, &one(&block_gradients.input.expect("a gradient")), &one(&wanted.input.expect("a gradient")));
        let gradients = |store: &ParameterStore, gradients: &interlock::ParameterGradients| {
            let mut named: Vec<(String, Vec<f32>)> = gradients
                .iter()
                .map(|(id, g)| (store.entries()[store.position(*id).expect("known")].name.clone(), values(g)))
                .collect();
            named.sort_by(|a, b| a.0.cmp(&b.0));
            named
        };
        let (found, wanted) =
            (gradients(&block_store, &block_gradients.parameters), gradients(&layer_store, &wanted.parameters));
        assert_eq!(found.len(), wanted.len(), "{name}");
        for ((parameter, found), (_, wanted)) in found.iter().zip(&wanted) {
            near(&format!("{name}: {parameter}"), found, wanted);
        }
        // The running statistics are the same, and so are the outputs in evaluation.
        for (found, wanted) in block_store.entries().iter().zip(layer_store.entries()) {
            assert_eq!(found.name, wanted.name);
            near(&found.name, &values(&found.var), &values(&wanted.var));
        }
        near(name, &eval(&block, &x), &eval(&layers, &x));
    }
}

#[test]
fn convolution_blocks_keep_the_contract() {
    for (name, dims, links, projection) in blocks() {
        // No finite differences, because of the kinks of the ReLUs inside; another test compares the gradients with those of separate layers.
        check_bits(name, &random("x", &dims), &|vb| Ok(Box::new(block(&links, projection, &vb)?)));
    }
}

#[test]
fn blocks_of_wrong_shapes_are_refused() {
    let store = store();
    let vb = store.builder(&Device::Cpu);
    let refusal = |error: Option<interlock::Error>| error.expect("a refusal").to_string();
    assert!(refusal(ConvBlock::new(Vec::new(), Shortcut::None).err()).contains("no convolution"));
    let conv2 = Conv2d::new(conv(3, 4, 3, 1, 1, false), vb.pp("a")).expect("a convolution");
    let norm = BatchNorm2d::new(3, vb.pp("b")).expect("a norm");
    let text = refusal(ConvBlock::new(vec![(conv2, norm)], Shortcut::None).err());
    assert!(text.contains("a norm of 3 channels after a convolution with 4 output channels"), "{text}");
    let part = link(conv(3, 4, 3, 1, 1, false), &vb, 1).expect("a link");
    let layer = ConvBlock::new(vec![part], Shortcut::Identity).expect("a block");
    let text = refusal(layer.forward(&random("x", &[1, 3, 4, 4]).into(), &Pass::eval()).err());
    assert!(text.contains("branches of shapes [1, 4, 4, 4] and [1, 3, 4, 4]"), "{text}");
}

#[test]
fn large_images_take_several_chunks_and_keep_their_bits() {
    // Enough examples and channels for many chunks, whose bits the contract compares for 1, 2 and 3 threads.
    let x = Tensor::from_vec(numbers("x", 24 * 8 * 81), (24, 8, 9, 9), &Device::Cpu).expect("a tensor");
    check("large", &x, &|vb| {
        Ok(Box::new(
            Sequential::default()
                .add(Conv2d::new(conv(8, 16, 3, 1, 1, true), vb.pp("conv"))?)
                .add(BatchNorm2d::new(16, vb.pp("bn"))?)
                .add(GlobalAvgPool),
        ))
    });
}
