//! The system's ssh, and what makes it connect through `rssh proxy`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rssh_proto::text::sanitize;

use crate::args::{Common, Destination};
use crate::error::Error;

/// How ssh runs this program.
pub struct Proxy {
    program: PathBuf,
    profile: Option<PathBuf>,
    quiet: bool,
}

impl Proxy {
    /// This program, with the profile that it was given itself.
    ///
    /// # Errors
    /// When the program's own path cannot be found.
    pub fn of(common: &Common) -> Result<Self, Error> {
        let program = env::current_exe().map_err(|error| Error::internal(format!("cannot find myself: {error}")))?;
        Ok(Self {
            program,
            profile: common.profile.clone(),
            quiet: false,
        })
    }

    /// The same, with or without a word of progress.
    pub fn quiet(mut self, quiet: bool) -> Self {
        self.quiet = quiet;
        self
    }

    /// The arguments that make ssh log in to a device through us; what follows them is an option or the command.
    ///
    /// The device stands in the command by its id, which is nothing to a shell, and not as `%h`: a `HostName` in the
    /// user's configuration changes that, and its metacharacters reach the shell (CVE-2023-51385). The port stays
    /// ssh's to choose. What the registry knows of the device's host keys counts beside the user's own known_hosts.
    pub fn login(&self, destination: &Destination) -> Vec<OsString> {
        let device = &destination.device;
        let mut command = OsString::from("ProxyCommand=");
        command.push(self.command(device.as_str()));
        let mut arguments = vec![
            "-o".into(),
            command,
            "-o".into(),
            format!("HostKeyAlias={device}").into(),
        ];
        if asks_for_known_hosts() {
            let mut command = OsString::from("KnownHostsCommand=");
            command.push(self.known_hosts());
            arguments.extend(["-o".into(), command]);
        }
        if let Some(login) = &destination.login {
            arguments.extend(["-l".into(), login.to_string().into()]);
        }
        arguments.push(device.as_str().into());
        arguments
    }

    /// The ProxyCommand for a host, which is quoted already.
    pub fn command(&self, host: &str) -> OsString {
        let mut command = self.start();
        if self.quiet {
            command.push(" --quiet");
        }
        command.push(format!(" proxy {host} %p"));
        command
    }

    /// The KnownHostsCommand. ssh runs it without a shell, and splits it as a shell would.
    pub fn known_hosts(&self) -> OsString {
        let mut command = self.start();
        command.push(" --quiet known-hosts --cached -- %H");
        command
    }

    /// The command that succeeds where there is a certificate for a host, which is quoted already.
    pub fn certify(&self, host: &str) -> OsString {
        let mut command = self.start();
        command.push(format!(" --quiet certify {host}"));
        command
    }

    /// This program with its profile, as the shell takes it.
    fn start(&self) -> OsString {
        let mut command = quoted(self.program.as_os_str());
        if let Some(profile) = &self.profile {
            command.push(" --profile ");
            command.push(quoted(absolute(profile).as_os_str()));
        }
        command
    }
}

/// A path that means the same from any directory; ssh's configuration is read in many.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
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

/// How a command on a device ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The command's own exit code.
    Exited(u8),
    /// ssh did not log in.
    NotLoggedIn(String),
    /// The connection was lost, or a signal ended the command.
    Cut(String),
}

/// Reads from ssh's log (`-E`, `LogLevel=DEBUG1`) how a command ended: ssh's exit code 255 may be the command's own.
pub fn ended(log: &str) -> Ended {
    let debug = |line: &'_ str| line.strip_prefix("debug1: ").map(str::to_owned);
    let exited = log.lines().rev().filter_map(debug).find_map(|line| {
        let code = line.strip_prefix("Exit status ")?.parse::<i32>().ok()?;
        u8::try_from(code).ok()
    });
    if let Some(code) = exited {
        return Ended::Exited(code);
    }
    let chatter = [
        "debug",
        "OpenSSH_",
        "Authenticated to ",
        "Transferred: ",
        "Bytes per second: ",
    ];
    let reason = log
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !chatter.iter().any(|start| line.starts_with(start)));
    let silent = if log.contains("debug1: Exit status -1") {
        "it ended without an exit code"
    } else {
        "ssh gave no reason"
    };
    let reason = sanitize(reason.unwrap_or(silent), 200);
    if log.lines().any(|line| line.starts_with("Authenticated to ")) {
        Ended::Cut(reason)
    } else {
        Ended::NotLoggedIn(reason)
    }
}

