use candle_core::DType;
use interlock::{Dataset, Key};

use super::{labels, values};
use crate::data::{Augment, ImageSet, Normalization, RawImages, ResizedCrop};

/// Returns `count` images of two channels of 6 × 5 pixels. The pixels of an image differ, and none is black.
fn raw(count: usize) -> RawImages {
    let pixels = (0..count).flat_map(|n| (0..60).map(move |i| 1 + ((i * 7 + n * 13) % 251) as u8)).collect();
    RawImages { shape: [2, 6, 5], pixels, labels: (0..count as u32).map(|n| n % 3).collect() }
}

fn set(augment: Augment) -> ImageSet {
    ImageSet::new(raw(10), &Normalization::none(2), augment).expect("a set")
}

#[test]
fn batches_keep_order_and_have_the_documented_types() {
    let batch = set(Augment::ALL).batch(&[4, 0, 4], None).expect("a batch");
    let inputs = batch.inputs.single().expect("one tensor");
    assert_eq!((inputs.dims(), inputs.dtype()), (&[3, 2, 6, 5][..], DType::F32));
    assert_eq!((batch.targets.dims(), batch.targets.dtype()), (&[3][..], DType::U32));
    assert_eq!(labels(&batch), [1, 0, 1]);
    let values = values(&batch);
    let expected = |n: usize| raw(10).pixels[n * 60..][..60].iter().map(|&p| f32::from(p) / 255.0).collect::<Vec<_>>();
    assert_eq!(values[..60], expected(4));
    assert_eq!(values[60..120], expected(0));
    assert_eq!(values[120..], values[..60]);
}

#[test]
fn batch_may_be_empty_and_numbers_out_of_range_are_refused() {
    assert_eq!(set(Augment::NONE).batch(&[], None).expect("a batch").len().expect("a length"), 0);
    let error = set(Augment::NONE).batch(&[10], None).expect_err("out of range").to_string();
    assert!(error.contains("no example 10; the set has 10"), "{error}");
}

#[test]
fn statistics_of_a_worked_example() {
    // Channel 0: 0, 255 → mean 0.5, std 0.5; channel 1: 51, 51, constant.
    let raw = RawImages { shape: [2, 1, 1], pixels: vec![0, 51, 255, 51], labels: vec![0, 1] };
    let normalization = raw.statistics();
    assert_eq!(normalization, Normalization { mean: vec![0.5, 0.2], std: vec![0.5, 1.0] });
    let set = ImageSet::new(raw, &normalization, Augment::NONE).expect("a set");
    assert_eq!(values(&set.batch(&[0, 1], None).expect("a batch")), [-1.0, 0.0, 1.0, 0.0]);
}

#[test]
fn normalised_pixels_have_mean_0_and_deviation_1() {
    let raw = raw(10);
    let set = ImageSet::new(raw.clone(), &raw.statistics(), Augment::NONE).expect("a set");
    let values = values(&set.batch(&(0..10).collect::<Vec<_>>(), None).expect("a batch"));
    for channel in 0..2 {
        let of_channel = || values.chunks(30).skip(channel).step_by(2).flatten().map(|&v| f64::from(v));
        let mean = of_channel().sum::<f64>() / 300.0;
        let variance = of_channel().map(|v| (v - mean).powi(2)).sum::<f64>() / 300.0;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5, "mean {mean}, variance {variance}");
    }
}

#[test]
fn normalization_is_read_back_and_bad_values_are_refused() {
    let normalization = raw(3).statistics();
    let json = serde_json::to_string(&normalization).expect("json");
    assert_eq!(serde_json::from_str::<Normalization>(&json).expect("a normalization"), normalization);
    for bad in [
        Normalization::none(1),
        Normalization { mean: vec![0.0; 2], std: vec![1.0, 0.0] },
        Normalization { mean: vec![f64::NAN, 0.0], std: vec![1.0; 2] },
    ] {
        let error = ImageSet::new(raw(3), &bad, Augment::NONE).expect_err("bad values");
        assert!(error.is_refusal() && error.to_string().starts_with("data.normalize"), "{error}");
    }
}

#[test]
fn images_that_do_not_fit_their_shape_are_refused() {
    for (pixels, labels) in [(119, 2), (120, 1), (0, 0)] {
        let images = RawImages { shape: [2, 6, 5], pixels: vec![0; pixels], labels: vec![0; labels] };
        assert!(ImageSet::new(images, &Normalization::none(2), Augment::NONE).expect_err("no fit").is_refusal());
    }
}

