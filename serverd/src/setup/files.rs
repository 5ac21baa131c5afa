//! The configuration files that setup writes.

use std::net::{IpAddr, SocketAddr};

use rssh_proto::name::ProxyDomain;

use super::{BROKER_PORT, HAPROXY, LOCAL_REDIS, PKI, ROUTER, STATE, database};

/// Where a server's sshd listens: more ports, more connections that one load balancer can make.
const SSHD_PORTS: [u16; 2] = [2201, 2202];
/// Where health checks and metrics are answered.
const HEALTH_PORT: u16 = 8022;
/// Where the server answers HTTPS, by way of the load balancer.
const SERVER_HTTPS_PORT: u16 = 8023;
/// Where rssh-routerd serves its metrics.
const ROUTER_METRICS: &str = "127.0.0.1:8024";
/// The load balancer's port for devices' ssh.
pub(super) const DEVICES_PORT: u16 = 2222;
/// That for signed names.
const USERS_PORT: u16 = 443;
/// That for bearer names.
pub(super) const BEARER_PORT: u16 = 8444;
/// That for enrolment, renewal and the API.
pub(super) const HTTPS_PORT: u16 = 8443;

/// The connections of these doors by default (rssh-routerd).
const DEFAULT_CONNECTIONS: u64 = 74_000;
/// What HAProxy opens beside its connections' two files each.
const FILES_BESIDE: u64 = 6200;

/// What `serverd.toml` says of a server.
pub(super) struct Server {
    pub(super) domain: ProxyDomain,
    /// Where sshd, leased ports and health checks are.
    pub(super) address: IpAddr,
    pub(super) database: String,
    pub(super) redis: String,
    /// Where HTTPS is answered, by way of the load balancer.
    pub(super) url: String,
    /// Whether the authorities are on this machine: another server issues nothing.
    pub(super) authorities: bool,
}

impl Server {
    /// The first one, with the stores, the load balancer and the authorities beside it.
    pub(super) fn first(domain: &ProxyDomain, address: IpAddr) -> Self {
        Self {
            domain: domain.clone(),
            address,
            database: database::url("rssh-serverd"),
            redis: LOCAL_REDIS.to_owned(),
            url: format!("https://{domain}:{HTTPS_PORT}"),
            authorities: true,
        }
    }
}

/// `serverd.toml`.
pub(super) fn serverd(server: &Server) -> String {
    let Server {
        domain,
        address,
        database,
        redis,
        url,
        authorities,
    } = server;
    let listen = SSHD_PORTS.map(|port| format!("\"{}\"", SocketAddr::new(*address, port)));
    let (ca, admin) = if *authorities {
        (
            format!("ca = \"{PKI}/servers-ca.pem\"\n"),
            format!(
                "\n# Only where administration is done: this directory holds the authorities.\n[admin]\npki = \"{PKI}\"\n"
            ),
        )
    } else {
        Default::default()
    };
    format!(
        r#"# Written by rssh-serverd setup; yours to change. See rssh-serverd(8).
state-dir = "{STATE}"

[public]
domain = "{domain}"
ssh = ["{domain}:{DEVICES_PORT}"]
bearer-port = {BEARER_PORT}

[database]
url = "{database}"

[redis]
url = "{redis}"

[mqtt]
brokers = ["{domain}:{BROKER_PORT}"]
{ca}
[sshd]
# Leased ports listen here: an address that only the load balancers reach.
address = "{address}"
listen = [{listen}]
ports = "20000-29999"
dir = "/etc/rssh/sshd"

[http]
listen = "{health}"

[https]
listen = "{https}"
url = "{url}"
{admin}"#,
        listen = listen.join(", "),
        health = SocketAddr::new(*address, HEALTH_PORT),
        https = SocketAddr::new(*address, SERVER_HTTPS_PORT),
    )
}

/// The database of the domain's machine, as another server connects to it: by TLS, with its certificate.
pub(super) fn remote_database(domain: &ProxyDomain) -> String {
    format!(
        "postgres://{role}@{domain}/{name}?sslmode=verify-full&sslrootcert={STATE}/trust/servers-ca.pem\
         &sslcert={STATE}/server.pem&sslkey={STATE}/server.key",
        role = database::REMOTE,
        name = database::DATABASE,
    )
}

