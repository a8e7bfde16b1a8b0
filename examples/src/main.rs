//! The `interlock` command: trains, evaluates and compares models cut into stages.

mod allocator;
mod arguments;
mod bench;
mod compare;
mod config;
mod environment;
mod evaluate;
mod events;
mod exit;
mod exporter;
mod generate;
mod interrupt;
mod log;
mod memory;
mod plan;
mod plot;
mod predict;
mod progress;
mod replay;
mod report;
mod run_folder;
mod show;
mod table;
mod tensorboard;
mod terminal;
mod top;
mod trace;
mod train;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use clap::Parser;

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator::new();

fn main() -> ExitCode {
    // First, since candle reads the variable only once, and it can be set only before other threads run.
    interlock_backends::candle_single_threaded();
    let arguments = Arguments::parse();
    let done = match arguments.command.unwrap_or_default() {
        Command::Train(arguments) => train::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Eval(arguments) => evaluate::run(&arguments),
        Command::Predict(arguments) => predict::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Devices => show::devices(),
        Command::Config(arguments) => show::config(&arguments),
    };
    exit::report(done)
}
