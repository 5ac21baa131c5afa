//! `rssh ssh`: the system's ssh, through `rssh proxy`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rssh_proto::DeviceId;

use crate::args::{Common, SshArgs};
use crate::error::Error;
use crate::profile::{self, Profile};

/// Becomes ssh; returns only when that fails.
///
/// # Errors
/// When the profile is missing or ssh cannot be run.
pub fn run(common: &Common, args: &SshArgs) -> Result<(), Error> {
    // ssh would tell of a proxy that failed; the reason is better told once, and here.
    Profile::load(&profile::path(common.profile.as_deref())?)?;
    let program = env::current_exe().map_err(|error| Error::internal(format!("cannot find myself: {error}")))?;
    let destination = &args.destination;
    let mut ssh = Command::new("ssh");
    ssh.arg("-o")
        .arg(proxy_command(&program, common, &destination.device))
        .args(["-o", &format!("HostKeyAlias={}", destination.device)]);
    if let Some(login) = &destination.login {
        ssh.args(["-l", &login.to_string()]);
    }
    // ssh goes on reading options after the destination, so whatever follows is an option or the command.
    ssh.arg(destination.device.as_str()).args(&args.args);
    let error = ssh.exec();
    Err(Error::configuration(format!(
        "cannot run ssh: {error}; install the package openssh-client"
    )))
}

/// The option that makes ssh connect through us.
///
/// The device stands there by its id, which is nothing to a shell, and not as `%h`: a `HostName` in the user's
/// configuration changes that, and its metacharacters reach the shell (CVE-2023-51385). The port stays ssh's to choose.
fn proxy_command(program: &Path, common: &Common, device: &DeviceId) -> OsString {
    let mut option = OsString::from("ProxyCommand=");
    option.push(quoted(program.as_os_str()));
    if let Some(profile) = &common.profile {
        option.push(" --profile ");
        option.push(quoted(profile.as_os_str()));
    }
    if common.quiet {
        option.push(" --quiet");
    }
    option.push(format!(" proxy {device} %p"));
    option
}

/// A word of a ProxyCommand: quoted for the shell, and `%` doubled for ssh.
fn quoted(word: &OsStr) -> OsString {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            b'%' => quoted.extend_from_slice(b"%%"),
            other => quoted.push(other),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_path_reaches_the_shell_or_ssh() {
        let common = Common {
            profile: Some("/a b/$(x)'%h.toml".into()),
            quiet: false,
        };
        let option = proxy_command(Path::new("/opt/r ssh"), &common, &"device-1".parse().unwrap());
        assert_eq!(
            option,
            r"ProxyCommand='/opt/r ssh' --profile '/a b/$(x)'\''%%h.toml' proxy device-1 %p"
        );
    }
}
