//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use rssh_proto::FailureKind;
use rssh_proto::text::sanitize;

use crate::error::Error;

mod devices;
mod reach;
mod setup;
mod share;
mod tunnels;
mod values;

pub use devices::*;
pub use reach::*;
pub use setup::*;
pub use share::*;
pub use tunnels::*;
pub use values::{Destination, DeviceOrTunnel, Forward, HOSTS, Login, Offer, seconds};

const EXIT_CODES: &str = "\
Exit codes:
   0  success (`rssh ssh` passes ssh's own exit code through)
  64  the command line is wrong
  68  no device of that name is registered
  69  nobody serves: no server, broker or load balancer can be reached
  70  a fault of rssh itself
  75  a limit is reached; try again later
  77  you may not do this
  78  the profile is missing or wrong
  80  the device is offline
  81  the device is connected but does not answer
  82  the device does not allow this target
  83  nothing answers at the target
  84  the deadline passed
  85  the load balancer refused the name
  86  a certificate was refused
  87  the device holds as many tunnels as it may
  88  the device's ssh could not connect, log in or forward
  89  there is no such tunnel
  90  two agents use the identity of one device
 128+n  ended by signal n

Files:
  ~/.config/rssh/profile.toml  who you are and where the servers are
  ~/.cache/rssh/names/         host names that still admit connections
  ~/.local/state/rssh/ssh/     a key for ssh, and its certificate for each device";

/// Opens shells and TCP services on devices behind NAT, on demand.
///
/// Without a command, on a terminal, it offers your devices and logs in to the one you choose.
#[derive(Debug, Parser)]
#[command(
    name = "rssh",
    version,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = EXIT_CODES,
    after_long_help = EXIT_CODES
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Common {
    /// Use this profile instead of RSSH_PROFILE or ~/.config/rssh/profile.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// How requests reach a server: by MQTT, or by HTTPS to the profile's url
    #[arg(
        long,
        global = true,
        value_name = "mqtt|http",
        default_value = "mqtt",
        hide_possible_values = true
    )]
    pub via: Via,
    /// Show no progress and no remarks
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// How requests reach a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Via {
    #[default]
    Mqtt,
    Http,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Devices(DevicesArgs),
    Open(OpenArgs),
    Close(CloseArgs),
    Ls(LsArgs),
    Watch(WatchArgs),
    Why(WhyArgs),
    Proxy(ProxyArgs),
    Ssh(SshArgs),
    Forward(ForwardArgs),
    Exec(ExecArgs),
    Share(ShareArgs),
    Web(WebArgs),
    Certify(CertifyArgs),
    Login(LoginArgs),
    Init(InitArgs),
    Config(ConfigArgs),
    KnownHosts(KnownHostsArgs),
    Doctor(DoctorArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Says what clap found: help and version as they are, an error in one line.
pub fn report(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(FailureKind::BadRequest.exit_code())
        }
        _ => {
            let error = Error::usage(one_line(&error.render().to_string()));
            crate::output::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The message of a rendered clap error, without its label, and the usage as the remedy.
fn one_line(rendered: &str) -> String {
    let mut paragraphs = rendered.split("\n\n");
    let message: Vec<&str> = paragraphs.next().unwrap_or_default().split_whitespace().collect();
    let message = message.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let command = rendered
        .lines()
        .find_map(|line| line.strip_prefix("Usage: "))
        .map(|usage| {
            let words = usage.split_whitespace();
            let names = words.take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase()));
            names.collect::<Vec<_>>().join(" ")
        })
        .unwrap_or_else(|| "rssh".to_owned());
    format!("{}; see {command} --help", sanitize(message, 240))
}

#[cfg(test)]
mod tests;
