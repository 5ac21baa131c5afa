//! The lab's program.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match rssh_lab::cli::run(rssh_lab::cli::Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
