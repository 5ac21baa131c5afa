//! The arguments of the commands that reach through tunnels.

use std::ffi::OsString;
use std::num::NonZeroU16;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use rssh_proto::duration::Span;
use rssh_proto::{DeviceId, Target};

use crate::complete;

use super::devices::SelectorArgs;
use super::values::{Destination, Forward, Login, Offer, device, positive};

/// Connects stdin and stdout to a device, for ssh's ProxyCommand; opens a tunnel when there is none.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ssh -o 'ProxyCommand rssh proxy %n %p' device-42
  rssh proxy device-42 8080 < request.http")]
pub struct ProxyArgs {
    /// The device's name
    #[arg(value_parser = device, add = ArgValueCompleter::new(complete::devices))]
    pub device: DeviceId,
    /// A port on the device, or another target as `rssh open --to` takes it
    #[arg(value_name = "PORT", default_value = "22")]
    pub target: Target,
    /// Give up when there is no connection after this time
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub timeout: Span,
}

/// Logs in to a device with the system's ssh.
///
/// Everything after DEVICE (and after `--`, where rssh has an option of that name) goes to ssh: its options and the
/// command to run. ssh's exit code passes through.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh ssh device-42
  rssh ssh root@device-42 -- uname -a
  rssh ssh device-42 -- -L 8080:localhost:80 -N")]
pub struct SshArgs {
    /// The device's name, with the account to log in to
    #[arg(value_name = "[USER@]DEVICE", add = ArgValueCompleter::new(complete::destinations))]
    pub destination: Destination,
    /// Options and command for ssh
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// Listens on local ports and carries each connection to the device; a tunnel is opened when the first one comes.
///
/// Prints a line for each port it listens on: the address, the device and the target. Runs until it is interrupted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh forward device-42 8080:80                localhost:8080 here is port 80 of the device
  rssh forward device-42 0:80 5432              any free port, and the same port on both sides
  rssh forward device-42 5020:192.168.1.10:502  a host the device's list of targets allows
  rssh forward root@device-42 8080:80 -R 3128:localhost:3128")]
pub struct ForwardArgs {
    /// The device's name, with the account to log in to for -R
    #[arg(value_name = "[USER@]DEVICE", add = ArgValueCompleter::new(complete::destinations))]
    pub destination: Destination,
    /// The local port (0 for any) and the port on the device, or another target as `rssh open --to` takes it
    #[arg(value_name = "[LOCAL:]PORT", required_unless_present = "offers")]
    pub forwards: Vec<Forward>,
    /// Have the system's ssh offer a service of this side on a port of the device
    #[arg(short = 'R', value_name = "DPORT:HOST:PORT")]
    pub offers: Vec<Offer>,
    /// Drop a connection that has not reached the device after this time
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub timeout: Span,
    /// Print one JSON object for each port: local, device, target
    #[arg(long)]
    pub json: bool,
}

/// Runs a command on several devices at once with the system's ssh, and gathers output and exit codes.
///
/// The devices are those that are named, and those that have the tags.
///
/// Each line of output follows its device's name. The exit code is the worst of all: the highest one. Nobody is asked
/// for passwords or unknown host keys; a device that wants one fails, and the others go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh exec device-1 device-2 -- uptime
  rssh exec -l site=berlin --parallel 50 -- uptime
  rssh exec root@device-1 root@device-2 --json -- cat /etc/os-release")]
pub struct ExecArgs {
    /// The devices' names, each with the account to log in to
    #[arg(
        value_name = "[USER@]DEVICE",
        add = ArgValueCompleter::new(complete::destinations),
        required_unless_present = "tags"
    )]
    pub destinations: Vec<Destination>,
    #[command(flatten)]
    pub selector: SelectorArgs,
    /// The account to log in to on devices that are selected by tags
    #[arg(long, value_name = "NAME", requires = "tags")]
    pub login: Option<Login>,
    /// The command; ssh joins its words with spaces, and the device's shell splits them again
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
    /// Run on so many devices at a time
    #[arg(short = 'j', long, alias = "jobs", value_name = "N", default_value = "16")]
    pub parallel: NonZeroU16,
    /// Give a device up that cannot be reached within this time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = positive)]
    pub timeout: Span,
    /// Print one JSON object for each device, as it ends: device, outcome, exit_code, failure, stdout, stderr, millis
    #[arg(long)]
    pub json: bool,
}
