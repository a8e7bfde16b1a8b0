//! Your own optimizer: Lion (Chen et al., 2023), which moves every parameter by the learning rate, in the direction of its momentum's sign.
//!
//! - An [`Optimizer`] updates the parameters of one part of a stage; the factory that the builder takes makes one for each.
//! - Learning rates, weight decay, parameter groups and overrides of single stages work as they do for the ready-made optimizers.
//! - With [`state`](Optimizer::state) and [`restore`](Optimizer::restore) a run can be continued to the bit.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use std::collections::BTreeMap;

use candle_core::Tensor;
use interlock::{Interlock, Optimizer, OptimizerConfig, OptimizerContext, ParameterUpdate, Result, StateDict, Trainer};
use interlock_models::{
    Mlp,
    data::config::{DataConfig, FashionMnistMini},
};

#[derive(Default)]
struct Lion {
    momentum: BTreeMap<String, Tensor>,
}

impl Optimizer for Lion {
    fn update(&mut self, lr: f64, updates: &[ParameterUpdate<'_>]) -> Result<()> {
        for update in updates {
            let (gradient, value) = (update.gradient()?, update.var.as_detached_tensor());
            let momentum = self.momentum.remove(update.name).map_or_else(|| gradient.zeros_like(), Ok)?;
            let direction = ((&momentum * 0.9)? + (&gradient * 0.1)?)?.sign()?;
            let change = ((direction + (&value * update.weight_decay)?)? * (lr * update.lr_scale))?;
            update.var.set(&(value - change)?)?;
            self.momentum.insert(update.name.to_owned(), ((momentum * 0.99)? + (gradient * 0.01)?)?);
        }
        Ok(())
    }

    fn state(&self) -> Result<StateDict> {
        Ok(StateDict { tensors: self.momentum.clone(), ..StateDict::default() })
    }

    fn restore(&mut self, state: StateDict) -> Result<()> {
        self.momentum = state.tensors;
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(2000), ..Default::default() }).open()?;
    let constants = OptimizerConfig { lr: 5e-4, weight_decay: 0.1, ..Default::default() };
    let builder = Trainer::builder(Mlp { dims: vec![784, 64, 64, 10], flatten: true }).stages(3).epochs(4);
    let lion = |_: &OptimizerContext<'_>| Ok(Lion::default());
    let mut trainer = builder.strategy(Interlock::width(2)).optimizer((constants, lion)).build()?;
    let report = trainer.fit(data.split())?;
    let accuracy = report.final_scores.accuracy.unwrap_or_default();
    println!("after {} steps: accuracy {accuracy:.3}", report.steps);
    assert!(accuracy > 0.65, "a tenth would be chance");
    Ok(())
}
