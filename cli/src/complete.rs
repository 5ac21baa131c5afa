//! Completion of devices and tunnels in a shell, by what was seen here before: nobody is asked, so nobody waits.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;

use crate::args::{Cli, Shell};
use crate::error::Error;
use crate::known::Known;
use crate::output;
use crate::profile::{self, Profile};

/// The variable by which the script in the shell asks; its value names the shell.
const ASKED: &str = "RSSH_COMPLETE";

/// Answers the shell, if it is the one who calls.
pub fn answer(arguments: &[OsString]) -> Option<ExitCode> {
    let directory = env::current_dir().ok();
    let answered = CompleteEnv::with_factory(Cli::command)
        .var(ASKED)
        .try_complete(arguments.iter().cloned(), directory.as_deref());
    match answered {
        Ok(true) => Some(ExitCode::SUCCESS),
        Ok(false) => None,
        Err(error) => Some(crate::args::report(&error)),
    }
}

/// Prints the script for a shell.
///
/// # Errors
/// When stdout cannot be written.
pub fn register(shell: Shell) -> Result<(), Error> {
    let name = match shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer = shells
        .completer(name)
        .ok_or_else(|| Error::internal(format!("no completion for {name}")))?;
    completer
        .write_registration(ASKED, "rssh", "rssh", "rssh", &mut script)
        .map_err(|error| Error::internal(error.to_string()))?;
    output::bytes(&script)
}

/// Devices.
pub fn devices(current: &OsStr) -> Vec<CompletionCandidate> {
    let devices = known().map(|known| known.devices()).unwrap_or_default();
    beginning_with(current, devices.iter().map(|device| (device.to_string(), None)))
}

/// Devices, after an account and `@` where one stands there.
pub fn destinations(current: &OsStr) -> Vec<CompletionCandidate> {
    match current.to_str().and_then(|text| text.rsplit_once('@')) {
        Some((login, device)) => devices(OsStr::new(device))
            .into_iter()
            .map(|candidate| candidate.add_prefix(format!("{login}@")))
            .collect(),
        None => devices(current),
    }
}

/// Tunnels, and the devices that have one.
pub fn closable(current: &OsStr) -> Vec<CompletionCandidate> {
    let tunnels = known().map(|known| known.tunnels()).unwrap_or_default();
    let devices: BTreeSet<String> = tunnels.iter().map(|tunnel| tunnel.device.to_string()).collect();
    let devices = devices.into_iter().map(|device| (device, None));
    let tunnels = tunnels.iter().map(|known| {
        let help = format!("{} {}", known.device, known.target);
        (known.tunnel.to_string(), Some(help))
    });
    beginning_with(current, devices.chain(tunnels))
}

/// Devices and tunnels.
pub fn explainable(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut candidates = devices(current);
    let theirs = closable(current);
    candidates.extend(theirs.into_iter().filter(|candidate| candidate.get_help().is_some()));
    candidates
}

fn beginning_with(current: &OsStr, names: impl Iterator<Item = (String, Option<String>)>) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return vec![];
    };
    names
        .filter(|(name, _)| name.starts_with(current))
        .map(|(name, help)| CompletionCandidate::new(name).help(help.map(Into::into)))
        .collect()
}

/// What the owner of the profile has seen; a `--profile` on the line is not looked at.
fn known() -> Option<Known> {
    let profile = Profile::load(&profile::path(None).ok()?).ok()?;
    Some(Known::of(&profile))
}
