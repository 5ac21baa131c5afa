//! The `rssh` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    rssh::main(std::env::args_os())
}
