//! The arguments of the commands that reach through tunnels.

use std::ffi::OsString;

use clap::Args;
use rssh_proto::duration::Span;
use rssh_proto::{DeviceId, Target};

use super::values::{Destination, device, positive};

/// Connects stdin and stdout to a device, for ssh's ProxyCommand; opens a tunnel when there is none.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ssh -o 'ProxyCommand rssh proxy %n %p' device-42
  rssh proxy device-42 8080 < request.http")]
pub struct ProxyArgs {
    /// The device's name
    #[arg(value_parser = device)]
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
    #[arg(value_name = "[USER@]DEVICE")]
    pub destination: Destination,
    /// Options and command for ssh
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}
