//! rssh-serverd.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let arguments = rssh_serverd::args::Arguments::try_parse().unwrap_or_else(|error| {
        if error.use_stderr() {
            // It repeats what was given.
            eprintln!("{}", rssh_proto::text::printable(&error.to_string(), 400));
        } else {
            let _ = error.print();
        }
        std::process::exit(if error.use_stderr() { 64 } else { 0 });
    });
    rssh_serverd::log();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rssh-serverd: cannot start: {error}");
            return ExitCode::from(71);
        }
    };
    match runtime.block_on(rssh_serverd::cmd::run(arguments.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rssh-serverd: {error:#}");
            ExitCode::from(rssh_serverd::cmd::exit_code(&error))
        }
    }
}
