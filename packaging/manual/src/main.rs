//! Writes `rssh-agentd.8`, `rssh-serverd.8` and `rssh-routerd.8` into a directory.
//!
//! A program of its own, so that no daemon carries its manual.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Writes the daemons' manual pages.
#[derive(Debug, Parser)]
#[command(name = "rssh-manual")]
struct Args {
    /// Where to put them; made when it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    match rssh_manual::write(&Args::parse().dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rssh-manual: {error:#}");
            ExitCode::FAILURE
        }
    }
}
