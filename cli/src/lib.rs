//! `rssh`: shells and TCP services on devices behind NAT, on demand.
//!
//! [`request`] decides (without input or output) what a request says and when; [`control`] carries it over MQTT; [`lb`]
//! speaks TLS to the load balancer and proves a tunnel; [`session`] finds a name that leads to a target and [`relay`]
//! moves the bytes. Each subcommand is one
//! module of [`cmd`].

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

use clap::Parser as _;

pub mod args;
pub mod cache;
pub mod certificate;
pub mod cmd;
pub mod complete;
pub mod control;
pub mod error;
pub mod examine;
pub mod files;
pub mod host_keys;
pub mod known;
pub mod lb;
pub mod manual;
pub mod output;
pub mod profile;
pub mod progress;
pub mod relay;
pub mod remote;
pub mod request;
pub mod session;
pub mod signals;
pub mod ssh;
pub mod ssh_config;
pub mod stdio;
pub mod table;
pub mod trace;
pub mod via;
pub mod watch;

#[cfg(test)]
mod testing;

use args::{Cli, Command};
use error::Error;

/// Runs a command line and returns its exit code; everything that `main` does.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(code) = complete::answer(&arguments) {
        return code;
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return args::report(&error),
    };
    log();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Writes the program's log to stderr where `RSSH_LOG` asks for it, such as `RSSH_LOG=debug`.
fn log() {
    if let Ok(filter) = std::env::var("RSSH_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    let common = &cli.common;
    let Some(command) = &cli.command else {
        return cmd::pick::run(common);
    };
    match command {
        Command::Open(args) => block_on(cmd::open::run(common, args)),
        Command::Close(args) => block_on(cmd::close::run(common, args)),
        Command::Devices(args) => block_on(cmd::devices::run(common, args)),
        Command::Why(args) => block_on(cmd::why::run(common, args)),
        Command::Ls(args) => block_on(cmd::ls::run(common, args)),
        Command::Watch(args) => block_on(cmd::watch::run(common, args)),
        Command::Proxy(args) => block_on(cmd::proxy::run(common, args)),
        Command::Ssh(args) => block_on(cmd::ssh::run(common, args)),
        Command::Forward(args) => block_on(cmd::forward::run(common, args)),
        Command::Exec(args) => block_on(cmd::exec::run(common, args)),
        Command::Share(args) => block_on(cmd::share::share(common, args)),
        Command::Web(args) => block_on(cmd::share::web(common, args)),
        Command::Init(args) => cmd::init::run(common, args),
        Command::Certify(args) => block_on(cmd::certify::run(common, args)),
        Command::Login(args) => block_on(cmd::login::run(common, args)),
        Command::Config(args) => cmd::config::run(common, args),
        Command::KnownHosts(args) => block_on(cmd::known_hosts::run(common, args)),
        Command::Completions(args) => complete::register(args.shell),
        Command::Man(args) => manual::write(&args.dir),
        Command::Doctor(args) => block_on(cmd::doctor::run(common, args)),
    }
}

fn block_on(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal(format!("cannot start: {error}")))?;
    let outcome = runtime.block_on(work);
    // A read from a terminal cannot be called back; waiting for it would keep the program alive until a key is pressed.
    runtime.shutdown_background();
    outcome
}
