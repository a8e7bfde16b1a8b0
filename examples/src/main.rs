//! The `interlock` command: trains, evaluates and compares models cut into stages.

mod arguments;
mod bench;
mod compare;
mod config;
mod evaluate;
mod exit;
mod generate;
mod progress;
mod replay;
mod run_folder;
mod show;
mod table;
mod train;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The allocator's option `purge_delay`: after how many milliseconds memory that is not in use goes back to the system.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Its default; another value means that somebody has set it, or that the option has another number.
const DEFAULT_DELAY: std::ffi::c_long = 1000;

/// Keeps memory that is not in use for the next step, which will ask for as much again: getting it anew costs a tenth of the time.
fn keep_memory() {
    // SAFETY: options may be read and set at any time, and any number names one or none.
    unsafe {
        if libmimalloc_sys::mi_option_get(PURGE_DELAY) == DEFAULT_DELAY {
            libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
        }
    }
}

fn main() -> ExitCode {
    keep_memory();
    // Before anything else: candle reads it once, and no other thread runs yet.
    interlock_backends::candle_single_threaded();
    let arguments = Arguments::parse();
    let done = match arguments.command.unwrap_or_default() {
        Command::Train(arguments) => train::run(&arguments),
        Command::Eval(arguments) => evaluate::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Devices => show::devices(),
        Command::Config(arguments) => show::config(&arguments),
    };
    exit::report(done)
}
