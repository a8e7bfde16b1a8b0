//! What fails is named as it is where the host looks at every value.

use std::{sync::Arc, time::Duration};

use candle_core::{Device, Tensor};
use interlock::{
    ClipConfig, ClipScope, Dataset, EndToEnd, Error, Failure, Interlock, OptimizerConfig, PlainCpu, StageDevice,
    Trainer, TrainerBuilder,
};

use crate::{
    LAYERS, Targets,
    behind::{Behind, When as Late, each},
    builder,
    common::{Fault, How, Matrices, Perceptron, Spiral, When},
    plain, run,
};

fn failure(builder: TrainerBuilder, data: impl Dataset + 'static) -> Failure {
    match run(builder, data) {
        Err(Error::Failed(failure)) => failure,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no stage failed"),
    }
}

#[test]
fn what_is_not_finite_is_named_where_it_arose() {
    for head in [false, true] {
        for when in [When::Forward, When::BackwardInput, When::BackwardParameters] {
            for (micro_batches, in_flight, late) in [
                (1, 1, Late::Polled(usize::MAX)),
                (4, 1, Late::After(Duration::from_millis(3))),
                (4, 4, Late::Polled(1)),
            ] {
                for scope in [None, Some(ClipScope::Stage), Some(ClipScope::Global)] {
                    let fault = Fault { unit: 2, head, when, how: How::NotANumber, step: 2 };
                    let make = |devices| {
                        builder(LAYERS, Some(fault.clone()))
                            .devices(devices)
                            .strategy(Interlock::width(3))
                            .clip(scope.map(|scope| ClipConfig { max_norm: 0.2, scope }))
                            .micro_batches(micro_batches)
                            .in_flight(in_flight)
                            .steps(10)
                    };
                    let failure = |devices| {
                        let failure = failure(make(devices), Spiral { examples: 26 });
                        // The fault strikes both losses; which comes first is a matter of time.
                        (
                            failure.to_string().replace("of loss 2", "of loss 3"),
                            failure.stage(),
                            failure.step,
                            failure.micro_batch,
                        )
                    };
                    let (expected, found) = (failure(plain()), failure(each(LAYERS, late)));
                    assert_eq!(found, expected, "{fault:?} {micro_batches} {late:?} {scope:?}");
                    assert_eq!((found.1, found.2, found.3), (Some(2), Some(2), Some(0)));
                }
            }
        }
    }
}

#[test]
fn devices_of_both_kinds_name_the_stage_too() {
    for late_one in [1, 2, 3] {
        for head in [false, true] {
            for when in [When::Forward, When::BackwardInput, When::BackwardParameters] {
                let mut devices = vec![Arc::new(PlainCpu) as Arc<dyn StageDevice>; LAYERS];
                devices[late_one] = Behind::new(Late::Polled(usize::MAX));
                let fault = Fault { unit: 2, head, when, how: How::NotANumber, step: 2 };
                let make = builder(LAYERS, Some(fault.clone())).devices(devices).strategy(Interlock::width(3));
                let failure = failure(make.micro_batches(4).in_flight(4).steps(10), Spiral { examples: 26 });
                assert_eq!(failure.stage(), Some(2), "{late_one} {fault:?}: {failure}");
                // An update leaves non-finite parameters at the end of step 2. If they are first noticed in a message, it is one of step 3.
                let in_message = failure.phase == interlock::Phase::Transfer && when == When::BackwardParameters;
                let step = if in_message { 3 } else { 2 };
                assert_eq!(failure.step, Some(step), "{late_one} {fault:?}: {failure}");
            }
        }
    }
}

#[test]
fn a_value_corrupted_in_transfer_is_an_error() {
    for spoils in [0, 9, 60] {
        for scope in [None, Some(ClipScope::Global)] {
            let spoiling = Behind::spoiling(Late::Polled(2), spoils);
            let mut devices = each(LAYERS, Late::Polled(2));
            devices[1] = spoiling;
            let make = builder(LAYERS, None).devices(devices).strategy(Interlock::width(2)).eval_every(3).in_flight(3);
            let make = make.micro_batches(2).clip(scope.map(|scope| ClipConfig { max_norm: 0.2, scope })).steps(200);
            let failure = failure(make, Spiral { examples: 26 });
            // What is spoilt goes on to the neighbours, which cannot know where it began.
            assert!(
                failure.stage() <= Some(2) && failure.phase == interlock::Phase::Transfer,
                "{spoils} {scope:?}: {failure}"
            );
            assert!(matches!(*failure.cause, Error::CorruptedInTransfer), "{failure}");
            assert!(failure.micro_batch.is_some() && (failure.step == Some(0)) == (spoils == 0), "{failure}");
        }
    }
}

