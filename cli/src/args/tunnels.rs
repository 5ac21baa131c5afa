//! The arguments of the commands that open, close and list tunnels.

use std::num::NonZeroU16;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use rssh_proto::duration::Span;
use rssh_proto::{DeviceId, Target};

use crate::complete;

use super::values::{DeviceOrTunnel, device, port, positive};

/// Where on the device a tunnel leads.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// A port on the device itself [default: 22]
    #[arg(long, value_name = "N", value_parser = port)]
    port: Option<NonZeroU16>,
    /// A host and port in the device's network, or the name of a target in the device's list
    #[arg(long, value_name = "HOST:PORT|NAME")]
    to: Option<Target>,
}

impl TargetArgs {
    /// The target, when one was given.
    pub fn given(&self) -> Option<Target> {
        self.to.clone().or(self.port.map(Target::local))
    }
}

/// Opens a tunnel, proves that it works and prints the host name and port that lead to it.
///
/// The name admits new connections for two minutes; `rssh proxy` and `rssh ssh` fetch fresh ones by themselves. A live
/// tunnel to the same target is reused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh open device-42                          the device's ssh
  rssh open device-42 --port 8080 --ttl 8h
  rssh open device-42 --wait=2h                as soon as the device is there
  rssh open device-42 --to 192.168.1.10:502    a host the device's list of targets allows
  rssh open device-42 --json | jq -r .host")]
pub struct OpenArgs {
    /// The device's name
    #[arg(value_parser = device, add = ArgValueCompleter::new(complete::devices))]
    pub device: DeviceId,
    #[command(flatten)]
    pub target: TargetArgs,
    /// The port wished for on the server; a hint
    #[arg(long, value_name = "P", value_parser = port)]
    pub remote_port: Option<NonZeroU16>,
    /// How long the tunnel may live, such as 90s, 1h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = positive)]
    pub ttl: Span,
    /// Close the tunnel once it has carried no connection for this long [default: never]
    #[arg(long, value_name = "TIME", value_parser = positive)]
    pub idle: Option<Span>,
    /// Make a tunnel even where a live one exists
    #[arg(long)]
    pub new: bool,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub timeout: Span,
    /// Wait for a device that is offline, so long at most [default without a time: 1d]
    #[arg(
        long,
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1d",
        conflicts_with = "timeout",
        value_parser = positive
    )]
    pub wait: Option<Span>,
    /// Print one JSON object: tunnel, device, target, server, host, port, state, expires_at, host_expires_at, banner
    #[arg(long)]
    pub json: bool,
}

/// Closes tunnels: all of yours to a device, those to one of its targets, or one by its id.
///
/// A tunnel that several openers share closes with the last of them, or by --force.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh close device-42
  rssh close device-42 --port 8080 --force")]
pub struct CloseArgs {
    /// The device's name, or the tunnel's id as `rssh ls` prints it
    #[arg(value_name = "DEVICE|TUNNEL", add = ArgValueCompleter::new(complete::closable))]
    pub which: DeviceOrTunnel,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Close the tunnel whoever else holds it
    #[arg(long)]
    pub force: bool,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub timeout: Span,
    /// Print one JSON object per line: tunnel, device, target, holders_left
    #[arg(long)]
    pub json: bool,
}

/// Lists your open tunnels.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh ls
  rssh ls --json | jq -r 'select(.state == \"active\") | .device'")]
pub struct LsArgs {
    /// Print one JSON object per line (NDJSON), with the fields of `rssh open --json`
    #[arg(long)]
    pub json: bool,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub timeout: Span,
}

/// Shows your open tunnels as they come, change and go, until it is interrupted.
///
/// On a terminal it is a table that stays; otherwise a line for each event: added, changed or removed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh watch
  rssh watch --json | jq -r 'select(.event == \"removed\") | .device'")]
pub struct WatchArgs {
    /// Print one JSON object for each event: event, at, and the fields of `rssh ls --json`
    #[arg(long)]
    pub json: bool,
    /// Look so often
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = positive)]
    pub every: Span,
}
