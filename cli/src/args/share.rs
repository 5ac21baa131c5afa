//! The arguments of the commands that let others in.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use rssh_proto::duration::Span;
use rssh_proto::{DeviceId, Target};

use crate::complete;

use super::values::{device, positive};

/// Prints a URL by which anyone who has it reaches a service of a device, for some minutes.
///
/// The URL is all the proof there is: it works from the first address that uses it, and for no other. Its host name
/// travels in the clear (TLS's SNI), so whoever watches the network learns it, too late to be the first. Connections
/// that were made in time go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh share device-42                  the device's web page, for ten minutes
  rssh share device-42 8080 --for 2m
  rssh share device-42 --json | jq -r .url")]
pub struct ShareArgs {
    /// The device's name
    #[arg(value_parser = device, add = ArgValueCompleter::new(complete::devices))]
    pub device: DeviceId,
    /// A port on the device, or another target as `rssh open --to` takes it
    #[arg(value_name = "PORT", default_value = "80")]
    pub target: Target,
    /// How long the URL admits new connections, ten minutes at most
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = positive)]
    pub r#for: Span,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub timeout: Span,
    /// Print one JSON object: url, host, port, device, target, tunnel, host_expires_at
    #[arg(long)]
    pub json: bool,
}

/// Opens a device's web page in the browser, by a URL as `rssh share` makes it.
///
/// Without a terminal, a display or a browser it prints the URL. BROWSER names the program.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh web device-42
  rssh web device-42 8080 --print")]
pub struct WebArgs {
    /// The device's name
    #[arg(value_parser = device, add = ArgValueCompleter::new(complete::devices))]
    pub device: DeviceId,
    /// A port on the device, or another target as `rssh open --to` takes it
    #[arg(value_name = "PORT", default_value = "80")]
    pub target: Target,
    /// Print the URL only
    #[arg(long)]
    pub print: bool,
    /// How long the URL admits new connections, ten minutes at most
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = positive)]
    pub r#for: Span,
    /// Give up after this time
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = positive)]
    pub timeout: Span,
}
