//! `rssh-serverd doctor`: examines a server that is to serve, from its files to its neighbours, and changes nothing.
//!
//! [`judge`] says what the facts mean; here they are gathered.

mod dns;
mod judge;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use redis::AsyncConnectionConfig;
use rssh_mqtt::examine::{self, PATIENCE, tell};
use rssh_proto::id::random_hex;
use rssh_proto::registration::{REDIS_CHANNEL, REDIS_PREFIX};
use rssh_proto::{Finding, HostPort};
use tokio::net::lookup_host;

use crate::config::Config;
use crate::control::{self, Order};
use crate::home::Home;
use crate::pki::Pki;
use crate::store::Store;
use crate::{capacity, process, sock_diag, sshd};

const ENROL: &str = "run: rssh-serverd server init; or on a server that joined: rssh-serverd join";

/// Runs the command.
///
/// # Errors
/// When a check fails; it has been told by then.
pub async fn run(config: &Config, json: bool) -> Result<()> {
    let now = examine::now();
    let mut failed = 0;
    failed += tell(&files(config, now), json)?;
    failed += tell(&system(config), json)?;
    failed += tell(&the_sshd(config), json)?;
    failed += tell(&daemon(config).await, json)?;
    failed += tell(&database(config, now).await, json)?;
    failed += tell(&[redis(config).await], json)?;
    failed += tell(&brokers(config, now).await, json)?;
    failed += tell(&names(config).await, json)?;
    match failed {
        0 => Ok(()),
        1 => anyhow::bail!("1 check failed"),
        n => anyhow::bail!("{n} checks failed"),
    }
}

/// The server's own id, keys and certificates, and the authorities where they are here.
fn files(config: &Config, now: i64) -> Vec<Finding> {
    let home = Home::look(config);
    let mut found = vec![match home.id().and_then(|id| home.name_key().map(|_| id)) {
        Ok(id) => Finding::ok("identity", format!("{id}, with its key for names")),
        Err(error) => Finding::of_error_or("identity", &error.to_string(), ENROL),
    }];
    found.push(examine::own_identity(&config.identity(), now, ENROL));
    let mut secrets = vec![
        config.identity().key,
        config.state_dir.join("name.key"),
        sshd::host_key(&config.sshd.dir),
    ];
    secrets.extend(config.redis.password_file.clone());
    if config.https.is_some() {
        let https = config.https_identity();
        found.push(examine::certificate("https cert", &https.cert, now, ENROL));
        secrets.push(https.key);
    }
    if let Some(admin) = &config.admin {
        secrets.extend(private_keys(&admin.pki));
        let authorities = Pki::at(&admin.pki).clients_ca();
        let replace = "replace the authority while the one before is still good, and enrol anew what descends from it";
        found.push(examine::certificate("authorities", &authorities, now, replace));
    }
    found.extend(examine::secrets(secrets));
    found
}

/// The secrets among the files of the authorities.
fn private_keys(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path()).filter(|path| path.is_file());
    paths.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = || fs::read(path).unwrap_or_default();
        name.starts_with("name-master") || String::from_utf8_lossy(&text()).contains("PRIVATE KEY")
    })
}

/// What the kernel and the system's accounts allow.
fn system(config: &Config) -> Vec<Finding> {
    let sshd = &config.sshd;
    let everywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let listeners = everywhere.into_iter().filter_map(|any| sock_diag::listeners(any).ok());
    let ports = listeners.flatten().map(|listener| listener.port);
    let taken: Vec<u16> = ports.filter(|port| sshd.ports.contains(*port)).collect();
    let conflict = capacity::port_conflict(sshd.ports);
    let mut found = vec![judge::ports(sshd.ports, conflict.as_deref(), &taken)];

    let shadow = fs::read_to_string("/etc/shadow").ok();
    let exists = nix::unistd::User::from_name(&sshd.user).is_ok_and(|user| user.is_some());
    found.push(judge::account(&sshd.user, exists, shadow.as_deref()));
    for name in ["rssh-authorize", "rssh-claim"] {
        let path = sshd.helpers.join(name);
        found.push(judge::helper(&path, path.exists(), writable(&path).as_deref()));
    }
    let rules = Command::new("nft")
        .args(["list", "ruleset"])
        .stdin(Stdio::null())
        .output();
    let rules = rules.ok().filter(|output| output.status.success());
    let rules = rules.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    found.push(judge::firewall(sshd.address, sshd.ports, rules.as_deref()));
    if !sshd.address.is_unspecified() {
        let interface = interface(sshd.address);
        let encrypts = interface.as_deref().map(|name| (name, is_wireguard(name)));
        found.push(judge::encryption(sshd.address, encrypts));
    }
    found
}

/// The interface that has an address.
fn interface(address: IpAddr) -> Option<String> {
    let mut all = nix::ifaddrs::getifaddrs().ok()?;
    let found = all.find(|interface| {
        let has = interface.address.as_ref();
        let v4 = has.and_then(|has| Some(IpAddr::V4(has.as_sockaddr_in()?.ip())));
        let v6 = has.and_then(|has| Some(IpAddr::V6(has.as_sockaddr_in6()?.ip())));
        v4.or(v6) == Some(address)
    });
    found.map(|interface| interface.interface_name)
}

/// Whether an interface is one of WireGuard's, as sysfs(5) has it.
fn is_wireguard(interface: &str) -> bool {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/uevent")).unwrap_or_default();
    text.lines().any(|line| line == "DEVTYPE=wireguard")
}

/// The first part of a path that others than root can change; sshd(8) refuses such programs.
fn writable(path: &Path) -> Option<PathBuf> {
    let parts = path
        .ancestors()
        .filter_map(|part| Some((part, fs::metadata(part).ok()?)));
    let mut open = parts.filter(|(_, metadata)| metadata.uid() != 0 || metadata.mode() & 0o022 != 0);
    open.next().map(|(part, _)| part.to_owned())
}

