//! The dedicated sshd: the configuration it runs with, and the one line it gets for each login. sshd_config(5), sshd(8).

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rssh_mqtt::files::{self, FileError};
use rssh_proto::DeviceId;
use rssh_proto::text::sanitize;

use crate::config::{Config, Sshd};
use crate::ssh_keygen::{self, KeygenError, PublicKey};
use crate::{process, sock_diag};

/// The server's binary; sshd executes itself again and needs an absolute path.
const PROGRAM: &str = "/usr/sbin/sshd";
/// How long sshd may take from its start until it listens.
const STARTS_WITHIN: Duration = Duration::from_secs(10);
/// The principal in host certificates, which agents pin by HostKeyAlias.
pub const HOST_ALIAS: &str = "rssh-sshd";

/// Why sshd could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum SshdError {
    #[error("cannot run {PROGRAM}: {0}; install openssh-server")]
    Missing(std::io::Error),
    #[error("sshd refuses the configuration {path}: {reason}")]
    Refused { path: PathBuf, reason: String },
    #[error("cannot make the directory {path}: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("no sshd runs: {0} names none")]
    NotRunning(PathBuf),
    #[error("cannot reach sshd's sockets: {0}; this needs root")]
    Descriptors(std::io::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Keygen(#[from] KeygenError),
}

/// An OpenSSH version, such as 9.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16);

/// Asks the installed sshd for its version.
///
/// # Errors
/// When it is not installed.
pub fn version() -> Result<Version, SshdError> {
    // Before 9.3 there is no -V; the usage message names the version all the same.
    let output = Command::new(PROGRAM)
        .arg("-V")
        .stdin(Stdio::null())
        .output()
        .map_err(SshdError::Missing)?;
    let said = [output.stdout, output.stderr].concat();
    Ok(parse_version(&String::from_utf8_lossy(&said)).unwrap_or(Version(0, 0)))
}

fn parse_version(text: &str) -> Option<Version> {
    let number = &text[text.find("OpenSSH_")? + "OpenSSH_".len()..];
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some(Version(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Renders sshd's configuration for a version.
pub fn config(config: &Config, version: Version) -> String {
    let sshd = &config.sshd;
    let mut text =
        String::from("# Rendered by rssh-serverd; changes are lost. This sshd is for devices' tunnels alone.\n");
    // Writing to a String cannot fail.
    let mut line = |words: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{words}");
    };
    for address in &sshd.listen {
        line(format_args!("ListenAddress {address}"));
    }
    let key = host_key(&sshd.dir);
    line(format_args!("HostKey {}", key.display()));
    line(format_args!("HostCertificate {}", certificate(&key).display()));
    line(format_args!("PidFile {}", pid_file(&sshd.dir).display()));
    line(format_args!("AllowUsers {}", sshd.user));
    line(format_args!(
        "AuthorizedKeysCommand {} {} %t %k",
        sshd.helpers.join("rssh-authorize").display(),
        config.socket(AUTHORIZE_SOCKET).display(),
    ));
    line(format_args!("AuthorizedKeysCommandUser {}", sshd.user));
    line(format_args!("PermitListen {}:*", sshd.address));
    line(format_args!("MaxStartups {0}:100:{0}", sshd.max_startups));
    text.push_str(POLICY);
    if version >= Version(9, 2) {
        // It does not see listeners of remote forwards, and would end every idle tunnel.
        text.push_str("UnusedConnectionTimeout none\n");
    }
    if version >= Version(9, 8) {
        // All devices come from the load balancers' addresses: one bad device must not lock out the rest.
        text.push_str("PerSourcePenalties no\n");
    }
    text
}

/// What holds for every server: public keys only, remote forwards of one port only.
const POLICY: &str = "\
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
HostbasedAuthentication no
PermitEmptyPasswords no
PermitRootLogin no
AuthorizedKeysFile none
AuthorizedPrincipalsFile none
TrustedUserCAKeys none
UsePAM no
UseDNS no
StrictModes yes
AllowTcpForwarding remote
AllowStreamLocalForwarding no
AllowAgentForwarding no
PermitOpen none
GatewayPorts clientspecified
X11Forwarding no
PermitTunnel no
PermitTTY no
PermitUserEnvironment no
PermitUserRC no
PrintMotd no
PrintLastLog no
Compression no
MaxAuthTries 3
# The claim is the only session a device needs.
MaxSessions 2
LoginGraceTime 15
PerSourceMaxStartups none
TCPKeepAlive yes
ClientAliveInterval 15
ClientAliveCountMax 3
LogLevel VERBOSE
SyslogFacility AUTH
";

/// The public host key of this server's sshd, which is made on the first call.
///
/// # Errors
/// When the directory cannot be written.
pub fn public_host_key(config: &Config) -> Result<PublicKey, SshdError> {
    let dir = &config.sshd.dir;
    std::fs::create_dir_all(dir).map_err(|source| SshdError::Directory {
        path: dir.clone(),
        source,
    })?;
    let key = host_key(dir);
    if !key.exists() {
        ssh_keygen::generate(&key, "")?;
    }
    Ok(ssh_keygen::public_key(&key.with_extension("pub"))?)
}

/// Keeps the certificate of the host key. sshd reads it when it starts.
///
/// # Errors
/// When the directory cannot be written.
pub fn keep_host_certificate(config: &Config, text: &str) -> Result<(), SshdError> {
    let path = certificate(&host_key(&config.sshd.dir));
    Ok(files::write_public(&path, text.as_bytes())?)
}

/// Writes the configuration for the installed version and lets sshd check it.
///
/// # Errors
/// When it cannot be written or sshd refuses it.
pub fn render(config: &Config) -> Result<(), SshdError> {
    let path = config_file(&config.sshd.dir);
    files::write_public(&path, self::config(config, version()?).as_bytes())?;
    let output = Command::new(PROGRAM)
        .args(["-t", "-f"])
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .map_err(SshdError::Missing)?;
    if output.status.success() {
        return Ok(());
    }
    let reason = sanitize(String::from_utf8_lossy(&output.stderr).trim(), 300);
    // That directory is made when sshd's unit starts, which may be later than now.
    if reason.contains("Missing privilege separation directory") {
        return Ok(());
    }
    Err(SshdError::Refused { path, reason })
}

/// Sets TCP_NODELAY on the listening sockets of the running sshd; accepted connections inherit it (tcp(7)).
///
/// sshd leaves Nagle's algorithm on for sessions without a terminal: a small packet that follows another waits until
/// the load balancer's kernel acknowledges the first, which it delays by 40 ms. sshd has no setting for it, so root sets
/// it from outside, right after sshd has started.
///
/// # Errors
/// When sshd does not run, or the caller may not reach into its descriptors.
pub fn nodelay(sshd: &Sshd) -> Result<(), SshdError> {
    let running = started(sshd).ok_or_else(|| SshdError::NotRunning(pid_file(&sshd.dir)))?;
    let handle = running.process.handle().map_err(SshdError::Descriptors)?;
    let mut listening = Vec::new();
    for address in &sshd.listen {
        let listener = sock_diag::listener(*address).map_err(SshdError::Descriptors)?;
        listening.extend(listener.map(|listener| listener.inode));
    }
    for (descriptor, inode) in process::sockets(running.process.pid) {
        if listening.contains(&inode) {
            let socket = handle.descriptor(descriptor).map_err(SshdError::Descriptors)?;
            rustix::net::sockopt::set_tcp_nodelay(&socket, true)
                .map_err(|error| SshdError::Descriptors(error.into()))?;
        }
    }
    Ok(())
}

/// The sshd that listens; waits for one that has just been started, which writes its process id when it listens.
fn started(sshd: &Sshd) -> Option<process::Stat> {
    let since = Instant::now();
    loop {
        let found = running(sshd);
        if found.is_some() || since.elapsed() > STARTS_WITHIN {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The name of the socket that the authorize helper asks.
pub const AUTHORIZE_SOCKET: &str = "authorize.sock";
/// The name of the socket that the claim helper asks.
pub const CLAIM_SOCKET: &str = "claim.sock";

/// The sshd that listens, if it runs.
pub fn running(sshd: &Sshd) -> Option<process::Stat> {
    let pid = std::fs::read_to_string(pid_file(&sshd.dir)).ok()?.trim().parse().ok()?;
    process::stat(pid).filter(|stat| stat.state != 'Z')
}

/// Where the rendered configuration lies.
pub fn config_file(dir: &Path) -> PathBuf {
    dir.join("sshd_config")
}

/// Where sshd writes its process id.
fn pid_file(dir: &Path) -> PathBuf {
    dir.join("sshd.pid")
}

/// Where the private host key lies.
pub fn host_key(dir: &Path) -> PathBuf {
    dir.join("ssh_host_ed25519_key")
}

/// Where the certificate of a host key lies.
pub fn certificate(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push("-cert.pub");
    PathBuf::from(name)
}

/// The authorized_keys line of one login: one port, one command, and nothing else.
///
/// The port stands in the command too, for sshd's log: it names the command of each login, but not its permissions.
/// Every part is a validated type, so that nothing in it can end the line or an option.
pub fn authorized_key(config: &Config, address: IpAddr, port: u16, device: &DeviceId, key: &PublicKey) -> String {
    let bind = match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    format!(
        "restrict,port-forwarding,permitlisten=\"{bind}:{port}\",command=\"exec {} {} {device} {bind}:{port}\" {key}\n",
        config.sshd.helpers.join("rssh-claim").display(),
        config.socket(CLAIM_SOCKET).display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_sshd_says() {
        let usage = "sshd: illegal option -- V\nOpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17 1 Jul 2025\nusage: sshd";
        assert_eq!(parse_version(usage), Some(Version(9, 2)));
        assert_eq!(
            parse_version("OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.1"),
            Some(Version(10, 0))
        );
        assert_eq!(parse_version("dropbear"), None);
        assert!(Version(10, 0) > Version(9, 8));
    }
}
