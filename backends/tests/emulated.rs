//! Emulated devices under real actors.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use interlock::{
    Batch, Dataset, EndToEnd, Interlock, ModelSpec, Result, Sequential, Strategy, Trainer, Unit,
    loss::MeanSquaredError, random::Key,
};
use interlock_backends::Backends;

/// Units without parameters, of 1000 numbers an example, and a head behind each.
struct Units(usize);

fn unit() -> Unit {
    Unit::new("", [1000], |_| Ok(Sequential::default()))
}

impl ModelSpec for Units {
    fn units(&self) -> Result<Vec<Unit>> {
        Ok((0..self.0).map(|_| unit()).collect())
    }

    fn head(&self, _: usize, _: &str) -> Result<Unit> {
        Ok(unit())
    }
}

/// Ones, one example a batch.
struct Ones;

impl Dataset for Ones {
    fn len(&self) -> usize {
        64
    }

    fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
        let ones = Tensor::ones((numbers.len(), 1000), DType::F32, &Device::Cpu)?;
        Ok(Batch { inputs: ones.clone().into(), targets: ones })
    }
}

/// How long so many steps take, and what the last stage scored.
fn train(name: &str, stages: usize, strategy: impl Strategy + 'static, steps: u64) -> (Duration, f64) {
    let device = Backends::default().open(name).expect("an emulated device");
    let builder = Trainer::builder(Units(stages)).stages(stages).strategy(strategy).devices([device]);
    let mut trainer = builder.loss(MeanSquaredError).batch_size(1).steps(steps).build().expect("a pipeline");
    let start = Instant::now();
    let report = trainer.fit(&Ones).expect("a run");
    (start.elapsed(), report.final_scores.loss)
}

#[test]
fn a_step_takes_what_its_longest_chain_takes() {
    // Forward three times, back three times, the parameters of the first stage and its update.
    let name = "emulated:forward-ms=2,input-gradient-ms=3,parameter-gradient-ms=4,update-ms=1,head-ms=100";
    let (time, loss) = train(name, 3, EndToEnd, 4);
    assert!(time >= Duration::from_millis(4 * (3 * 2 + 3 * 3 + 4 + 1)), "{time:?}");
    // Zeros were compared with ones.
    assert_eq!(loss, 1.0);
    // Every stage but the last has a head, and waits for it.
    let (time, _) = train("emulated:forward-ms=2,head-ms=9", 2, Interlock::width(1), 3);
    assert!(time >= Duration::from_millis(3 * (2 + 9)), "{time:?}");
}

#[test]
fn messages_arrive_no_earlier_than_their_links_allow() {
    // Two boundaries forward and two back.
    let (time, _) = train("emulated:transfer-ms=3", 3, EndToEnd, 3);
    assert!(time >= Duration::from_millis(3 * 4 * 3), "{time:?}");
    // 125,000 bytes a second: an activation and its targets take 64 ms to leave, a gradient 32 ms.
    let (time, _) = train("emulated:gbps=0.001", 2, EndToEnd, 2);
    assert!(time >= Duration::from_millis(2 * (64 + 32)), "{time:?}");
}