#[test]
fn other_failures_are_told_in_the_same_words() {
    let late = || each(2, Late::Polled(4));
    let overflow = |devices| {
        let optimizer = OptimizerConfig { lr: 1e39, momentum: 0.0, ..OptimizerConfig::default() };
        builder(2, None).devices(devices).strategy(Interlock::width(2)).optimizer(optimizer).steps(3)
    };
    let expected = failure(overflow(plain()), Spiral { examples: 26 });
    let found = failure(overflow(late()), Spiral { examples: 26 });
    assert_eq!((found.step, found.phase), (Some(0), interlock::Phase::Update), "{found}");
    // Which of two stages overflows first is a matter of time.
    assert!(found.to_string().contains("holds an infinity or a NaN after the update") && expected.step == found.step);

    let wrong = || Targets(|targets: Tensor| Ok((targets + 1.0)?));
    let make = |devices| builder(1, None).devices(devices).strategy(EndToEnd).steps(3);
    let found = failure(make(each(1, Late::Now)), wrong());
    assert_eq!(found.to_string(), failure(make(plain()), wrong()).to_string());
    assert!(found.to_string().contains("target 3 at position"), "{found}");

    let found = failure(make(each(1, Late::Never)), Spiral { examples: 26 });
    assert_eq!((found.step, found.phase), (Some(0), interlock::Phase::Update), "{found}");
    assert!(found.to_string().contains("the device is gone"), "{found}");
}

#[test]
fn an_evaluation_fails_where_the_first_value_is_not_finite() {
    // The middle stage's parameters are so large that its output overflows; the last one's loss is not finite because of that.
    for devices in [plain(), each(3, Late::Polled(2))] {
        let model = || Matrices { dims: vec![2, 8, 8, 3] };
        let builder = || Trainer::builder(model()).stages(3).devices(devices.clone()).strategy(EndToEnd).batch_size(13);
        let mut weights = builder().build().unwrap().snapshot().unwrap();
        weights.insert("s0.weight", (&weights["s0.weight"] * 1e6).unwrap());
        weights.insert("s1.weight", Tensor::full(f32::MAX, (8, 8), &Device::Cpu).unwrap());
        let mut trainer = builder().initial_values(weights).build().unwrap();
        let Err(Error::Failed(failure)) = trainer.evaluate(Spiral { examples: 20 }) else { panic!("it was evaluated") };
        assert_eq!((failure.stage(), failure.phase), (Some(1), interlock::Phase::Forward), "{failure}");
        assert_eq!((failure.step, failure.micro_batch), (Some(0), Some(0)), "{failure}");
    }
}

#[test]
fn a_prediction_that_is_not_finite_is_an_error_on_every_device() {
    let devices: [Arc<dyn StageDevice>; 2] = [Arc::new(PlainCpu), Behind::new(Late::Polled(2))];
    for device in devices {
        let builder =
            || Trainer::builder(Perceptron { layers: 2, fault: None }).devices([Arc::clone(&device)]).stages(1);
        let mut weights = builder().build().unwrap().snapshot().unwrap();
        let huge = Tensor::full(3e38_f32, weights["layers.1.weight"].shape(), &Device::Cpu).unwrap();
        weights.insert("layers.1.weight", huge);
        let inputs = Spiral { examples: 9 }.batch(&(0..9).collect::<Vec<_>>(), None).unwrap().inputs;
        let error = builder().predictor(weights).unwrap().predict(inputs).unwrap_err();
        let Error::Failed(failure) = error else { panic!("{error}") };
        assert_eq!(failure.origin, interlock::Origin::Stage(0), "{}", device.name());
    }
}
