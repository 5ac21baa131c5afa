//! The arguments of the commands about devices.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use rssh_proto::duration::Span;
use rssh_proto::{DeviceId, Tag};

use crate::complete;

use super::tunnels::TargetArgs;
use super::values::{DeviceOrTunnel, device, positive};

/// Which devices are meant, by their tags.
#[derive(Debug, Args)]
pub struct SelectorArgs {
    /// The devices that have this tag; given again, those that have all of them
    #[arg(short = 'l', long = "tag", value_name = "KEY=VALUE")]
    pub tags: Vec<Tag>,
}

/// Lists the devices that you may open something on: whether they are there, since when, and their tags.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh devices
  rssh devices -l site=berlin --watch
  rssh devices --json | jq -r 'select(.status == \"online\") | .device'")]
pub struct DevicesArgs {
    #[command(flatten)]
    pub selector: SelectorArgs,
    /// Go on and show them as they come and go, until it is interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// With --watch, look so often
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = positive, requires = "watch")]
    pub every: Span,
    /// Print one JSON object per line (NDJSON): device, status, since, tags; with --watch also event and at
    #[arg(long)]
    pub json: bool,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub timeout: Span,
}

/// Tells how a tunnel came about, stage by stage with times, what failed and what to do about it.
///
/// Of a device it tells the latest tunnel, also when that is over or never came to be. What servers and the device saw
/// is theirs to tell; what happened on the way back (route, first byte, proof) was noted here, when the tunnel was
/// opened from here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh why device-42
  rssh why device-42 --port 8080
  rssh why device-42 --json | jq .stages")]
pub struct WhyArgs {
    /// The device's name, or the tunnel's id as `rssh ls` prints it
    #[arg(value_name = "DEVICE|TUNNEL", add = ArgValueCompleter::new(complete::explainable))]
    pub which: DeviceOrTunnel,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub timeout: Span,
    /// Print one JSON object: tunnel, device, target, state, server, requested_at, claims, stages, failure, advice
    #[arg(long)]
    pub json: bool,
}

/// Prints devices' host keys as ssh's known_hosts takes them, from what the devices reported when they enrolled.
///
/// With them `StrictHostKeyChecking yes` works on the first contact. `rssh config ssh --install` has ssh ask by itself.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh known-hosts device-42
  rssh known-hosts device-1 device-2 >> known_hosts
  rssh known-hosts device-42 --json | jq -r '.keys[]'")]
pub struct KnownHostsArgs {
    /// The devices' names
    #[arg(value_name = "DEVICE", value_parser = device, add = ArgValueCompleter::new(complete::devices), required = true)]
    pub devices: Vec<DeviceId>,
    /// As ssh's KnownHostsCommand: keys that were told in the last minutes will do, and none are no failure
    #[arg(long)]
    pub cached: bool,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = positive)]
    pub timeout: Span,
    /// Print one JSON object for each device: device, keys
    #[arg(long)]
    pub json: bool,
}
