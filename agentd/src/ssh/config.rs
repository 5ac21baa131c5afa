//! The ssh_config that every ssh of this agent reads.

use std::fmt::Write as _;
use std::path::Path;

use crate::config::{Kex, Ssh};

/// How many keepalives may stay unanswered: with the default interval a connection that says nothing lives for half a
/// minute, and one that the network has forgotten ends with the first.
const PATIENCE: &str = "5";

/// Whether the processor has instructions for AES, by `/proc/cpuinfo`: `flags` on x86, `Features` on ARM.
pub fn has_aes(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags") || line.starts_with("Features"))
        .any(|line| line.split_whitespace().any(|flag| flag == "aes"))
}

/// Renders the configuration.
///
/// The paths in `ssh` are known to be quotable.
pub fn render(ssh: &Ssh, aes: bool) -> String {
    let ciphers = if aes {
        "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
    } else {
        "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com"
    };
    let mut text = String::from("# Written by rssh-agentd at each start.\nHost *\n");
    let mut set = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    {name} {value}");
    };
    // Who is there: the host certificate must descend from the pinned CA, whatever address led to it.
    set("HostKeyAlias", ssh.host_key_alias.as_str());
    set("UserKnownHostsFile", &quoted(&ssh.known_hosts));
    set("GlobalKnownHostsFile", "none");
    set("StrictHostKeyChecking", "yes");
    set("HostKeyAlgorithms", "ssh-ed25519-cert-v01@openssh.com");
    set("UpdateHostKeys", "no");
    set("CheckHostIP", "no");
    set("VerifyHostKeyDNS", "no");
    set("CanonicalizeHostname", "no");
    // Who we are: one key, and nothing that could ask.
    set("IdentityFile", &quoted(&ssh.key));
    set("IdentitiesOnly", "yes");
    set("IdentityAgent", "none");
    set("PreferredAuthentications", "publickey");
    set("BatchMode", "yes");
    // The connection: standard input and output, see `dial`.
    set("ProxyCommand", "-");
    set("ConnectTimeout", "10");
    set(
        "ServerAliveInterval",
        &ssh.keep_alive.duration().as_secs().max(1).to_string(),
    );
    set("ServerAliveCountMax", PATIENCE);
    if ssh.kex == Kex::Fast {
        set("KexAlgorithms", "curve25519-sha256,curve25519-sha256@libssh.org");
    }
    set("Ciphers", ciphers);
    set("Compression", "no");
    // A master in the foreground that carries the claim and one remote forward, and nothing else.
    set("ControlMaster", "yes");
    set("ControlPersist", "no");
    set("RequestTTY", "no");
    set("ForwardAgent", "no");
    set("ForwardX11", "no");
    set("PermitLocalCommand", "no");
    set("Tunnel", "no");
    // Why a connection was lost is said at this level.
    set("LogLevel", "INFO");
    text
}

/// A path for ssh_config, known to hold no character that would end the quotes.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

#[cfg(test)]
mod tests {
    use rssh_proto::duration::Span;

    use super::*;

    fn ssh(kex: Kex) -> Ssh {
        Ssh {
            key: "/etc/rssh/ssh key".into(),
            known_hosts: "/etc/rssh/known_hosts".into(),
            host_key_alias: "rssh-sshd".parse().unwrap(),
            kex,
            lb: None,
            program: "/usr/bin/ssh".into(),
            keep_alive: Span::seconds(5),
            rotate_after: None,
        }
    }

    #[test]
    fn host_keys_are_always_checked_against_the_pinned_ca() {
        for kex in [Kex::Fast, Kex::System] {
            let text = render(&ssh(kex), true);
            assert!(text.contains("    StrictHostKeyChecking yes\n"));
            assert!(text.contains("    HostKeyAlias rssh-sshd\n"));
            assert!(text.contains("    IdentityFile \"/etc/rssh/ssh key\"\n"));
            assert_eq!(text.contains("KexAlgorithms"), kex == Kex::Fast);
        }
    }

    #[test]
    fn the_cipher_is_chosen_by_processor() {
        assert!(has_aes("processor: 0\nflags\t\t: fpu sse2 aes avx\n"));
        assert!(has_aes("Features\t: fp asimd aes pmull\n"));
        assert!(!has_aes("Features\t: half thumb neon vfpv4\n"));
        assert!(!has_aes("model name\t: aes engine\nflags: fpu vaes\n"));
        let first = |aes| {
            let text = render(&ssh(Kex::Fast), aes);
            let line = text
                .lines()
                .find(|line| line.contains("Ciphers"))
                .unwrap_or("")
                .to_owned();
            line.trim_start().trim_start_matches("Ciphers ").to_owned()
        };
        assert!(first(true).starts_with("aes128-gcm"));
        assert!(first(false).starts_with("chacha20"));
    }
}
