//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rssh_proto::{DeviceId, FailureKind};
use tracing::Level;

use crate::config::Config;
use crate::{agent, init};

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
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Makes this device's keys and the request for its certificate; keys that exist are kept.
    Init {
        #[arg(long, value_name = "ID")]
        device: DeviceId,
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Says whether a configuration can be used, and what is wrong with it.
    CheckConfig {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
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
            eprintln!("rssh-agentd: {error:#}");
            ExitCode::from(code)
        }
    }
}

/// Why the program ends, and with which exit code.
struct Exit {
    code: u8,
    error: anyhow::Error,
}

/// A fault of the configuration, or of what it names (EX_CONFIG).
fn misconfigured(error: impl Into<anyhow::Error>) -> Exit {
    Exit {
        code: FailureKind::Configuration.exit_code(),
        error: error.into(),
    }
}

fn failed(error: impl Into<anyhow::Error>) -> Exit {
    Exit {
        code: FailureKind::Internal.exit_code(),
        error: error.into(),
    }
}

fn run(command: Command) -> Result<(), Exit> {
    match command {
        Command::Run { config } => {
            let prepared = Config::load(&config)
                .map_err(misconfigured)
                .and_then(|config| agent::Prepared::new(config).map_err(misconfigured))?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(failed)?;
            runtime.block_on(agent::run(prepared)).map_err(failed)
        }
        Command::CheckConfig { config } => Config::load(&config)
            .map_err(misconfigured)
            .and_then(|config| config.check().map_err(misconfigured)),
        Command::Init { device, dir } => init::init(&device, &dir).map_err(failed),
    }
}
