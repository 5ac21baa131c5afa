//! The administrator's commands.

mod audit;
mod authorization;
pub(crate) mod enroll;
pub(crate) mod install;
pub(crate) mod join;
mod names;
mod token;

use anyhow::{Context as _, Result};

use crate::args::{Command, Server, Sshd, WithConfig};
use crate::capacity::Bound;
use crate::config::{Config, ConfigError};
use crate::control::{self, Answer, Order};
use crate::office::Office;
use crate::store::{Kind, Store};

/// Carries out a command; `run` is the daemon's own.
///
/// # Errors
/// When the command cannot be carried out; the message names the object and the remedy.
pub async fn run(command: Command) -> Result<()> {
    match command {
        Command::Run(at) => crate::daemon::run(Config::load(&at.config)?).await,
        Command::Drain { at, within } => {
            let within_s = within.duration().as_secs();
            let answer = tell(&Config::load(&at.config)?, Order::Drain { within_s }).await?;
            println!("draining; {} tunnels are held", answer.counts.held);
            Ok(())
        }
        Command::Capacity { at, json } => {
            let answer = tell(&Config::load(&at.config)?, Order::Capacity).await?;
            print_capacity(&answer, json)
        }
        Command::CheckConfig(at) => Config::load(&at.config).map(|_| ()).map_err(Into::into),
        Command::Setup(args) => crate::setup::run(args).await,
        Command::Doctor { at, json } => crate::doctor::run(&Config::load(&at.config)?, json).await,
        Command::Migrate(at) => Ok(Store::new(&Config::load(&at.config)?.database)?.migrate().await?),
        Command::Ca(command) => install::ca(command),
        Command::Names(command) => names::run(command).await,
        Command::Broker(command) => install::broker(&command).await,
        Command::Server(Server::Init { at, id }) => install::server(&Config::load(&at.config)?, id).await,
        Command::Sshd(Sshd::Nodelay(at)) => Ok(crate::sshd::nodelay(&Config::load(&at.config)?.sshd)?),
        Command::Server(Server::Add { id, at, offer }) => {
            let id = id.unwrap_or_else(crate::home::draw_id);
            enroll::offer(&office(&at)?, Kind::Server, Some(id.as_str()), &offer).await
        }
        Command::Join {
            url,
            at,
            connect,
            token_file,
        } => join::run(&Config::load(&at.config)?, url, connect, token_file.as_deref()).await,
        Command::Router(router) => authorization::router(router).await,
        Command::Device(device) => authorization::device(device).await,
        Command::User(user) => authorization::user(user).await,
        Command::Grant(grant) => authorization::grant(grant).await,
        Command::Group(group) => authorization::group(group).await,
        Command::Token(command) => token::run(command).await,
        Command::Audit(audit) => audit::run(audit).await,
    }
}

fn office(at: &WithConfig) -> Result<Office> {
    Office::open(Config::load(&at.config)?)
}

async fn tell(config: &Config, order: Order) -> Result<Answer> {
    let socket = config.socket(control::SOCKET);
    control::tell(&socket, order).await.with_context(|| {
        format!(
            "cannot speak to the daemon on {}; is rssh-serverd running, and are you root?",
            socket.display()
        )
    })
}

fn print_capacity(answer: &Answer, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(answer)?);
        return Ok(());
    }
    let (counts, capacity) = (&answer.counts, &answer.capacity);
    let bound = match capacity.bound {
        Bound::Ports => "ports to lease; widen sshd.ports, or wait for those at rest",
        Bound::Memory => "memory",
        Bound::Processes => "processes; raise kernel.pid_max and kernel.threads-max",
        Bound::Descriptors => "open files of serverd; raise LimitNOFILE in its unit",
        Bound::Connections => "connections from a load balancer; add ports to sshd.listen",
    };
    println!("tunnels   {} of {}", counts.held, capacity.tunnels);
    println!("bound by  {bound}");
    println!("landing   {}", counts.landing);
    println!("ports     {} free, {} resting", counts.free, counts.resting);
    Ok(())
}

/// The exit code for an error (sysexits.h): 78 for a wrong configuration, 77 for what is not allowed, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigError>() {
        78
    } else if error.is::<authorization::NotAllowed>() {
        77
    } else {
        1
    }
}
