//! Layers with their own kernels inside candle's graph.

use candle_core::{Device, Tensor, Var};
use interlock::{Differentiable, InGraph, ParameterStore, Pass, Result, Wants};
use interlock_backends::layers::LayerNorm;

/// Computes a norm, its `tanh` and another norm, with the input gradient, by the layers' own passes and inside of candle's graph. The outputs of
/// kernels may begin at an offset in their storage, which the graph must respect.
#[test]
fn layer_inside_a_graph_keeps_its_values_and_gradients() -> Result<()> {
    const WIDTH: usize = 64;
    let pass = Pass::train(0, 0, 0);
    let store = ParameterStore::new(1, Default::default());
    let vb = store.builder(&Device::Cpu);
    let layer = |name: &str| LayerNorm::new(WIDTH, vb.pp(name));
    for rows in [1_usize, 4, 512, 2048] {
        let values = |step: usize| {
            let values: Vec<f32> = (0..rows * WIDTH).map(|i| (i * step % 1013) as f32 / 506.0 - 1.0).collect();
            Tensor::from_vec(values, (rows, WIDTH), &Device::Cpu)
        };
        let (x, c) = (values(7)?, values(11)?);
        let (first, second) = (layer("first")?, layer("second")?);
        let (hidden, saved_first) = first.forward(&x.clone().into(), &pass)?;
        let hidden = hidden.single()?.tanh()?;
        let (y, saved_second) = second.forward(&hidden.clone().into(), &pass)?;
        let input_gradient = |layer: &LayerNorm, saved, c: Tensor| -> Result<Tensor> {
            let input = layer.backward(saved, &c.into(), Wants::INPUT)?.input;
            input.expect("a gradient of the input").single().cloned()
        };
        let at_hidden = (input_gradient(&second, &saved_second, c.clone())? * (1.0 - hidden.sqr()?)?)?;
        let expected = input_gradient(&first, &saved_first, at_hidden)?;

        let variable = Var::from_tensor(&x)?;
        let (first, second) = (InGraph::new(first), InGraph::new(second));
        let found = second.forward(&first.forward(variable.as_tensor(), &pass)?.tanh()?, &pass)?;
        let gradients = (&found * &c)?.sum_all()?.backward()?;
        let gradient = gradients.get(variable.as_tensor()).expect("a gradient of the input");
        let difference = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
        assert_eq!(difference(&found, y.single()?)?, 0.0, "{rows} rows");
        assert!(difference(gradient, &expected)? < 1e-5, "{rows} rows");
    }
    Ok(())
}
