//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use rssh_mqtt::identity;
use rssh_proto::{HostPort, HttpsUrl, RouterId};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, ConfigError};
use crate::files::Files;
use crate::route::{Local, Routes};
use crate::state::State;
use crate::verify::{CaError, Verifier};

/// Exit code for a configuration that cannot be used (sysexits.h: EX_CONFIG).
const EX_CONFIG: u8 = 78;

/// Where packages keep the configuration.
const CONFIG: &str = "/etc/rssh/routerd.toml";

/// Keeps HAProxy equal to the registry of servers.
#[derive(Debug, Parser)]
#[command(name = "rssh-routerd", version)]
pub struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes this router's private key, and the request for its certificate.
    Init {
        /// The router's id, such as lb1.
        #[arg(long)]
        router: RouterId,
        /// Where router.key and router.csr go.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Makes this router one of an installation: its key is made here, its certificate and the name keys' master come
    /// from there.
    Join {
        /// Where the installation answers: https://HOST[:PORT]
        url: HttpsUrl,
        /// Where router.key, router.pem, name-master, servers-ca.pem and users-ca.pem go.
        #[arg(long)]
        dir: PathBuf,
        /// Connect here instead, to a server: as long as no load balancer leads to one.
        #[arg(long, value_name = "HOST:PORT")]
        connect: Option<HostPort>,
        /// Read the one-time token from this file, which only its owner may read, and not from a prompt or standard
        /// input.
        #[arg(long)]
        token_file: Option<PathBuf>,
    },
    /// Writes haproxy.cfg and its maps from the last good registry, so that HAProxy can start.
    Render {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// Follows the registry until SIGTERM.
    Run {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
    /// Examines this router and the HAProxy beside it, and says what to do where something is amiss.
    ///
    /// Changes nothing. Run it as root, which reads all that it asks for. Ends with 1 when a check fails, with 0 when all
    /// is well or could only be better.
    Doctor {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// Print one JSON object for each check: check, status (ok, warn or fail), detail and remedy.
        #[arg(long)]
        json: bool,
    },
    /// Checks the configuration and the files it names.
    CheckConfig {
        #[arg(long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
    },
}

/// Runs the program.
pub fn main(args: Args) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    match execute(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rssh-routerd: {error:#}");
            let config = error
                .chain()
                .any(|cause| cause.is::<ConfigError>() || cause.is::<CaError>());
            ExitCode::from(if config { EX_CONFIG } else { 1 })
        }
    }
}

fn execute(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Init { router, dir } => init(&router, &dir),
        Verb::Join {
            url,
            dir,
            connect,
            token_file,
        } => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(crate::join::run(url, connect, &dir, token_file.as_deref())),
        Verb::Render { config } => render(Config::load(&config)?),
        Verb::Doctor { config, json } => {
            let config = Config::load(&config)?;
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?
                .block_on(crate::doctor::run(&config, json))
        }
        Verb::CheckConfig { config } => check(&Config::load(&config)?),
        Verb::Run { config } => {
            let config = Config::load(&config)?;
            // One thread for the loop and one for its sources: each has an arena of memory of its own.
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?
                .block_on(async { crate::daemon::run(config, terminated()?).await })
        }
    }
}

/// A future that is over with SIGTERM or SIGINT.
fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn init(router: &RouterId, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let request = dir.join("router.csr");
    identity::request_certificate(router.as_str(), &dir.join("router.key"), &request)?;
    println!("{}", request.display());
    Ok(())
}

fn render(config: Config) -> anyhow::Result<()> {
    let (master, previous) = config.masters()?;
    let verifier = Verifier::load(&config.registry.servers_ca)?;
    let mut routes = Routes::default();
    for (server, text) in State::new(&config.state_dir)?.load()?.unwrap_or_default() {
        match verifier.verify(&server, &text, std::time::SystemTime::now()) {
            Ok(verified) => routes.handle_registration(verified, crate::route::Source::Database),
            Err(error) => tracing::warn!(%server, "not rendered: {error}"),
        }
    }
    let mut files = Files::new(config.haproxy.clone())?;
    let (revoked_users, revoked_serials) = files.revoked()?;
    let local = Local {
        master,
        previous,
        revoked: files.known_revoked()?,
        revoked_users,
        revoked_serials,
    };
    files.write(&routes.desired(&local))?;
    println!("{}", config.haproxy.dir.join("haproxy.cfg"));
    Ok(())
}

fn check(config: &Config) -> anyhow::Result<()> {
    config.masters()?;
    Verifier::load(&config.registry.servers_ca)?;
    config.redis().map_err(|error| value("redis.url", &error))?;
    rssh_stores::Postgres::parse(config.database.url.as_str()).map_err(|error| value("database.url", &error))?;
    for (key, path) in [
        ("haproxy.certificate", config.haproxy.certificate.path()),
        ("haproxy.users-ca", config.haproxy.users_ca.path()),
        ("mqtt.ca", &config.mqtt.ca),
        ("mqtt.cert", &config.mqtt.cert),
        ("mqtt.key", &config.mqtt.key),
    ] {
        std::fs::File::open(path).map_err(|error| value(key, &format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

fn value(key: &'static str, reason: &dyn ToString) -> ConfigError {
    ConfigError::Value {
        key,
        reason: reason.to_string(),
    }
}
