//! The arguments of the commands that set things up.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rssh_proto::duration::Span;
use rssh_proto::{HttpsUrl, UserId};

use super::values::{Destination, positive};

/// Makes you known to an installation: your key is made here, your certificate and profile come from there.
///
/// The one-time token comes from your administrator. It is asked for on a terminal, else read from standard input.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh login https://rssh.example.com
  rssh login https://rssh.example.com --token-file token")]
pub struct LoginArgs {
    /// Where the installation answers: https://HOST[:PORT]
    #[arg(value_name = "URL")]
    pub url: HttpsUrl,
    /// Read the token from this file, which only you may read
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
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

/// Sees to it that there is a certificate by which ssh logs in to a device, as the accounts that your grants name.
///
/// The certificate is short-lived, and kept until shortly before its end. ssh's configuration, as rssh config ssh writes
/// it, asks for it by itself; so do rssh ssh, exec and forward.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  rssh certify device-42")]
pub struct CertifyArgs {
    /// The device
    #[arg(value_name = "DEVICE")]
    pub destination: Destination,
}

/// Makes other programs know your devices.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  rssh config ssh --install")]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    Ssh(ConfigSshArgs),
}

/// Makes ssh, scp, sftp, rsync and git reach devices by name: DEVICE.rssh always, and DEVICE where it is known here.
///
/// The hosts stand in a file of their own, rssh.conf, which the configuration includes. Install again to add the
/// devices that have become known since.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh config ssh --print
  rssh config ssh --install
  rssh config ssh --remove")]
pub struct ConfigSshArgs {
    #[command(flatten)]
    pub action: ConfigSshAction,
    /// The directory of ssh's configuration [default: ~/.ssh]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Print one JSON object: action, hosts, config, changed
    #[arg(long, conflicts_with = "print")]
    pub json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ConfigSshAction {
    /// Write the file, and the line that includes it
    #[arg(long)]
    pub install: bool,
    /// Take both away
    #[arg(long)]
    pub remove: bool,
    /// Print the file instead
    #[arg(long)]
    pub print: bool,
}

/// Examines what a session needs, from the profile to the servers, and says what to do where something is amiss.
///
/// The exit code is 0 when nothing fails, else 1.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh doctor
  rssh doctor --json | jq -r 'select(.status == \"fail\") | .remedy'")]
pub struct DoctorArgs {
    /// Print one JSON object for each check: check, status (ok, warn or fail), detail, remedy
    #[arg(long)]
    pub json: bool,
    /// Give a check up after this time
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = positive)]
    pub timeout: Span,
}

/// Prints the script that makes a shell complete commands, devices and tunnels.
///
/// Names come from what was seen here before, so that nobody waits for a server.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rssh completions bash        in ~/.bashrc: source <(rssh completions bash)
  rssh completions zsh         in ~/.zshrc: source <(rssh completions zsh)
  rssh completions fish        in ~/.config/fish/config.fish: rssh completions fish | source")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "bash|zsh|fish", hide_possible_values = true)]
    pub shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Writes the manual pages, from the text that --help shows.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  rssh man --dir man1")]
pub struct ManArgs {
    /// Where to put them; made when it is not there
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}
