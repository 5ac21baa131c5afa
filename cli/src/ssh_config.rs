//! ssh's configuration: the file of hosts that lead through us, and the line that includes it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rssh_proto::DeviceId;

use crate::args::HOSTS;
use crate::certificate::identities;
use crate::ssh::Proxy;

/// Says where a line came from, and how it goes.
const REMARK: &str = "# Devices by name; taken away by: rssh config ssh --remove";

/// The file of hosts (ssh_config(5)); `None` when a path in it has a line break, which the format cannot carry.
///
/// `HostName %h` keeps a `HostName` of the user's own from changing `%h`; between single quotes, the one character of
/// a host name that could reach the shell (CVE-2023-51385) is the single quote itself, and no such name matches.
///
/// `Match exec` runs before ssh reads any key: by then there is a certificate, or the block does not count.
pub fn hosts(proxy: &Proxy, devices: &[DeviceId], certificates: Option<&Path>) -> Option<Vec<u8>> {
    let command = proxy.command("'%h'");
    if command.as_bytes().contains(&b'\n') {
        return None;
    }
    let mut file = b"# Written by rssh config ssh --install, which also replaces it.\n".to_vec();
    if let Some(directory) = certificates {
        file.extend(certified(proxy, devices, directory)?);
    }
    for device in devices {
        file.extend(format!("\nHost {device} {device}{HOSTS}\n    HostKeyAlias {device}\n").bytes());
    }
    file.extend(format!("\nHost \"!*'*\" *{HOSTS}").bytes());
    for device in devices {
        file.extend(format!(" {device}").bytes());
    }
    file.extend_from_slice(b"\n    HostName %h\n    ServerAliveInterval 15\n    ProxyCommand ");
    file.extend_from_slice(command.as_bytes());
    // OpenSSH before 8.5 does not know it, and would take none of the file.
    file.extend_from_slice(b"\n    IgnoreUnknown KnownHostsCommand\n    KnownHostsCommand ");
    file.extend_from_slice(proxy.known_hosts().as_bytes());
    file.push(b'\n');
    Some(file)
}

/// The block that counts where there is a certificate for the device.
fn certified(proxy: &Proxy, devices: &[DeviceId], directory: &Path) -> Option<Vec<u8>> {
    let (certify, directory) = (proxy.certify("'%n'"), directory.to_str()?);
    let broken = |bytes: &[u8]| bytes.contains(&b'\n') || bytes.contains(&b'"');
    if broken(certify.as_bytes()) || broken(directory.as_bytes()) {
        return None;
    }
    let literal = directory.replace('%', "%%");
    let mut block = format!("\nMatch originalhost \"!*'*,*{HOSTS}").into_bytes();
    for device in devices {
        block.extend(format!(",{device}").bytes());
    }
    block.extend_from_slice(b"\" exec \"");
    block.extend_from_slice(certify.as_bytes());
    block.extend(format!("\"\n    CertificateFile \"{literal}/%n-cert.pub\"\n").bytes());
    for identity in identities(Path::new(directory)) {
        let identity = identity.to_str()?.replace('%', "%%");
        block.extend(format!("    IdentityFile \"{identity}\"\n").bytes());
    }
    Some(block)
}

/// The line that includes the file of hosts.
pub fn include(path: &OsStr) -> Vec<u8> {
    let mut line = b"Include \"".to_vec();
    line.extend_from_slice(path.as_bytes());
    line.push(b'"');
    line
}

/// A configuration with the line; `None` when it has it already.
///
/// The line goes first: below a `Host` it would hold for that host only, and ssh takes the first value it finds.
pub fn included(config: &[u8], include: &[u8]) -> Option<Vec<u8>> {
    let first = lines(config).find(|line| line == &include || opens_a_block(line));
    if first == Some(include) {
        return None;
    }
    let rest = excluded(config, include);
    let rest = rest.as_deref().unwrap_or(config);
    let mut with = [REMARK.as_bytes(), include, b"", b""].join(&b'\n');
    with.extend_from_slice(rest);
    Some(with)
}

/// A configuration without the line, as it was before; `None` when it has none.
pub fn excluded(config: &[u8], include: &[u8]) -> Option<Vec<u8>> {
    let ours = [REMARK.as_bytes(), include, b"", b""].join(&b'\n');
    if let Some(rest) = config.strip_prefix(&ours[..]) {
        return Some(excluded(rest, include).unwrap_or_else(|| rest.to_vec()));
    }
    let is_ours = |line: &[u8]| line == include || line == REMARK.as_bytes();
    if !lines(config).any(|line| line == include) {
        return None;
    }
    let kept = config
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|line| !is_ours(line.trim_ascii()));
    Some(kept.flatten().copied().collect())
}

fn lines(config: &[u8]) -> impl Iterator<Item = &[u8]> {
    config.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii)
}

fn opens_a_block(line: &[u8]) -> bool {
    let keyword = line
        .split(|byte| byte.is_ascii_whitespace() || *byte == b'=')
        .next()
        .unwrap_or_default();
    keyword.eq_ignore_ascii_case(b"host") || keyword.eq_ignore_ascii_case(b"match")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"Include \"~/.ssh/rssh.conf\"";

    fn text(bytes: Option<Vec<u8>>) -> Option<String> {
        bytes.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_line_is_written_once_and_before_every_host() {
        for config in ["", "Host x\n  User y", "# mine\r\n\r\nMatch all\n"] {
            let with = included(config.as_bytes(), LINE).unwrap();
            assert!(with.starts_with(REMARK.as_bytes()));
            assert_eq!(included(&with, LINE), None);
            assert_eq!(text(excluded(&with, LINE)).as_deref(), Some(config));
        }
        assert_eq!(include(OsStr::new("~/.ssh/rssh.conf")), LINE);
    }

    #[test]
    fn a_line_below_a_host_is_moved_up_and_one_above_is_left() {
        let moved = included(b"Host x\n  Include \"~/.ssh/rssh.conf\"\nUser y\n", LINE).unwrap();
        assert!(moved.ends_with(b"\n\nHost x\nUser y\n"));
        let above = b"User y\ninclude x\nInclude \"~/.ssh/rssh.conf\"\nHost x\n";
        assert_eq!(included(above, LINE), None);
        assert_eq!(text(excluded(above, LINE)).unwrap(), "User y\ninclude x\nHost x\n");
        assert_eq!(excluded(b"Host x\n", LINE), None);
    }
}
