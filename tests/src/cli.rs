//! The command line of `rssh-lab`.

use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::component::{self, Component};
use crate::control::Action;
use crate::lab::Lab;
use crate::place::Place;
use crate::programs::Programs;
use crate::root::Root;
use crate::setup::Options;
use crate::{demo, enter, interrupt, record};

/// Starts the whole real system in one directory, for the demo, the tests and the benchmarks.
#[derive(Debug, Parser)]
#[command(name = "rssh-lab", version)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring up a lab; returns when all is ready
    Up {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long, default_value = "2")]
        servers: NonZeroU32,
        #[arg(long, default_value_t = 4)]
        devices: u32,
        #[arg(long, default_value_t = 2)]
        users: u32,
        /// Every store, broker and load balancer twice, and three Sentinels
        #[arg(long)]
        ha: bool,
    },
    /// Run a command in the lab, as a user or else as the operator
    Exec {
        #[arg(long)]
        dir: PathBuf,
        /// One of alice, bob, ...
        #[arg(long, value_name = "NAME", conflicts_with = "device")]
        user: Option<String>,
        /// On device N, as its root
        #[arg(long, value_name = "N")]
        device: Option<u32>,
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Do something to a component
    Ctl {
        #[arg(long)]
        dir: PathBuf,
        action: Action,
        component: String,
    },
    /// Show the components
    Status {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// End the lab and remove all but its logs
    Down {
        #[arg(long)]
        dir: PathBuf,
    },
    /// Show one tunnel from end to end, in a lab of its own
    Demo {
        /// Leave the lab running
        #[arg(long)]
        keep: bool,
    },
    /// Make the picture in the README from a real run, in a lab of its own
    Record { file: PathBuf },
    /// Start recorded components
    #[command(hide = true)]
    Launch {
        #[arg(long)]
        dir: PathBuf,
        names: Vec<String>,
    },
    /// Become a recorded component
    #[command(hide = true)]
    Become {
        #[arg(long)]
        dir: PathBuf,
        name: String,
    },
    /// Become a command at a place of the lab
    #[command(hide = true)]
    At {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        place: Place,
        #[arg(long)]
        account: Option<String>,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Does what the command line says.
///
/// # Errors
/// When that fails.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::Up {
            dir,
            servers,
            devices,
            users,
            ha,
        } => {
            interrupt::guard(&dir)?;
            up(
                &dir,
                Options {
                    servers,
                    devices,
                    users,
                    ha,
                },
            )?;
        }
        Verb::Exec {
            dir,
            user,
            device,
            command,
        } => {
            let lab = Lab::attach(&dir)?;
            let place = match device {
                Some(n) => Place::Device(n),
                None => lab.place(user.as_deref())?,
            };
            enter::exec(lab.dir(), lab.programs().dir(), &place, None, command_of(&command))?;
        }
        Verb::Ctl { dir, action, component } => Lab::attach(&dir)?.ctl(action, &component)?,
        Verb::Status { dir, json } => status(&Lab::attach(&dir)?, json)?,
        Verb::Down { dir } => Lab::attach(&dir)?.down()?,
        Verb::Demo { keep } => demo::run(keep)?,
        Verb::Record { file } => record::record(&file)?,
        Verb::Launch { dir, names } => component::launch(&dir, &names)?,
        Verb::Become { dir, name } => {
            let programs = Programs::locate()?;
            let dir = Root::new(&dir)?;
            enter::component(&dir, programs.dir(), &Component::read(&dir, &name)?)?;
        }
        Verb::At {
            dir,
            place,
            account,
            command,
        } => {
            let programs = Programs::locate()?;
            let dir = Root::new(&dir)?;
            enter::exec(&dir, programs.dir(), &place, account.as_deref(), command_of(&command))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn command_of(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

fn up(dir: &Path, options: Options) -> Result<()> {
    Lab::up(dir, options, &report)?;
    Ok(())
}

/// Tells of a stage on stderr.
pub(crate) fn report(stage: &str, took: Duration) {
    let mut stderr = std::io::stderr().lock();
    // Nobody to tell is no reason to fail.
    let _ = writeln!(stderr, "{:>8.3} s  {stage}", took.as_secs_f64());
}

fn status(lab: &Lab, json: bool) -> Result<()> {
    let status = lab.status()?;
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, &status)?;
        return writeln!(out).context("cannot write to stdout");
    }
    if out.is_terminal() {
        writeln!(
            out,
            "{:<12} {:>8} {:<8} {:<10} ADDRESS",
            "COMPONENT", "PID", "STATE", "PLACE"
        )?;
    }
    for component in status.components {
        let pid = component.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let address = component.address.as_deref().unwrap_or("-");
        writeln!(
            out,
            "{:<12} {pid:>8} {:<8} {:<10} {address}",
            component.name, component.state, component.place
        )?;
    }
    Ok(())
}
