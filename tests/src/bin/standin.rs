//! Stands in for sshd's processes where the benchmarks measure everything but sshd.

use std::process::ExitCode;

use clap::Parser as _;
use rssh_lab::bench::control::standin;

fn main() -> ExitCode {
    match standin::run(&standin::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
