//! The fault suite's program.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match rssh_lab::faults::run(rssh_lab::faults::Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