#[test]
fn augmentation_depends_on_the_key_and_the_number_alone() {
    let set = set(Augment::ALL);
    let key = Key::new(7).with(3);
    let all = values(&set.batch(&(0..10).collect::<Vec<_>>(), Some(key)).expect("a batch"));
    let alone: Vec<f32> = (0..10).flat_map(|n| values(&set.batch(&[n], Some(key)).expect("a batch"))).collect();
    assert_eq!(all, alone);
    let other = values(&set.batch(&(0..10).collect::<Vec<_>>(), Some(key.with(1))).expect("a batch"));
    assert_ne!(all, other);
}

/// Returns a window of the padded image, which is mirrored if `flip` is set.
fn window(image: &[f32], down: isize, right: isize, flip: bool) -> Vec<f32> {
    let mut out = Vec::new();
    for c in 0..2 {
        for y in 0..6_isize {
            for x in 0..5_isize {
                let x = if flip { 4 - x } else { x };
                let (y, x) = (y + down, x + right);
                let inside = (0..6).contains(&y) && (0..5).contains(&x);
                out.push(if inside { image[(c * 30 + y * 5 + x) as usize] } else { 0.0 });
            }
        }
    }
    out
}

#[test]
fn crops_and_flips_are_windows_of_the_padded_image_and_all_of_them_occur() {
    for augment in [Augment::ALL, Augment::FLIP, Augment { crop: true, ..Augment::NONE }] {
        let set = set(augment);
        let image = values(&set.batch(&[2], None).expect("a batch"));
        let mut seen = std::collections::HashSet::new();
        for seed in 0..600 {
            let changed = values(&set.batch(&[2], Some(Key::new(seed))).expect("a batch"));
            let moves = if augment.crop { -4..=4 } else { 0..=0 };
            let flips = if augment.flip { &[false, true][..] } else { &[false] };
            let windows = moves.clone().flat_map(|d| moves.clone().map(move |r| (d, r)));
            let mut windows = windows.flat_map(|(d, r)| flips.iter().map(move |&f| (d, r, f)));
            let found = windows.find(|&(d, r, f)| window(&image, d, r, f) == changed);
            seen.insert(found.expect("a window of the padded image"));
        }
        let count = if augment.crop { 81 } else { 1 } * if augment.flip { 2 } else { 1 };
        assert!(seen.len() * 100 >= count * 90, "{} of {count} windows for {augment:?}", seen.len());
        assert_eq!(seen.iter().map(|s| s.0).min(), Some(if augment.crop { -4 } else { 0 }));
        assert_eq!(seen.iter().map(|s| s.1).max(), Some(if augment.crop { 4 } else { 0 }));
    }
}

#[test]
fn padding_is_normalised_as_black_pixels_are() {
    let raw = RawImages { shape: [1, 1, 1], pixels: vec![255, 255, 0], labels: vec![0; 3] };
    let normalization = raw.statistics();
    let set = ImageSet::new(raw, &normalization, Augment::ALL).expect("a set");
    let black = values(&set.batch(&[2], None).expect("a batch"));
    // One of 81 moves leaves the pixel where it is.
    let moved = (0..50).map(|seed| values(&set.batch(&[0], Some(Key::new(seed))).expect("a batch")));
    assert!(moved.filter(|value| *value == black).count() > 40);
}

#[test]
fn resized_crops_are_distributed_as_those_of_torchvision() {
    let augment = Augment { resized_crop: Some(ResizedCrop::default()), ..Augment::NONE };
    assert_eq!(augment.part(None, 0, 200, 100), None);
    // The means of top, left, height and width of 40,000 draws of torchvision 0.29: RandomResizedCrop.get_params(image, (0.08, 1), (3/4, 4/3)).
    for (width, height, expected) in [(200, 100, [12.80, 60.93, 74.47, 77.81]), (300, 40, [1.08, 127.2, 37.86, 45.92])]
    {
        let mut sums = [0.0; 4];
        for number in 0..4000 {
            let part = augment.part(Some(Key::new(1)), number, width, height).expect("a part");
            assert!(part.width > 0 && part.height > 0, "{part:?}");
            assert!(part.left + part.width <= width && part.top + part.height <= height, "{part:?}");
            let values = [part.top, part.left, part.height, part.width];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value));
        }
        // About three standard deviations of such a mean, or more.
        for (sum, expected) in sums.iter().zip(expected) {
            assert!((sum / 4000.0 - expected).abs() < expected * 0.02 + 0.7, "{sums:?} for {expected}");
        }
    }
    let set = ImageSet::new(raw(1), &Normalization::none(2), augment).expect_err("images of one size").to_string();
    assert!(set.starts_with("data.augment.resized_crop"), "{set}");
}
