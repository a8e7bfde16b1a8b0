//! Opening a CPU device turns candle's own threads off. A test without the test runner, whose threads would forbid it.

#![allow(clippy::print_stdout)] // says what it did, as the test runner would

use interlock_backends::Backends;

fn main() {
    let set = || std::env::var("CANDLE_NUM_THREADS").ok();
    if cfg!(not(target_os = "linux")) || set().is_some() {
        println!(
            "candle_threads: nothing to test, the variable is set or the system does not tell the number of threads"
        );
        return;
    }
    let _device = Backends::default().open("cpu:threads=2").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(set().as_deref(), Some("1"));
    // Now other threads run, and it stays.
    let _other = Backends::default().open("cpu:threads=1").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(set().as_deref(), Some("1"));
    println!("candle_threads: ok");
}
