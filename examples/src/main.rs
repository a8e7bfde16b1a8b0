//! The `interlock` command: trains, evaluates and compares models cut into stages.

use std::process::ExitCode;

use interlock_cli::BuiltIn;

fn main() -> ExitCode {
    interlock_cli::run::<BuiltIn>()
}
