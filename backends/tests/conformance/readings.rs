//! Values and times that a device reports.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};

use crate::devices::{all, beside_others};

#[test]
fn values_are_read_as_they_were_when_the_reading_began() {
    let _turn = beside_others();
    for device in all() {
        let mut readings = Vec::new();
        for round in 0..50 {
            let values = Tensor::arange(0_u32, 9, device.device()).and_then(|t| t.to_dtype(DType::F64));
            let values = values.and_then(|t| (t + f64::from(round))?.reshape((3, 3))?.t()).expect("numbers");
            readings.push(device.read(&values).expect("a reading"));
        }
        for (round, reading) in readings.into_iter().enumerate() {
            let expected = [0, 3, 6, 1, 4, 7, 2, 5, 8].map(|i| (i + round) as f64);
            assert_eq!(reading.take().expect("numbers"), expected, "{}: round {round}", device.name());
        }
    }
}

#[test]
fn reading_becomes_ready() {
    let _turn = beside_others();
    for device in all() {
        let numbers = Tensor::ones(4, DType::F32, device.device()).and_then(|t| t * 3.0).expect("numbers");
        let reading = device.read(&numbers).expect("a reading");
        device.synchronize().expect("an end");
        assert!(reading.is_ready().expect("an answer"), "{}", device.name());
        assert_eq!(reading.take().expect("numbers"), [3.0; 4]);
    }
}

#[test]
fn marks_are_in_order_and_in_the_time_of_the_host() {
    let _turn = beside_others();
    for device in all() {
        let mark = || device.mark().expect("a mark");
        let before = Instant::now();
        let marks: Vec<_> = (0..8)
            .map(|_| {
                let x = Tensor::ones((128, 128), DType::F32, device.device()).expect("a tensor");
                x.matmul(&x).expect("a product");
                mark()
            })
            .collect();
        let instants: Vec<Instant> = marks.iter().map(|mark| mark.instant().expect("a moment")).collect();
        let after = Instant::now();
        assert!(instants.is_sorted(), "{}", device.name());
        let slack = Duration::from_millis(50);
        assert!(
            instants[0] + slack > before && instants[7] < after + slack,
            "{}: {before:?} {instants:?} {after:?}",
            device.name()
        );
    }
}
