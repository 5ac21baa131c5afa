//! The load balancer: HAProxy with the configuration that routerd renders and keeps.

use std::path::Path;

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit};

use crate::component::Component;
use crate::files;
use crate::parts::{broker, redis, server};
use crate::place::{DOMAIN, LB_BEARER, LB_DEVICES, LB_HTTPS, LB_PUBLIC, LB_USERS, Place, ROUTER_METRICS_PORT, socket};
use crate::postgres;
use crate::ready::{Ready, notify_variable};
use crate::run;
use crate::setup::{self, Setup, numbered};

/// The directory of router `n` and of the HAProxy beside it.
pub fn dir(n: u32) -> String {
    numbered("router", n)
}

fn id(n: u32) -> String {
    format!("lb{n}")
}

fn admin_socket(n: u32) -> String {
    format!("{}/haproxy/admin.sock", dir(n))
}

/// A door of every load balancer, as a TOML list.
pub fn doors(setup: &Setup, port: u16) -> String {
    let all: Vec<String> = setup
        .twins()
        .map(|n| format!("\"{}\"", socket(broker::host(n), port)))
        .collect();
    format!("[{}]", all.join(", "))
}

fn config(setup: &Setup, n: u32) -> String {
    setup.root.inside(format_args!("{}/routerd.toml", dir(n)))
}

fn command(setup: &Setup, args: &[&str]) -> Result<()> {
    let mut command = setup.programs.at(&setup.root, &Place::Core, None);
    command.arg(setup.programs.path("rssh-routerd")).args(args);
    run::checked(&mut command).map(drop)
}

/// Has the router join, at the first server, and renders a configuration with which HAProxy can start; [`crate::parts::pki::create`]
/// has run.
///
/// # Errors
/// When the product's command fails.
pub fn join(setup: &Setup, n: u32) -> Result<()> {
    let inside = setup.root.inside(dir(n));
    let dir = setup.root.join(dir(n));
    files::make_dir(&dir.join("haproxy"))?;
    let id = id(n);
    let token = server::token(setup, &["router", "add", &id], &id)?;
    let (url, door) = (server::url(), server::first_door());
    command(
        setup,
        &[
            "join",
            &url,
            "--connect",
            &door,
            "--dir",
            &inside,
            "--token-file",
            &token,
        ],
    )?;
    // HAProxy takes a certificate and its key in one file.
    let [cert, key] = ["tls.pem", "tls.key"].map(|name| files::read(&dir.join(name)));
    files::write_secret(&dir.join("haproxy.pem"), cert? + &key?)?;
    files::write_secret(&dir.join("routerd.toml"), toml(setup, n))?;
    command(setup, &["render", "--config", &config(setup, n)])
}

fn toml(setup: &Setup, n: u32) -> String {
    let host = broker::host(n);
    format!(
        r#"router = "{id}"
url = "{url}"
state-dir = "{dir}"
name-master = "{dir}/name-master"

[haproxy]
dir = "{dir}/haproxy"
socket = "{socket}"
certificate = "{dir}/haproxy.pem"
users-ca = "{dir}/users-ca.pem"
domain = "{DOMAIN}"
devices = ["{devices_at}"]
users = ["{users_at}"]
bearer = ["{bearer_at}"]
https = ["{https_at}"]
{public}{limits}
[mqtt]
brokers = {brokers}
ca = "{dir}/servers-ca.pem"
cert = "{dir}/router.pem"
key = "{dir}/router.key"

{redis}
[database]
url = "{database}"

[registry]
servers-ca = "{dir}/servers-ca.pem"

[metrics]
listen = "{metrics}"
"#,
        id = id(n),
        dir = setup.root.inside(dir(n)),
        socket = setup.root.inside(admin_socket(n)),
        url = server::url(),
        devices_at = socket(host, LB_DEVICES),
        users_at = socket(host, LB_USERS),
        bearer_at = socket(host, LB_BEARER),
        https_at = socket(host, LB_HTTPS),
        public = public(n),
        brokers = broker::addresses(setup),
        metrics = socket(host, ROUTER_METRICS_PORT),
        limits = limits(getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard)),
        redis = redis::toml(setup, redis::User::Routerd),
        database = postgres::url(setup, postgres::ROUTERD),
    )
}

/// Everything at one port, at the first load balancer.
fn public(n: u32) -> String {
    match n {
        1 => format!(
            "\n[haproxy.public]\nlisten = [\"{}\"]\nbrokers = [\"{}\"]\n",
            socket(LB_PUBLIC, LB_USERS),
            broker::address()
        ),
        _ => String::new(),
    }
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

/// HAProxy.
pub fn haproxy(setup: &Setup, n: u32) -> Component {
    let config = setup.root.inside(format_args!("{}/haproxy/haproxy.cfg", dir(n)));
    Component::new(numbered("haproxy", n), Place::Core, &["haproxy", "-W", "-f", &config])
        .address(socket(broker::host(n), LB_USERS))
        .ready(Ready::Unix(admin_socket(n)))
}

/// The daemon beside it.
pub fn routerd(setup: &Setup, n: u32) -> Component {
    let program = setup.programs.path("rssh-routerd");
    let name = numbered("routerd", n);
    let (variable, value) = notify_variable(&setup.root, &name);
    Component::new(
        name,
        Place::Core,
        &[&program.to_string_lossy(), "run", "--config", &config(setup, n)],
    )
    .env(&variable, value)
    .ready(Ready::Notify)
}

/// How many servers HAProxy sends devices to now.
///
/// # Errors
/// When it does not answer.
pub fn servers_up(root: &Path) -> Result<usize> {
    servers_up_at(root, 1)
}

/// How many servers HAProxy `n` sends devices to now.
///
/// # Errors
/// When it does not answer.
pub fn servers_up_at(root: &Path, n: u32) -> Result<usize> {
    let table = setup::ask_haproxy(root, &admin_socket(n), "show stat -1 4 -1")?;
    Ok(count_up(&table))
}

/// How many addresses of servers HAProxy 1 leads to now, for ssh and for HTTPS.
///
/// # Errors
/// When it does not answer.
pub fn addresses_up(root: &Path) -> Result<usize> {
    let table = setup::ask_haproxy(root, &admin_socket(1), "show stat -1 4 -1")?;
    Ok(up(&table, "sshd").len() + up(&table, "https").len())
}

/// Counts the distinct servers that are up in the table of `show stat`.
fn count_up(table: &str) -> usize {
    // One server has a row for each port of its sshd: s1_0, s1_1.
    let mut up: Vec<&str> = up(table, "sshd")
        .into_iter()
        .filter_map(|name| name.split('_').next())
        .collect();
    up.sort_unstable();
    up.dedup();
    up.len()
}

/// The servers of one of HAProxy's pools that are up in the table of `show stat` (management guide, 9.1).
fn up<'a>(table: &'a str, of: &str) -> Vec<&'a str> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default().trim_start_matches("# ");
    let column = |name: &str| header.split(',').position(|field| field == name);
    let (Some(pool), Some(server), Some(status)) = (column("pxname"), column("svname"), column("status")) else {
        return Vec::new();
    };
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let is_up = fields.get(status)?.starts_with("UP");
            (*fields.get(pool)? == of && is_up).then_some(*fields.get(server)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_two_ports_is_one_server() {
        let table =
            "# pxname,svname,status\nsshd,s1_0,UP\nsshd,s1_1,UP 1/2\nsshd,s2_0,DOWN\nsshd,s3_1,UP\nbrokers,b1,UP\n";
        assert_eq!(count_up(table), 2);
    }
}
