//! The driver's view of a transfer from GPU to GPU by this crate.

use candle_core::{DType, Device, Tensor};
use interlock::{AsynchronousDevice, StageDevice};
use interlock_backends::CudaStageDevice;

use crate::common::{child, in_child};

/// Moves a tensor that is computed on GPU 0 to GPU 1, drops the source at once, and computes with the copy.
fn cross() -> Vec<f32> {
    let [from, to] = ["cuda:0", "cuda:1"].map(|name| CudaStageDevice::open(name).unwrap());
    let y = (Tensor::ones(1000, DType::F32, from.device()).unwrap() * 3.0).unwrap();
    let x = to.bring(&from.release(&y).unwrap()).unwrap();
    drop(y);
    let z = (x + 1.0).unwrap();
    let values = z.to_device(&Device::Cpu).unwrap().to_vec1().unwrap();
    to.synchronize().unwrap();
    from.synchronize().unwrap();
    values
}

#[test]
fn a_source_outlives_its_copy_and_nobody_waits_for_more_than_it_needs() {
    if in_child() {
        assert_eq!(cross(), [4.0; 1000]);
        return;
    }
    let trace = std::env::temp_dir().join(format!("interlock-crossing-{}.trace", std::process::id()));
    let name = "crossing::a_source_outlives_its_copy_and_nobody_waits_for_more_than_it_needs";
    let output = child(name, &[("EMULATED_CUDA_TRACE", trace.to_str().unwrap())]);
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(&trace).unwrap();
    std::fs::remove_file(&trace).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let find = |words: &[&str]| -> usize {
        let position = lines.iter().position(|line| words.iter().all(|word| line.contains(word)));
        position.unwrap_or_else(|| panic!("{words:?} is not in the trace:\n{text}"))
    };
    let number = |line: &str, before: &str| -> String {
        let rest = line.split(before).nth(1).unwrap();
        rest.chars().skip(1).take_while(char::is_ascii_digit).collect()
    };
    let enqueued = find(&["enqueued", "peer copy 4000 bytes"]);
    let source = format!("free allocation {}", number(lines[enqueued], "of allocation"));
    // The source is freed after the copy has run, not merely queued to be freed after it.
    assert!(find(&["ran", "peer copy 4000 bytes"]) < find(&["enqueued", &source]), "{text}");
    // The copy is on a stream of its own, so that it can overlap with computation.
    let landing = format!("stream {} ", number(lines[enqueued], "stream"));
    assert!(!lines.iter().any(|line| line.contains(&landing) && line.contains("kernel")), "{text}");
    // The host does not wait between the release and the read of the numbers.
    let asked = lines[enqueued..].iter().position(|line| line.contains("to pageable host memory")).unwrap();
    assert!(!lines[enqueued..][..asked].iter().any(|line| line.contains("Synchronize")), "{text}");
    // The sender waits only for its own events.
    let computed = find(&["enqueued", "kernel affine_f32"]);
    let sender = format!("stream {} ", number(lines[computed], "stream"));
    let of_sender = |what: &str| -> Vec<String> {
        let lines = lines.iter().filter(|line| line.contains("enqueued") && line.contains(&sender));
        lines.filter(|line| line.contains(what)).map(|line| number(line, what)).collect()
    };
    let (waits, records) = (of_sender("wait for event"), of_sender("record event"));
    assert!(!waits.is_empty() && waits.iter().all(|event| records.contains(event)), "{waits:?} {records:?}:\n{text}");
}
