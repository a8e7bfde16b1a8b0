//! Memory: freed memory is free again, and running out of memory is an error.

use candle_core::{DType, Tensor};
use interlock::StageDevice;

use crate::devices::{all, alone, pairs};

/// Returns the bytes in use, if the device tells.
fn in_use(device: &dyn StageDevice) -> Option<u64> {
    device.synchronize().expect("an end");
    let bytes = device.hooks().memory_in_use();
    if bytes.is_none() {
        println!("skipped: {} does not tell its memory", device.name());
    }
    bytes
}

const ALLOWED_GROWTH: u64 = 8 << 20;

#[test]
fn thousand_allocations_leave_no_memory_in_use() {
    let _turn = alone();
    for device in all() {
        let round = || Tensor::zeros((64, 1024), DType::F32, device.device()).and_then(|t| t + 1.0).expect("a tensor");
        (0..10).for_each(|_| drop(round()));
        let Some(before) = in_use(&**device) else { continue };
        (0..1000).for_each(|_| drop(round()));
        let after = in_use(&**device).expect("still told");
        assert!(after <= before + ALLOWED_GROWTH, "{}: {before} bytes before, {after} after", device.name());
    }
}

#[test]
fn thousand_transfers_leave_no_memory_in_use() {
    let _turn = alone();
    for [from, to] in pairs() {
        let round = || {
            let tensor = Tensor::ones((64, 1024), DType::F32, from.device()).expect("a tensor");
            to.bring(&from.release(&tensor).expect("released")).expect("brought")
        };
        // The receiver keeps sources until they are copied; the sender frees them.
        let settle = || [&to, &from].map(|device| device.synchronize().expect("an end"));
        (0..10).for_each(|_| drop(round()));
        settle();
        let (Some(a), Some(b)) = (in_use(&*from), in_use(&*to)) else { continue };
        for _ in 0..100 {
            (0..10).for_each(|_| drop(round()));
            settle();
        }
        let (c, d) = (in_use(&*from).expect("still told"), in_use(&*to).expect("still told"));
        assert!(
            c <= a + ALLOWED_GROWTH && d <= b + ALLOWED_GROWTH,
            "{} to {}: {a} and {b} before, {c} and {d} after",
            from.name(),
            to.name()
        );
    }
}

#[test]
fn out_of_memory_is_an_error_with_a_remedy_and_the_device_works_on() {
    let _turn = alone();
    for device in all() {
        if device.device().is_cpu() {
            println!("skipped: {}: the system ends a process that asks for too much", device.name());
            continue;
        }
        // 4 TiB.
        let error = Tensor::zeros((1 << 20, 1 << 20), DType::F32, device.device()).expect_err("too much");
        let words = device.hooks().explain(error.into()).to_string();
        assert!(words.starts_with(&format!("device {}: out of memory: ", device.name())), "{words}");
        assert!(words.contains("are free; ") && words.contains("more micro-batches"), "{words}");
        let sum =
            Tensor::ones(8, DType::F32, device.device()).and_then(|t| t.sum_all()).and_then(|t| t.to_scalar::<f32>());
        assert_eq!(sum.expect("a sum"), 8.0, "{}", device.name());
    }
}
