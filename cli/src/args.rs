//! The command line.

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use rssh_proto::duration::Span;
use rssh_proto::id::IdError;
use rssh_proto::text::{quoted, sanitize};
use rssh_proto::{DeviceId, FailureKind, Target, TunnelId, UserId};

use crate::error::Error;

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
 128+n  ended by signal n

Files:
  ~/.config/rssh/profile.toml  who you are and where the servers are
  ~/.cache/rssh/names/         host names that still admit connections";

/// Opens shells and TCP services on devices behind NAT, on demand.
#[derive(Debug, Parser)]
#[command(
    name = "rssh",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = EXIT_CODES,
    after_long_help = EXIT_CODES
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Common {
    /// Use this profile instead of RSSH_PROFILE or ~/.config/rssh/profile.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Show no progress and no remarks
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Open(OpenArgs),
    Close(CloseArgs),
    Ls(LsArgs),
    Proxy(ProxyArgs),
    Ssh(SshArgs),
    Init(InitArgs),
}

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
  rssh open device-42 --to 192.168.1.10:502    a host the device's list of targets allows
  rssh open device-42 --json | jq -r .host")]
pub struct OpenArgs {
    /// The device's name
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
    #[arg(value_name = "DEVICE|TUNNEL")]
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

/// Connects stdin and stdout to a device, for ssh's ProxyCommand; opens a tunnel when there is none.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ssh -o 'ProxyCommand rssh proxy %n %p' device-42
  rssh proxy device-42 8080 < request.http")]
pub struct ProxyArgs {
    /// The device's name
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

/// Makes your private key and the request for its certificate, in the profile's directory.
///
/// The key stays where it is; an administrator signs the request. A key that is there already is kept.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  rssh init --user alice")]
pub struct InitArgs {
    /// Your name, as the administrator will register it; asked for on a terminal
    #[arg(long, value_name = "NAME")]
    pub user: Option<UserId>,
    /// Where to put user.key and user.csr
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// What `close` closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceOrTunnel {
    Device(DeviceId),
    Tunnel(TunnelId),
}

impl FromStr for DeviceOrTunnel {
    type Err = IdError;

    /// A UUID is also a possible device id; it is taken for the tunnel, which is what has such ids.
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.parse() {
            Ok(tunnel) => Ok(Self::Tunnel(tunnel)),
            Err(_) => text.parse().map(Self::Device),
        }
    }
}

/// Whom to log in as, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub login: Option<Login>,
    pub device: DeviceId,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (login, device) = match text.rsplit_once('@') {
            Some((login, device)) => (Some(login.parse()?), device),
            None => (None, text),
        };
        let device = device.parse().map_err(|error: IdError| error.to_string())?;
        Ok(Self { login, device })
    }
}

/// The name of an account on a device; never an option, whatever ssh makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login(String);

impl FromStr for Login {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valid = (1..=32).contains(&text.len())
            && !text.starts_with(['-', '.'])
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            let text = quoted(text, 40);
            Err(format!("not an account name: {text}; use letters, digits, ., - and _"))
        }
    }
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn port(text: &str) -> Result<NonZeroU16, String> {
    let number = text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    number.ok_or_else(|| "not a port; use a number from 1 to 65535".to_owned())
}

fn positive(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|error| format!("{error}"))?;
    if span.duration().is_zero() {
        return Err("it must be longer than nothing".to_owned());
    }
    Ok(span)
}

/// A span in whole seconds, rounded up, as payloads carry it.
pub fn seconds(span: Span) -> u32 {
    u32::try_from(span.duration().as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
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
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_kind_of_failure_is_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        for kind in FailureKind::ALL {
            assert!(help.contains(&format!("\n  {}  ", kind.exit_code())), "{kind:?}");
        }
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains(&format!("rssh {}", command.get_name())) || command.get_name() == "proxy");
            assert!(example.starts_with("Example"), "{}", command.get_name());
        }
    }

    #[test]
    fn open_goes_to_ssh_unless_told_otherwise() {
        let target = |line| match parse(line).unwrap().command {
            Command::Open(args) => args.target.given().unwrap_or(Target::ssh()).to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(target("rssh open device-42"), "localhost:22");
        assert_eq!(target("rssh open device-42 --port 8080"), "localhost:8080");
        assert_eq!(target("rssh open device-42 --to plc-1"), "plc-1");
        assert_eq!(target("rssh open device-42 --to 10.0.0.1:502"), "10.0.0.1:502");
    }

    #[test]
    fn a_wrong_line_is_told_in_one_line_with_its_remedy() {
        for (line, what) in [
            ("rssh open device-42 --port 1 --to plc-1", "cannot be used with"),
            ("rssh open device-42 --port 0", "not a port"),
            ("rssh open device-42 --port +22", "not a port"),
            ("rssh open device-42 --remote-port 65536", "not a port"),
            ("rssh open device-42 --ttl 5", "not a span of time"),
            ("rssh open device-42 --ttl 0s", "longer than nothing"),
            ("rssh open Device", "not a valid device id"),
            ("rssh open -- -oProxyCommand=x", "not a valid device id"),
            ("rssh open \x1b[31m", "not a valid device id"),
            ("rssh open", "required"),
            ("rssh fly", "fly"),
        ] {
            let told = one_line(&parse(line).unwrap_err().render().to_string());
            assert!(told.contains(what), "{line}: {told}");
            assert!(
                told.contains("; see rssh") && told.ends_with("--help"),
                "{line}: {told}"
            );
            assert!(!told.contains(['\n', '\x1b']), "{told:?}");
        }
    }

    #[test]
    fn close_knows_a_tunnel_from_a_device() {
        let tunnel = TunnelId::generate();
        assert_eq!(tunnel.to_string().parse(), Ok(DeviceOrTunnel::Tunnel(tunnel)));
        let device = "device-1".parse().unwrap();
        assert_eq!("device-1".parse(), Ok(DeviceOrTunnel::Device(device)));
    }

    #[test]
    fn ssh_gets_everything_after_the_device() {
        for (line, expected) in [
            ("rssh ssh root@device-1 -- uname -a", vec!["uname", "-a"]),
            ("rssh ssh root@device-1 uname -a", vec!["uname", "-a"]),
            ("rssh ssh root@device-1 -v --json", vec!["-v", "--json"]),
            ("rssh ssh root@device-1 -- -q", vec!["-q"]),
            ("rssh ssh root@device-1", vec![]),
        ] {
            let Command::Ssh(args) = parse(line).unwrap().command else {
                panic!("{line}");
            };
            assert_eq!(args.args, expected, "{line}");
            assert_eq!(args.destination.login, Some("root".parse().unwrap()));
        }
        for bad in ["-oX@device-1", "@device-1", "a b@device-1", "root@-x", "root@"] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_travel_in_whole_seconds() {
        for (text, expected) in [("1ms", 1), ("1500ms", 2), ("1h", 3600), ("99999d", u32::MAX)] {
            assert_eq!(seconds(text.parse().unwrap()), expected, "{text}");
        }
    }
}
