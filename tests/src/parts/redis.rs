//! Redis: in memory only, reached by unix socket only; or two and three Sentinels, on loopback ports of the lab's own.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};

use crate::component::Component;
use crate::files;
use crate::place::{Place, socket};
use crate::ready::Ready;
use crate::root::Root;
use crate::setup::{self, Setup, numbered};

const SOCKET: &str = "redis/redis.sock";
/// Who may do what.
const USERS: &str = "redis/users.acl";

/// Where Redis and its Sentinels listen that are several.
const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub const PORTS: [u16; 2] = [6379, 6380];
const SENTINELS: [u16; 3] = [26379, 26380, 26381];
/// What the Sentinels call the master, and how many have to agree that it is gone.
const SERVICE: &str = "rssh";
const QUORUM: u32 = 2;

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Writes and announces registrations.
    Serverd,
    /// Reads them.
    Routerd,
}

impl User {
    fn name(self) -> &'static str {
        match self {
            Self::Serverd => "serverd",
            Self::Routerd => "routerd",
        }
    }

    fn rules(self) -> &'static str {
        match self {
            Self::Serverd => "~rssh:server:* &rssh:servers +psetex +del +publish",
            Self::Routerd => "%R~rssh:server:* &rssh:servers +scan +get +mget +subscribe",
        }
    }
}

/// The registry as a URL, for one of its users; [`prepare`] has run. Several have the default user only: a Sentinel that
/// finds the master does not know who asks.
pub fn url(setup: &Setup, user: User) -> String {
    if !setup.options.ha {
        let password = password(&setup.root, user).unwrap_or_default();
        let socket = setup.root.inside(SOCKET);
        return format!("redis+unix://{socket}?user={}&pass={password}", user.name());
    }
    let sentinels = SENTINELS.map(|port| socket(HOST, port)).join(",");
    format!("redis+sentinel://{sentinels}/{SERVICE}")
}

/// The password of a user.
///
/// # Errors
/// When [`prepare`] has not run.
pub fn password(root: &Root, user: User) -> Result<String> {
    let users = files::read(&root.join(USERS))?;
    let begins = format!("user {} on >", user.name());
    let line = users.lines().find_map(|line| line.strip_prefix(&begins));
    let password = line.and_then(|rest| rest.split(' ').next());
    Ok(password.context("no such user of Redis")?.to_owned())
}

/// Makes its directory, and its users. The default user is the lab's own, for faults; only root reaches the socket.
///
/// # Errors
/// When that cannot be made.
pub fn prepare(root: &Root) -> Result<()> {
    files::make_dir(&root.join("redis"))?;
    let mut users = "user default on nopass ~* &* +@all\n".to_owned();
    for user in [User::Serverd, User::Routerd] {
        let password = uuid::Uuid::new_v4().simple();
        users += &format!("user {} on >{password} {}\n", user.name(), user.rules());
    }
    files::write_secret(&root.join(USERS), users)
}

/// Starts Redis.
///
/// # Errors
/// When it does not come up.
pub fn start(setup: &Setup) -> Result<()> {
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
            "--aclfile",
            &setup.root.inside(USERS),
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
