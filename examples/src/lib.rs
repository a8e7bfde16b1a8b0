//! The `interlock` command as a library: configuration, run folders, progress, metrics, reports and plans around any model.
//!
//! A program names its sections `[model]` and `[data]` in a [`Program`] and calls [`run`]; it then has every subcommand of `interlock`. The lesson
//! `own_command` shows one.

mod arguments;
mod bench;
mod bounded;
mod check;
mod compare;
mod config;
mod environment;
mod evaluate;
mod events;
mod exit;
mod export;
mod exporter;
mod generate;
mod init;
mod interrupt;
mod launch;
mod log;
mod lr_find;
mod memory;
#[cfg(test)]
mod mutations;
mod plan;
mod plot;
mod predict;
mod program;
mod progress;
mod ranks;
#[cfg(any(test, fuzzing))]
pub mod readers;
mod replay;
mod report;
mod resume;
mod run_folder;
mod schema;
mod serve;
mod shell;
mod show;
mod table;
mod tensorboard;
mod terminal;
#[cfg_attr(not(feature = "top"), path = "top/missing.rs")]
mod top;
mod trace;
mod train;

pub use program::{BuiltIn, DataSection, ModelSection, Program, Section};

use std::process::ExitCode;

use interlock::Error;

use arguments::{Bench, Command};

#[global_allocator]
static ALLOCATOR: interlock_backends::Allocator = interlock_backends::Allocator::new();

/// Runs the command with this process's arguments, and returns its exit code. Call it first in `main`: candle's own threads can be turned off only
/// before other threads run.
pub fn run<P: Program>() -> ExitCode {
    interlock_backends::candle_single_threaded();
    let (command, memory_limit) = arguments::parse::<P>();
    if memory_limit.is_some() && matches!(command, Command::Launch(_)) {
        let refused = Error::invalid("--memory-limit", "launch computes nothing", "give it after --, to train");
        return ExitCode::from(exit::code_of(Err(refused.into())));
    }
    memory::limit(memory_limit);
    let on_ranks = matches!(command, Command::Train(_) | Command::Bench(Bench::Runtime(_)));
    ExitCode::from(ranks::run(on_ranks, || exit::code_of(execute::<P>(command))))
}

fn execute<P: Program>(command: Command) -> Result<(), exit::Exit> {
    environment::check_variables()?;
    interrupt::install()?;
    match command {
        Command::Train(arguments) => train::run::<P>(&arguments),
        Command::Plan(arguments) => plan::run::<P>(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Eval(arguments) => evaluate::run::<P>(&arguments),
        Command::Predict(arguments) => predict::run::<P>(&arguments),
        Command::Generate(arguments) => generate::run::<P>(&arguments),
        Command::Export(arguments) => export::run::<P>(&arguments),
        Command::Compare(arguments) => compare::run::<P>(&arguments),
        Command::LrFind(arguments) => lr_find::run::<P>(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Bench(arguments) => bench::run::<P>(&arguments),
        Command::Devices => show::devices(),
        Command::Config(arguments) => show::config::<P>(&arguments),
        Command::Launch(arguments) => launch::run::<P>(&arguments),
        Command::Init(arguments) => init::run::<P>(&arguments),
        Command::Completions(arguments) => shell::completions(&arguments, arguments::command::<P>()),
        Command::Man(arguments) => shell::man(&arguments, arguments::command::<P>()),
    }
}
