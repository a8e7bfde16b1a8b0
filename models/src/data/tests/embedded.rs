use serde_json::json;

use super::{assert_targets_alone, config, labels, tokens, values};
use crate::data::{DataKind, embedded};

#[test]
fn fashion_mnist_has_its_sizes_labels_and_statistics() {
    let (train, test) = embedded::fashion_mnist().expect("data");
    for (set, count) in [(&train, 4000), (&test, 2000)] {
        assert_eq!((set.shape, set.labels.len(), set.pixels.len()), ([1, 28, 28], count, count * 784));
        for class in 0..10 {
            let share = set.labels.iter().filter(|&&l| l == class).count() * 10;
            assert!((count * 9 / 10..=count * 11 / 10 + 9).contains(&share), "class {class}: {share}");
        }
    }
    // The whole training set has 0.2860 and 0.3530.
    let statistics = train.statistics();
    assert!((statistics.mean[0] - 0.2860).abs() < 0.005, "{statistics:?}");
    assert!((statistics.std[0] - 0.3530).abs() < 0.005, "{statistics:?}");
    // The first training image is an ankle boot.
    assert_eq!(train.labels[0], 9);
}

#[test]
fn fashion_mnist_opens_with_names() {
    let data = config(json!({ "kind": "fashion-mnist-mini", "limit": 100, "augment": false })).open().expect("data");
    assert_eq!((data.train.len(), data.validation.len()), (100, 2000));
    let DataKind::Images { channels: 1, height: 28, width: 28, classes: 10, class_names } = data.description.kind
    else {
        panic!("{:?}", data.description);
    };
    assert_eq!(class_names[9], "Ankle boot");
    let batch = data.validation.batch(&(0..2000).collect::<Vec<_>>(), None).expect("a batch");
    assert!(labels(&batch).iter().all(|&l| l < 10));
    assert!(values(&batch).iter().all(|v| v.is_finite()));
}

#[test]
fn shakespeare_opens_as_characters() {
    let data = config(json!({ "kind": "shakespeare", "context": 64 })).open().expect("data");
    let DataKind::Text { vocab, context: 64 } = data.description.kind else { panic!("{:?}", data.description) };
    assert_eq!(vocab.len(), 71);
    // 988,010 characters, of which the last tenth is for validation.
    assert_eq!((data.train.len(), data.validation.len()), (889_208 / 64, 98_801 / 64));
    let (inputs, _) = tokens(&data.train.batch(&[0], None).expect("a batch"));
    let text = vocab.decode(&inputs[0]).expect("text");
    assert!(text.starts_with("# A Midsummer Night's Dream\n\n## ACT I\n"), "{text}");
    assert_eq!(vocab.encode(&text).expect("tokens"), inputs[0]);
}

#[test]
fn targets_alone_are_those_of_batches() {
    for kind in ["fashion-mnist-mini", "shakespeare"] {
        assert_targets_alone(&config(json!({ "kind": kind, "augment": true })).open().expect("data"));
    }
}
