//! The simulation's program.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match rssh_lab::simulate::run(&rssh_lab::simulate::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
