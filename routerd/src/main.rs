//! The rssh router daemon.

use std::process::ExitCode;

use clap::Parser as _;
use rssh_routerd::cli::Args;

fn main() -> ExitCode {
    rssh_routerd::cli::main(Args::parse())
}
