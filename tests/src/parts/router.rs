//! The load balancer: HAProxy with the configuration that routerd renders and keeps.

use std::path::Path;

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit};

use crate::component::Component;
use crate::files;
use crate::parts::{broker, pki, redis, server};
use crate::place::{DOMAIN, LB, LB_BEARER, LB_DEVICES, LB_HTTPS, LB_PUBLIC, LB_USERS, Place, socket};
use crate::postgres;
use crate::ready::{Ready, notify_variable};
use crate::run;
use crate::setup::{self, Setup};

const ID: &str = "lb1";
const SOCKET: &str = "router/haproxy/admin.sock";

fn config(setup: &Setup) -> String {
    setup.root.inside("router/routerd.toml")
}

fn command(setup: &Setup, args: &[&str]) -> Result<()> {
    let mut command = setup.programs.at(&setup.root, &Place::Core, None);
    command.arg(setup.programs.path("rssh-routerd")).args(args);
    run::checked(&mut command).map(drop)
}

/// Makes the router's key and request, and writes its configuration; [`pki::create`] has run.
///
/// # Errors
/// When the product's command fails.
pub fn init(setup: &Setup) -> Result<()> {
    let dir = setup.root.join("router");
    files::make_dir(&dir.join("haproxy"))?;
    command(setup, &["init", "--router", ID, "--dir", &setup.root.inside("router")])?;
    // The master of name keys is a router's own copy, as it would be on a machine apart.
    let master = dir.join("name-master");
    files::copy(&setup.root.join("pki/name-master"), &master)?;
    files::set_mode(&master, 0o600)?;
    // HAProxy takes a certificate and its key in one file.
    let [cert, key] = ["tls.pem", "tls.key"].map(|name| files::read(&dir.join(name)));
    files::write_secret(&dir.join("haproxy.pem"), cert? + &key?)?;
    files::write(&dir.join("routerd.toml"), toml(setup))
}

fn toml(setup: &Setup) -> String {
    format!(
        r#"router = "{ID}"
state-dir = "{dir}"
name-master = "{dir}/name-master"

[haproxy]
dir = "{dir}/haproxy"
socket = "{socket}"
certificate = "{dir}/haproxy.pem"
users-ca = "{users}"
domain = "{DOMAIN}"
devices = ["{devices_at}"]
users = ["{users_at}"]
bearer = ["{bearer_at}"]
https = ["{https_at}"]

[haproxy.public]
listen = ["{public_at}"]
brokers = ["{broker}"]
{limits}
[mqtt]
brokers = ["{broker}"]
ca = "{servers}"
cert = "{dir}/router.pem"
key = "{dir}/router.key"

[redis]
url = "{redis}"

[database]
url = "{database}"

[registry]
servers-ca = "{servers}"
"#,
        dir = setup.root.inside("router"),
        socket = setup.root.inside(SOCKET),
        users = pki::file(setup, "users-ca.pem"),
        servers = pki::file(setup, "servers-ca.pem"),
        devices_at = socket(LB, LB_DEVICES),
        users_at = socket(LB, LB_USERS),
        bearer_at = socket(LB, LB_BEARER),
        https_at = socket(LB, LB_HTTPS),
        public_at = socket(LB_PUBLIC, LB_USERS),
        broker = broker::address(),
        limits = limits(getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard)),
        redis = redis::url(setup),
        database = postgres::url(&setup.root),
    )
}

/// How many connections HAProxy takes on, where it may not open as many files as it would by default.
fn limits(files: u64) -> String {
    // Two files per connection, and some for its checks and doors; by default it asks for 246,035.
    if files >= 250_000 {
        return String::new();
    }
    let connections = files.saturating_sub(3000).max(200) / 2;
    let [devices, users, bearer, https, public] = [10, 6, 1, 1, 2].map(|twentieths| connections * twentieths / 20);
    format!(
        "\n[haproxy.limits]\ndevices = {devices}\nusers = {users}\nbearer = {bearer}\nhttps = {https}\npublic = {public}\n"
    )
}

/// Enrols the router and renders a configuration with which HAProxy can start.
///
/// # Errors
/// When a command of the product fails.
pub fn enrol(setup: &Setup) -> Result<()> {
    server::admin(
        setup,
        &[
            "router",
            "add",
            ID,
            "--config",
            &server::admin_config(setup),
            "--csr",
            &setup.root.inside("router/router.csr"),
            "--cert-out",
            &setup.root.inside("router/router.pem"),
        ],
    )?;
    command(setup, &["render", "--config", &config(setup)])
}

/// HAProxy.
pub fn haproxy(setup: &Setup) -> Component {
    Component::new(
        "haproxy",
        Place::Core,
        &["haproxy", "-W", "-f", &setup.root.inside("router/haproxy/haproxy.cfg")],
    )
    .address(socket(LB, LB_USERS))
    .ready(Ready::Unix(SOCKET.to_owned()))
}

/// The daemon beside it.
pub fn routerd(setup: &Setup) -> Component {
    let program = setup.programs.path("rssh-routerd");
    let (variable, value) = notify_variable(&setup.root, "routerd");
    Component::new(
        "routerd",
        Place::Core,
        &[&program.to_string_lossy(), "run", "--config", &config(setup)],
    )
    .env(&variable, value)
    .ready(Ready::Notify)
}

/// How many servers HAProxy sends devices to now.
///
/// # Errors
/// When it does not answer.
pub fn servers_up(root: &Path) -> Result<usize> {
    let table = setup::ask_haproxy(root, SOCKET, "show stat -1 4 -1")?;
    Ok(count_up(&table))
}

/// Counts the distinct servers that are up in the table of `show stat` (management guide, 9.1).
fn count_up(table: &str) -> usize {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default().trim_start_matches("# ");
    let column = |name: &str| header.split(',').position(|field| field == name);
    let (Some(server), Some(status)) = (column("svname"), column("status")) else {
        return 0;
    };
    let mut up: Vec<&str> = lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let is_up = fields.get(status).is_some_and(|status| status.starts_with("UP"));
            // One server has a row for each port of its sshd: s1_0, s1_1.
            let name = fields.get(server)?.split('_').next();
            is_up.then_some(name)?
        })
        .collect();
    up.sort_unstable();
    up.dedup();
    up.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_two_ports_is_one_server() {
        let table = "# pxname,svname,status\nsshd,s1_0,UP\nsshd,s1_1,UP 1/2\nsshd,s2_0,DOWN\nsshd,s3_1,UP\n";
        assert_eq!(count_up(table), 2);
    }
}
