//! Redis: in memory only, reached by unix socket only; or two and three Sentinels, on loopback ports of the lab's own.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use crate::component::Component;
use crate::files;
use crate::place::{Place, socket};
use crate::ready::Ready;
use crate::setup::{self, Setup, numbered};

const SOCKET: &str = "redis/redis.sock";

/// Where Redis and its Sentinels listen that are several.
const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub const PORTS: [u16; 2] = [6379, 6380];
const SENTINELS: [u16; 3] = [26379, 26380, 26381];
/// What the Sentinels call the master, and how many have to agree that it is gone.
const SERVICE: &str = "rssh";
const QUORUM: u32 = 2;

/// The registry as a URL.
pub fn url(setup: &Setup) -> String {
    if !setup.options.ha {
        return format!("redis+unix://{}", setup.root.inside(SOCKET));
    }
    let sentinels = SENTINELS.map(|port| socket(HOST, port)).join(",");
    format!("redis+sentinel://{sentinels}/{SERVICE}")
}

/// Starts Redis.
///
/// # Errors
/// When it does not come up.
pub fn start(setup: &Setup) -> Result<()> {
    files::make_dir(&setup.root.join("redis"))?;
    if !setup.options.ha {
        return setup::start(&setup.root, &setup.programs, &[alone(setup)]);
    }
    let both = [1, 2].map(|n| one_of_two(setup, n));
    setup::start(&setup.root, &setup.programs, &both)?;
    let mut sentinels = Vec::new();
    for (n, port) in (1..).zip(SENTINELS) {
        sentinels.push(sentinel(setup, n, port)?);
    }
    setup::start(&setup.root, &setup.programs, &sentinels)
}

/// A server of two: the second follows the first until Sentinels say otherwise.
fn one_of_two(setup: &Setup, n: u32) -> Component {
    let port = PORTS[n as usize - 1];
    let (host, port_text, dir) = (HOST.to_string(), port.to_string(), setup.root.inside("redis"));
    let name = numbered("redis", n);
    let master = PORTS[0].to_string();
    let mut argv = vec!["redis-server", "--bind", &host, "--port", &port_text, "--dir", &dir];
    argv.extend([
        "--save",
        "",
        "--appendonly",
        "no",
        "--daemonize",
        "no",
        "--repl-diskless-sync-delay",
        "0",
    ]);
    if n == 2 {
        argv.extend(["--replicaof", &host, &master]);
    }
    Component::new(name, Place::Core, &argv).ready(Ready::Tcp(SocketAddr::new(HOST.into(), port)))
}

/// A Sentinel; it keeps what it learns in its configuration.
fn sentinel(setup: &Setup, n: u32, port: u16) -> Result<Component> {
    let (below, master) = (format!("redis/sentinel-{n}.conf"), PORTS[0]);
    let dir = setup.root.inside("redis");
    files::write(
        &setup.root.join(&below),
        format!(
            "port {port}\nbind {HOST}\ndir {dir}\n\
             sentinel monitor {SERVICE} {HOST} {master} {QUORUM}\n\
             sentinel down-after-milliseconds {SERVICE} 1500\n\
             sentinel failover-timeout {SERVICE} 10000\n"
        ),
    )?;
    Ok(Component::new(
        format!("sentinel-{n}"),
        Place::Core,
        &["redis-server", &setup.root.inside(&below), "--sentinel"],
    )
    .ready(Ready::Tcp(SocketAddr::new(HOST.into(), port))))
}

/// The only server.
fn alone(setup: &Setup) -> Component {
    let socket = setup.root.inside(SOCKET);
    let dir = setup.root.inside("redis");
    Component::new(
        "redis",
        Place::Core,
        &[
            "redis-server",
            "--port",
            "0",
            "--unixsocket",
            &socket,
            "--unixsocketperm",
            "700",
            "--dir",
            &dir,
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
        ],
    )
    .address(&socket)
    .ready(Ready::Unix(SOCKET.to_owned()))
}
