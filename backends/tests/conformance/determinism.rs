//! Determinism: the same bits on every run.

use candle_core::Tensor;
use interlock::{
    Activation, CrossEntropy, Differentiable, Key, Loss, ParameterStore, Pass, Result, Sequential, StageDevice, Wants,
    tools::device::{for_stage, run_on},
};
use interlock_backends::layers::{BatchNorm2d, Conv2d, Conv2dConfig, GlobalAvgPool, Linear, MaxPool2d, Relu};
use rand::Rng;

use crate::devices::{all, beside_others};

/// Builds a small network for images.
fn network(store: &ParameterStore, device: &dyn StageDevice) -> Result<Sequential> {
    let root = store.builder(device.device());
    let conv = |inputs, outputs, stride, name: &str| {
        let config = Conv2dConfig { inputs, outputs, kernel: 3, stride, padding: 1, bias: false };
        Conv2d::new(config, root.pp(name))
    };
    Ok(Sequential::default()
        .add(conv(3, 8, 1, "conv1")?)
        .add(BatchNorm2d::new(8, root.pp("bn1"))?)
        .add(Relu)
        .add(MaxPool2d::new(3, 2, 1))
        .add(conv(8, 16, 2, "conv2")?)
        .add(BatchNorm2d::new(16, root.pp("bn2"))?)
        .add(Relu)
        .add(GlobalAvgPool)
        .add(Linear::new(16, 5, true, root.pp("fc"))?))
}

/// Returns the bits of the output and of all gradients of one pass.
fn bits(device: &dyn StageDevice) -> Result<Vec<Vec<u32>>> {
    run_on(device, || {
        let store = ParameterStore::new(3, Default::default());
        let network = network(&store, device)?;
        let mut stream = Key::new(5).named("images").stream();
        let values: Vec<f32> =
            (0..4 * 3 * 13 * 13).map(|_| stream.next_u32() as f32 / 2.0_f32.powi(31) - 1.0).collect();
        let x = device.bring(&Tensor::from_vec(values, (4, 3, 13, 13), &candle_core::Device::Cpu)?)?;
        let targets = device.bring(&Tensor::new(&[0_u32, 4, 2, 2], &candle_core::Device::Cpu)?)?;
        let pass = Pass { precision: device.precision(), ..Pass::train(1, 0, 0) };
        let (y, saved) = network.forward(&x.into(), &pass)?;
        let (_, gradient) = CrossEntropy::default().differentiate(y.single()?, &(&targets).into(), 4.0)?;
        let gradients = network.backward(&saved, &Activation::from(gradient), Wants::BOTH)?;
        let mut tensors = vec![y.single()?.clone()];
        tensors.extend(gradients.input.iter().flat_map(|input| input.tensors().to_vec()));
        tensors.extend(gradients.parameters.into_iter().map(|(_, gradient)| gradient));
        tensors
            .iter()
            .map(|t| {
                Ok(t.to_dtype(candle_core::DType::F32)?
                    .flatten_all()?
                    .to_vec1::<f32>()?
                    .into_iter()
                    .map(f32::to_bits)
                    .collect())
            })
            .collect()
    })
}

#[test]
fn pass_has_the_same_bits_every_time() {
    let _turn = beside_others();
    for device in all() {
        let first = bits(&**device).expect("a pass");
        assert_eq!(first.len(), 10, "an output, a gradient of the input and of eight parameters");
        for _ in 0..3 {
            assert!(bits(&**device).expect("a pass") == first, "{}: the bits differ", device.name());
        }
        let other = for_stage(device).expect("a stream");
        assert!(bits(&*other).expect("a pass") == first, "{}: the bits of another stream differ", device.name());
    }
}
