//! The benchmarks' program.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match rssh_lab::bench::run(rssh_lab::bench::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