/// How many connections HAProxy takes on, where it may not open as many files as it would by default.
fn limits(files: u64) -> String {
    // Two files for each connection, and some for its checks, doors and peers.
    if files >= 2 * DEFAULT_CONNECTIONS + FILES_BESIDE {
        return String::new();
    }
    let connections = files.saturating_sub(FILES_BESIDE).max(200) / 2;
    let [devices, users, bearer, https] = [11, 7, 1, 1].map(|twentieths| connections * twentieths / 20);
    format!(
        "\n[haproxy.limits]\n# As many as this system's limit of open files allows.\n\
         devices = {devices}\nusers = {users}\nbearer = {bearer}\nhttps = {https}\n"
    )
}

/// How many files a unit may open at most on this system: what its first process may (proc(5)).
fn open_files() -> u64 {
    let text = std::fs::read_to_string("/proc/1/limits").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let hard = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok());
    hard.unwrap_or(u64::MAX)
}

/// Whether this system speaks IPv6 (proc_net(5)).
pub(super) fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/net/if_inet6").is_ok_and(|text| !text.is_empty())
}

/// A port of every address.
fn door(port: u16) -> String {
    let all = if has_ipv6() {
        format!(", \"[::]:{port}\"")
    } else {
        String::new()
    };
    format!("\"0.0.0.0:{port}\"{all}")
}

/// `routerd.toml`.
pub(super) fn routerd(domain: &ProxyDomain, id: &str) -> String {
    format!(
        r#"# Written by rssh-serverd setup; yours to change. See rssh-routerd(8).
router = "{id}"
state-dir = "{ROUTER}"
name-master = "{ROUTER}/name-master"

[haproxy]
dir = "{HAPROXY}"
socket = "{HAPROXY}/admin.sock"
certificate = "{HAPROXY}/tls.pem"
users-ca = "{HAPROXY}/users-ca.pem"
domain = "{domain}"
devices = [{devices}]
users = [{users}]
bearer = [{bearer}]
https = [{https}]
{limits}
[mqtt]
brokers = ["{domain}:{BROKER_PORT}"]
ca = "{ROUTER}/servers-ca.pem"
cert = "{ROUTER}/router.pem"
key = "{ROUTER}/router.key"

[redis]
url = "{LOCAL_REDIS}"

[database]
url = "{database}"

[registry]
servers-ca = "{ROUTER}/servers-ca.pem"

[metrics]
listen = "{ROUTER_METRICS}"
"#,
        devices = door(DEVICES_PORT),
        users = door(USERS_PORT),
        bearer = door(BEARER_PORT),
        https = door(HTTPS_PORT),
        limits = limits(open_files()),
        database = database::url("rssh-routerd"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxy_is_told_to_take_what_the_system_lets_it_open() {
        assert_eq!(limits(1 << 20), "");
        let few = limits(20_000);
        assert!(
            few.contains("devices = 3795\n") && few.contains("users = 2415\n") && few.contains("https = 345\n"),
            "{few}"
        );
    }

    #[test]
    fn what_is_written_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serverd.toml");
        let domain: ProxyDomain = "proxy.example.com".parse().unwrap();
        let first = Server::first(&domain, IpAddr::from([10, 0, 0, 1]));
        let other = Server {
            address: IpAddr::from([10, 0, 0, 2]),
            database: remote_database(&domain),
            redis: "rediss://proxy.example.com:6380/".to_owned(),
            authorities: false,
            ..Server::first(&domain, first.address)
        };
        for server in [first, other] {
            std::fs::write(&path, serverd(&server)).unwrap();
            let config = crate::config::Config::load(&path).unwrap();
            assert_eq!(config.public.domain, domain);
            assert_eq!(config.sshd.address, server.address);
            assert_eq!(config.https.unwrap().url.to_string(), "https://proxy.example.com:8443");
            assert_eq!(config.admin.is_some(), server.authorities);
            assert_eq!(config.mqtt.ca.is_some(), server.authorities);
        }
    }
}
