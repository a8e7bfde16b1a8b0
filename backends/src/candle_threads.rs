//! The number of threads of candle's own elementwise operations.

const VARIABLE: &str = "CANDLE_NUM_THREADS";

/// Makes candle's own elementwise operations run on the thread that calls them, unless `CANDLE_NUM_THREADS` is set already.
///
/// candle splits large elementwise operations over one pool of threads for the whole process, behind one lock: stages that compute at
/// the same time would wait for each other. The layers of this crate do not use that pool; user-written ones may.
///
/// The first CPU device that is opened calls this. Call it yourself, first in `main`, if your program starts threads before it opens devices.
///
/// Returns whether the variable is set now. Returns false and changes nothing if setting it is not safe: if other threads run already, or
/// if the system does not tell whether they do. Set the variable outside the program then.
pub fn candle_single_threaded() -> bool {
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    if !may_set_variables() {
        return false;
    }
    // SAFETY: setting a variable is unsound only while another thread reads or writes the environment without the standard library's lock;
    // `may_set_variables` has made sure that this is the only thread, or that the system does its own locking.
    unsafe { std::env::set_var(VARIABLE, "1") };
    true
}

#[cfg(target_os = "linux")]
fn may_set_variables() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

#[cfg(not(target_os = "linux"))]
fn may_set_variables() -> bool {
    cfg!(windows)
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_is_set_while_other_threads_run() {
        // The test harness runs this on a thread beside the main one.
        let before = std::env::var_os(super::VARIABLE);
        assert_eq!(super::candle_single_threaded(), before.is_some() || cfg!(windows));
        if cfg!(target_os = "linux") {
            assert_eq!(std::env::var_os(super::VARIABLE), before);
        }
    }
}
