//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
#[cfg(feature = "enrolment")]
use rssh_proto::Failure;
use rssh_proto::duration::Span;
use rssh_proto::{DeviceId, FailureKind};
use tracing::Level;

use crate::ask::Format;
use crate::config::Config;
use crate::control::Order;
use crate::{agent, ask, check, init};
#[cfg(feature = "enrolment")]
use crate::{enroll, rotate};

/// Where packages keep the configuration.
const CONFIG: &str = "/etc/rssh/agentd.toml";

/// The rssh device agent: opens reverse SSH tunnels when it is asked to, and only then.
#[derive(Debug, Parser)]
#[command(name = "rssh-agentd", version, arg_required_else_help = true)]
struct Arguments {
    /// How much to log: error, warn, info, debug or trace.
    #[arg(long, global = true, default_value = "info", value_name = "LEVEL")]
    log: Level,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Waits for orders and carries them out; SIGTERM ends it with its tunnels, SIGUSR1 leaves them for the next.
    Run {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// Makes this device's keys and the request for its certificate; keys that exist are kept.
    Init {
        #[arg(long, value_name = "ID")]
        device: DeviceId,
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Says what the running agent does, and what failed last; exit code 69 while there is no broker.
    Status {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
        /// Print what Prometheus reads, for its node exporter's textfile collector.
        #[cfg(feature = "metrics")]
        #[arg(long, conflicts_with = "json")]
        metrics: bool,
    },
    /// Ends every tunnel, and opens none for a while.
    Pause {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// For how long.
        #[arg(long = "for", value_name = "SPAN", default_value = "1h", value_parser = ask::pause)]
        length: Span,
    },
    /// Ends a pause.
    Resume {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// Tries the brokers, the load balancer and the targets from here; exit code 69 when one fails.
    Check {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// Makes this device one of an installation: its keys are made here, its certificates come from there.
    #[cfg(feature = "enrolment")]
    Enroll(enroll::Enroll),
    /// Gives this device's ssh another key; the one before stays good for a day, and tunnels that are up stay up.
    #[cfg(feature = "enrolment")]
    RotateKey {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// Says whether a configuration can be used, and what is wrong with it.
    CheckConfig {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
}

/// The command line, for the manual.
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Runs the program: what `main` does.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_max_level(arguments.log)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit { code, error }) => {
            if let Some(error) = error {
                eprintln!("rssh-agentd: {error:#}");
            }
            ExitCode::from(code)
        }
    }
}

/// Why the program ends, and with which exit code.
struct Exit {
    code: u8,
    /// Nothing when all is said.
    error: Option<anyhow::Error>,
}

impl Exit {
    /// What was found is told, and not well.
    fn quiet() -> Self {
        Self {
            code: FailureKind::NobodyServing.exit_code(),
            error: None,
        }
    }
}

/// A fault of the configuration, or of what it names (EX_CONFIG).
fn misconfigured(error: impl Into<anyhow::Error>) -> Exit {
    Exit {
        code: FailureKind::Configuration.exit_code(),
        error: Some(error.into()),
    }
}

fn failed(error: impl Into<anyhow::Error>) -> Exit {
    Exit {
        code: FailureKind::Internal.exit_code(),
        error: Some(error.into()),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)
}

/// Asks the running agent, and tells its status.
fn asked(config: &Path, order: Order, format: Format) -> Result<(), Exit> {
    let config = Config::load(config).map_err(misconfigured)?;
    match runtime()?.block_on(ask::ask(&config, order, format)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Exit::quiet()),
        Err(error) => Err(Exit {
            code: FailureKind::NobodyServing.exit_code(),
            error: Some(error.into()),
        }),
    }
}

/// What was asked for is done, whether there is a broker or not.
fn connected_or_not(exit: Exit) -> Result<(), Exit> {
    if exit.error.is_none() { Ok(()) } else { Err(exit) }
}

/// What a server has refused, with its kind's exit code; else a fault of the files here.
#[cfg(feature = "enrolment")]
fn refused(error: anyhow::Error) -> Exit {
    let kind = error
        .downcast_ref::<Failure>()
        .map_or(FailureKind::Configuration, |failure| failure.kind);
    Exit {
        code: kind.exit_code(),
        error: Some(error),
    }
}

fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::Run { config } => {
            let prepared = Config::load(&config)
                .map_err(misconfigured)
                .and_then(|config| agent::Prepared::new(config).map_err(misconfigured))?;
            runtime()?.block_on(agent::run(prepared)).map_err(failed)
        }
        #[cfg(feature = "metrics")]
        Command::Status {
            config, metrics: true, ..
        } => asked(&config, Order::Status, Format::Metrics),
        Command::Status { config, json, .. } => {
            let format = if json { Format::Json } else { Format::Text };
            asked(&config, Order::Status, format)
        }
        Command::Pause { config, length } => {
            let for_s = length.duration().as_secs();
            asked(&config, Order::Pause { for_s }, Format::Text).or_else(connected_or_not)
        }
        Command::Resume { config } => asked(&config, Order::Resume, Format::Text).or_else(connected_or_not),
        Command::Check { config } => {
            let config = Config::load(&config).map_err(misconfigured)?;
            let well = runtime()?.block_on(check::check(&config)).map_err(misconfigured)?;
            if well { Ok(()) } else { Err(Exit::quiet()) }
        }
        Command::CheckConfig { config } => Config::load(&config)
            .map_err(misconfigured)
            .and_then(|config| config.check().map_err(misconfigured)),
        #[cfg(feature = "enrolment")]
        Command::Enroll(args) => runtime()?.block_on(enroll::run(args)).map_err(refused),
        #[cfg(feature = "enrolment")]
        Command::RotateKey { config } => {
            let config = Config::load(&config).map_err(misconfigured)?;
            runtime()?.block_on(rotate::run(&config)).map_err(refused)
        }
        Command::Init { device, dir } => init::init(&device, &dir).map_err(failed),
    }
}