/// The dedicated sshd.
fn the_sshd(config: &Config) -> Vec<Finding> {
    let version = match sshd::version() {
        Ok(version) => version,
        Err(error) => return vec![Finding::of_error("sshd", &error.to_string())],
    };
    let path = sshd::config_file(&config.sshd.dir);
    let there = fs::read_to_string(&path).ok();
    let mut found = vec![judge::sshd_config(
        &path,
        there.as_deref(),
        &sshd::config(config, version),
    )];
    let certified = sshd::certificate(&sshd::host_key(&config.sshd.dir)).exists();
    let running = sshd::running(&config.sshd);
    let listen = config.sshd.listen.iter().copied();
    let deaf: Vec<_> = listen
        .filter(|address| !matches!(sock_diag::listener(*address), Ok(Some(_))))
        .collect();
    found.extend(judge::sshd(running.is_some(), &deaf, certified));
    let most = running.and_then(|stat| most_processes(&process::control_group(stat.process.pid)?));
    found.extend(judge::tasks(most, config.sshd.ports));
    found
}

/// How many processes a control group may have, and those that it lies in (cgroups(7), pids controller).
fn most_processes(group: &str) -> Option<u64> {
    let dir = PathBuf::from(format!("/sys/fs/cgroup{group}"));
    let limits = dir.ancestors().take_while(|dir| dir.starts_with("/sys/fs/cgroup"));
    let limits = limits.filter_map(|dir| fs::read_to_string(dir.join("pids.max")).ok()?.trim().parse().ok());
    limits.min()
}

/// The running daemon.
async fn daemon(config: &Config) -> Vec<Finding> {
    match control::tell(&config.socket(control::SOCKET), Order::Capacity).await {
        Ok(answer) => judge::daemon(&answer, config.sshd.ports),
        Err(error) => vec![Finding::fail(
            "daemon",
            format!("it does not answer on its control socket: {error}"),
            "as root: systemctl start rssh-serverd; and if it does not stay: journalctl -u rssh-serverd",
        )],
    }
}

async fn database(config: &Config, now: i64) -> Vec<Finding> {
    let store = match Store::new(&config.database) {
        Ok(store) => store,
        Err(error) => return vec![Finding::fail("database", error.to_string(), "correct database.url")],
    };
    match store.examine().await {
        Ok(examined) => vec![judge::database(&examined), examine::clock(examined.clock, now)],
        Err(error) => vec![Finding::fail(
            "database",
            error.to_string(),
            "start PostgreSQL, or correct database.url: its host, its role and the role's password",
        )],
    }
}

/// Redis: whether it takes registrations, shown by one of no server, which goes again at once.
async fn redis(config: &Config) -> Finding {
    let key = format!("{REDIS_PREFIX}-");
    let write = async {
        let redis = config.redis().map_err(|error| error.to_string())?;
        let connection = redis.connect(&AsyncConnectionConfig::new()).await;
        let mut connection = connection.map_err(|error| error.to_string())?;
        let mut pipe = redis::pipe();
        pipe.pset_ex(&key, "doctor", 1000).ignore();
        pipe.del(&key).ignore();
        pipe.publish(REDIS_CHANNEL, "-").ignore();
        let written = pipe.query_async::<()>(&mut connection).await;
        written.map_err(|error| error.to_string())
    };
    let fault = match tokio::time::timeout(PATIENCE, write).await {
        Ok(Ok(())) => return Finding::ok("redis", "it takes registrations"),
        Ok(Err(fault)) => fault,
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    examine::redis(
        &format!("it takes no registration: {fault}"),
        "~rssh:server:* &rssh:servers +psetex +del +publish +role",
    )
}

async fn brokers(config: &Config, now: i64) -> Vec<Finding> {
    // Without one, the identity's own finding says so.
    let Ok(id) = Home::look(config).id() else {
        return Vec::new();
    };
    examine::brokers(&config.identity(), id.as_str(), &config.mqtt.brokers, now, ENROL).await
}

/// What users, devices and this server look up by DNS.
async fn names(config: &Config) -> Vec<Finding> {
    let public = &config.public;
    let mut found = Vec::new();
    for (key, hosts) in [
        ("public.lb", &public.lb),
        ("public.ssh", &public.ssh),
        ("mqtt.brokers", &config.mqtt.brokers),
    ] {
        for host in hosts.iter().map(HostPort::host) {
            if resolve(&host).await.is_empty() {
                let remedy = format!("add a record for it, or correct {key}");
                found.push(Finding::fail("dns", format!("{host} in {key} is not found"), remedy));
            }
        }
    }
    let literal = |lb: &HostPort| lb.host().parse::<IpAddr>().is_ok();
    if !public.lb.is_empty() && public.lb.iter().all(literal) {
        found.push(Finding::ok(
            "dns",
            "users connect to the addresses in public.lb, and look nothing up",
        ));
        return found;
    }
    let domain = public.domain.to_string();
    let below = format!("doctor-{}.{domain}", random_hex::<4>());
    let (own, below) = (resolve(&domain).await, resolve(&below).await);
    found.push(judge::names(&domain, &own, &below));
    if !own.is_empty() {
        let asked = domain.clone();
        let signed = tokio::task::spawn_blocking(move || dns::signed(&asked, dns::resolver())).await;
        let signed = signed.ok().and_then(Result::ok);
        found.push(judge::dnssec(&domain, signed));
    }
    found
}

async fn resolve(host: &str) -> Vec<IpAddr> {
    match tokio::time::timeout(PATIENCE, lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}
