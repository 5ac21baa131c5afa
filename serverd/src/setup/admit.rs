//! Other servers on other machines: they use the PostgreSQL and the Redis of this one, by TLS and with their certificates.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::machine::Machine;
use super::{CONFIG, LOCAL_REDIS, PKI, Wanted, database, lasts};
use crate::pki::Pki;

/// The configuration, certificate and key of Redis.
const REDIS: &str = "/var/lib/rssh-redis";
const REDIS_ACCOUNT: &str = "redis";
const REDIS_UNIT: &str = "rssh-redis.service";
/// Where that Redis takes TLS.
pub(super) const REDIS_PORT: u16 = 6380;
const ROUTER_CONFIG: &str = "/etc/rssh/routerd.toml";

/// Lets the other servers in, and keeps the certificates good by which they know this machine.
///
/// # Errors
/// When a store does not take its configuration.
pub(super) fn prepare(wanted: &Wanted, machine: &mut Machine) -> Result<()> {
    let redis = Path::new(REDIS);
    if wanted.admit.is_empty() && !redis.join("redis.conf").exists() {
        return Ok(());
    }
    let mut listen = Vec::new();
    for other in &wanted.admit {
        let address = towards(other.address)
            .with_context(|| format!("no network of this machine leads to {}, at {}", other.id, other.address))?;
        if !listen.contains(&address) {
            listen.push(address);
        }
    }
    database::let_servers_in(wanted, machine, &listen)?;
    let (cert, key) = (redis.join("tls.pem"), redis.join("tls.key"));
    machine.directory(redis, 0o700, REDIS_ACCOUNT)?;
    let renewed = certificate(wanted, machine, "Redis", &cert, &key, REDIS_ACCOUNT)?;
    copy_authority(machine, &redis.join("servers-ca.pem"), REDIS_ACCOUNT)?;
    let conf = redis.join("redis.conf");
    let there = fs::read_to_string(&conf).unwrap_or_default();
    let text = configuration(&there, &listen);
    let changed = text != there;
    if changed {
        machine.file(&conf, &text, 0o600, REDIS_ACCOUNT)?;
    }
    machine.unit(REDIS_UNIT)?;
    if changed || renewed {
        let command = ["systemctl", "restart", REDIS_UNIT];
        machine.run("let Redis read its configuration", &command)?;
    }
    for (config, unit) in [
        (CONFIG, "rssh-serverd.service"),
        (ROUTER_CONFIG, "rssh-routerd.service"),
    ] {
        move_to_redis(machine, Path::new(config), unit)?;
    }
    Ok(())
}

/// The address of this machine that packets to another one leave from.
fn towards(other: Ipv4Addr) -> Result<Ipv4Addr> {
    // Nothing is sent: the kernel chooses the source address when the socket learns where it leads (ip(7)).
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((other, 9))?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => unreachable!("a socket of IPv4 has an address of IPv4"),
    }
}

/// Issues the certificate by which others know a store of this machine, unless it lasts; says whether it did.
pub(super) fn certificate(
    wanted: &Wanted,
    machine: &mut Machine,
    what: &str,
    cert: &Path,
    key: &Path,
    owner: &str,
) -> Result<bool> {
    if lasts(cert) || !machine.change(&format!("issue the certificate of {what}, for {}", wanted.domain)) {
        return Ok(false);
    }
    let here = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let (issued, secret) = Pki::at(Path::new(PKI)).issue_tls(&[wanted.domain.to_string()], &here)?;
    machine.secret(key, &secret, 0o600, owner)?;
    machine.secret(cert, &issued.pem, 0o644, owner)?;
    Ok(true)
}

/// Gives a store its own copy of the authority that servers' certificates descend from.
pub(super) fn copy_authority(machine: &mut Machine, to: &Path, owner: &str) -> Result<()> {
    let from = Path::new(PKI).join("servers-ca.pem");
    if machine.is_dry() && !from.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
    machine.secret(to, &text, 0o644, owner)
}

/// `redis.conf`, which listens where it did before and at some more addresses.
fn configuration(there: &str, more: &[Ipv4Addr]) -> String {
    let bound = there.lines().find_map(|line| line.strip_prefix("bind "));
    let mut addresses: Vec<String> = bound.unwrap_or("127.0.0.1").split(' ').map(str::to_owned).collect();
    for address in more.iter().map(ToString::to_string) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    format!(
        "# Written by rssh-serverd setup. Who shows a certificate of the servers' CA may register; nothing is kept.\n\
         bind {}\n\
         port 0\n\
         tls-port {REDIS_PORT}\n\
         tls-cert-file {REDIS}/tls.pem\n\
         tls-key-file {REDIS}/tls.key\n\
         tls-ca-cert-file {REDIS}/servers-ca.pem\n\
         tls-auth-clients yes\n\
         protected-mode no\n\
         user default reset on nopass ~rssh:server:* &rssh:servers +psetex +del +publish +role +scan +get +mget +subscribe\n\
         save \"\"\n\
         appendonly no\n\
         dir {REDIS}\n\
         daemonize no\n\
         supervised systemd\n",
        addresses.join(" ")
    )
}

/// Has a daemon whose configuration still has the machine's own Redis use the one that the other servers reach.
fn move_to_redis(machine: &mut Machine, config: &Path, unit: &str) -> Result<()> {
    let there = fs::read_to_string(config).unwrap_or_default();
    let (from, to) = (
        format!("url = \"{LOCAL_REDIS}\""),
        format!("url = \"rediss://127.0.0.1:{REDIS_PORT}/\""),
    );
    if !there.contains(&from) {
        return Ok(());
    }
    machine.file(config, &there.replace(&from, &to), 0o644, "root")?;
    machine.run("let it be read", &["systemctl", "restart", unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_listens_where_it_did_and_at_one_more_address() {
        let first = configuration("", &[Ipv4Addr::new(10, 0, 0, 1)]);
        assert!(first.contains("\nbind 127.0.0.1 10.0.0.1\n"), "{first}");
        assert_eq!(configuration(&first, &[]), first);
        let second = configuration(&first, &[Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 1, 1)]);
        assert!(second.contains("\nbind 127.0.0.1 10.0.0.1 10.0.1.1\n"), "{second}");
    }

    #[test]
    fn packets_to_this_machine_leave_from_it() {
        assert_eq!(towards(Ipv4Addr::LOCALHOST).unwrap(), Ipv4Addr::LOCALHOST);
    }
}
