//! `rssh config ssh`: ssh's configuration.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::args::{Common, ConfigArgs, ConfigCommand, ConfigSshArgs};
use crate::certificate;
use crate::error::Error;
use crate::files;
use crate::known::Known;
use crate::output;
use crate::profile::{self, Profile};
use crate::ssh::Proxy;
use crate::ssh_config::{excluded, hosts, include, included};

/// What was done, as `--json` prints it.
#[derive(Serialize)]
struct Done {
    action: &'static str,
    hosts: PathBuf,
    config: PathBuf,
    changed: bool,
}

/// Runs the command.
///
/// # Errors
/// When the profile is missing or the files cannot be written.
pub fn run(common: &Common, args: &ConfigArgs) -> Result<(), Error> {
    match &args.command {
        ConfigCommand::Ssh(args) => ssh(common, args),
    }
}

fn ssh(common: &Common, args: &ConfigSshArgs) -> Result<(), Error> {
    let (directory, included_as) = match &args.dir {
        Some(directory) => {
            let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.clone());
            let file = directory.join("rssh.conf");
            (directory, file)
        }
        None => (home()?.join(".ssh"), "~/.ssh/rssh.conf".into()),
    };
    let line = include(included_as.as_os_str());
    let (hosts, config) = (directory.join("rssh.conf"), directory.join("config"));
    if args.action.print {
        return output::bytes(&render(common)?);
    }
    let (action, changed) = if args.action.install {
        ("install", install(&hosts, &render(common)?, &config, &line)?)
    } else {
        ("remove", remove(&hosts, &config, &line)?)
    };
    let done = Done {
        action,
        hosts,
        config,
        changed,
    };
    if args.json {
        return output::json(&done);
    }
    if !common.quiet {
        output::remark(&told(&done));
    }
    Ok(())
}

fn render(common: &Common) -> Result<Vec<u8>, Error> {
    let profile = Profile::load(&profile::path(common.profile.as_deref())?)?;
    let devices = Known::of(&profile).devices();
    let certificates = profile.url.as_ref().and_then(|_| certificate::directory());
    hosts(&Proxy::of(common)?, &devices, certificates.as_deref()).ok_or_else(|| {
        Error::configuration(
            "a path of this program, its profile or its state has a line break or a quote; ssh takes none",
        )
    })
}

fn install(hosts: &Path, file: &[u8], config: &Path, line: &[u8]) -> Result<bool, Error> {
    let mut changed = false;
    if fs::read(hosts).ok().as_deref() != Some(file) {
        files::replace(hosts, file, 0o600).map_err(|error| not_written(hosts, &error))?;
        changed = true;
    }
    let before = read(config)?;
    if let Some(after) = included(before.as_deref().unwrap_or_default(), line) {
        rewrite(config, &after)?;
        changed = true;
    }
    Ok(changed)
}

fn remove(hosts: &Path, config: &Path, line: &[u8]) -> Result<bool, Error> {
    let mut changed = false;
    if let Some(after) = excluded(&read(config)?.unwrap_or_default(), line) {
        rewrite(config, &after)?;
        changed = true;
    }
    match fs::remove_file(hosts) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(changed),
        Err(error) => Err(not_written(hosts, &error)),
    }
}

fn read(config: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(config) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::configuration(format!(
            "cannot read {}: {error}",
            config.display()
        ))),
    }
}

/// Replaces the configuration with its mode kept, behind a link where it is one.
fn rewrite(config: &Path, text: &[u8]) -> Result<(), Error> {
    let file = fs::canonicalize(config).unwrap_or_else(|_| config.to_owned());
    let mode = fs::metadata(&file).map_or(0o600, |metadata| metadata.permissions().mode() & 0o777);
    files::replace(&file, text, mode).map_err(|error| not_written(&file, &error))
}

fn not_written(path: &Path, error: &io::Error) -> Error {
    Error::configuration(format!(
        "cannot write {}: {error}; use --print and put it in place yourself",
        path.display()
    ))
}

/// The user's home.
fn home() -> Result<PathBuf, Error> {
    certificate::home()
        .ok_or_else(|| Error::configuration("this account has no home directory; name ssh's directory with --dir"))
}

fn told(done: &Done) -> String {
    let hosts = done.hosts.display();
    match (done.action, done.changed) {
        ("install", true) => format!("installed {hosts}; try: ssh DEVICE.rssh"),
        ("install", false) => format!("{hosts} is up to date"),
        (_, true) => format!("removed {hosts}"),
        (_, false) => "nothing to remove".to_owned(),
    }
}