/// Whether the system's ssh knows KnownHostsCommand: an older one would take none of the options.
fn asks_for_known_hosts() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let since = Some((8, 5));
        said().is_ok_and(|said| version(&said) >= since)
    })
}

/// What `ssh -V` says, which it does on stderr.
///
/// # Errors
/// When ssh cannot be run.
pub fn said() -> io::Result<String> {
    let output = Command::new("ssh").arg("-V").stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The version in what `ssh -V` says, such as `OpenSSH_9.2p1 Debian-2, OpenSSL 3.0.20`; `None` for another ssh.
pub fn version(said: &str) -> Option<(u16, u16)> {
    let number = said.strip_prefix("OpenSSH_")?;
    let (major, rest) = number.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// ssh could not be started.
pub fn not_started(error: &io::Error) -> Error {
    Error::configuration(format!("cannot run ssh: {error}; install the package openssh-client"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_path_reaches_the_shell_or_ssh() {
        let proxy = Proxy {
            program: "/opt/r ssh".into(),
            profile: Some("/a b/$(x)'%h.toml".into()),
            quiet: false,
        };
        assert_eq!(
            proxy.login(&"device-1".parse().unwrap())[1],
            r"ProxyCommand='/opt/r ssh' --profile '/a b/$(x)'\''%%h.toml' proxy device-1 %p"
        );
    }

    // What OpenSSH 9.2 wrote, shortened.
    const IN: &str = "OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.20\r\ndebug1: Executing proxy command: exec x\r\n\
        Authenticated to device-1 (via proxy) using \"publickey\".\r\n";

    #[test]
    fn a_commands_exit_code_is_told_from_sshs_own() {
        let log = |end: &str| format!("{IN}{end}");
        let out = "Transferred: sent 2000, received 2700 bytes, in 0.1 seconds\r\nBytes per second: sent 1\r\n";
        for code in [0, 3, 255] {
            let log = log(&format!("{out}debug1: Exit status {code}\r\n"));
            assert_eq!(ended(&log), Ended::Exited(code));
        }
        let signal = log(&format!("{out}debug1: Exit status -1\r\n"));
        assert_eq!(ended(&signal), Ended::Cut("it ended without an exit code".into()));
        let cut = log("client_loop: send disconnect: Broken pipe\r\n");
        assert_eq!(
            ended(&cut),
            Ended::Cut("client_loop: send disconnect: Broken pipe".into())
        );
    }

    #[test]
    fn a_login_that_failed_has_sshs_reason() {
        let start = "OpenSSH_9.2p1\r\ndebug1: x\r\n";
        for reason in [
            "Host key verification failed.",
            "root@device-1: Permission denied (publickey).",
        ] {
            assert_eq!(
                ended(&format!("{start}{reason}\r\ndebug1: y\r\n")),
                Ended::NotLoggedIn(reason.into())
            );
        }
        assert_eq!(ended(""), Ended::NotLoggedIn("ssh gave no reason".into()));
    }

    #[test]
    fn a_version_is_read_where_it_is_openssh() {
        for (said, expected) in [
            ("OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.20", Some((9, 2))),
            ("OpenSSH_10.0p2", Some((10, 0))),
            ("OpenSSH_for_Windows_9.5p1", None),
            ("Dropbear v2022.83", None),
        ] {
            assert_eq!(version(said), expected, "{said}");
        }
    }
}
