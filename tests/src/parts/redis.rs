//! Redis: in memory only, reached by TLS and by its users' passwords; alone, or two of them and three Sentinels.
//!
//! Alone it asks for a client certificate too. Replicas and Sentinels have none: two take passwords only.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use crate::component::Component;
use crate::files;
use crate::parts::pki;
use crate::place::{Place, socket};
use crate::ready::Ready;
use crate::root::Root;
use crate::setup::{self, Setup, numbered};

/// Where its files are.
pub const DIR: &str = "redis";
/// Who may do what.
const USERS: &str = "redis/users.acl";

/// Where Redis and its Sentinels listen.
pub const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
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
    /// Does anything: the lab's own, for replicas, Sentinels and faults.
    Lab,
}

impl User {
    const ALL: [Self; 3] = [Self::Serverd, Self::Routerd, Self::Lab];

    /// Its name in Redis.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serverd => "serverd",
            Self::Routerd => "routerd",
            Self::Lab => "lab",
        }
    }

    /// What it may do, as docs/security.md has it.
    fn rules(self) -> &'static str {
        match self {
            Self::Serverd => "~rssh:server:* &rssh:servers +psetex +del +publish +role",
            Self::Routerd => "%R~rssh:server:* &rssh:servers +scan +get +mget +subscribe +role",
            Self::Lab => "~* &* +@all",
        }
    }

    /// Where its password lies, relative to the lab's directory.
    pub fn password(self) -> String {
        format!("redis/{}.password", self.name())
    }
}

/// The `[redis]` of a daemon's configuration.
pub fn toml(setup: &Setup, user: User) -> String {
    let (name, password) = (user.name(), setup.root.inside(user.password()));
    let url = if setup.options.ha {
        let sentinels = SENTINELS.map(|port| socket(HOST, port)).join(",");
        format!("rediss+sentinel://{name}@{sentinels}/{SERVICE}")
    } else {
        format!("rediss://{name}@{}", socket(HOST, PORTS[0]))
    };
    format!("[redis]\nurl = \"{url}\"\npassword-file = \"{password}\"\n")
}

/// A command that asks server `n` something as the lab, by its unix socket.
pub fn cli(root: &Root, n: u32, argv: &[&str]) -> Vec<String> {
    let ask = "REDISCLI_AUTH=$(cat \"$0\") exec redis-cli --user lab --no-auth-warning -s \"$@\"";
    let (password, socket) = (root.inside(User::Lab.password()), root.inside(unix_socket(n)));
    let all = ["sh", "-c", ask, &password, &socket];
    all.iter().chain(argv).map(|&word| word.to_owned()).collect()
}

fn unix_socket(n: u32) -> String {
    format!("{DIR}/{}.sock", numbered("redis", n))
}

/// Makes its directory, and its users.
///
/// # Errors
/// When that cannot be made.
pub fn prepare(root: &Root) -> Result<()> {
    files::make_dir(&root.join(DIR))?;
    let mut users = "user default off\n".to_owned();
    for user in User::ALL {
        let password = uuid::Uuid::new_v4().simple().to_string();
        users += &format!("user {} on >{password} {}\n", user.name(), user.rules());
        files::write_secret(&root.join(user.password()), password)?;
    }
    files::write_secret(&root.join(USERS), users)
}

/// Starts Redis; there are authorities.
///
/// # Errors
/// When it does not come up.
pub fn start(setup: &Setup) -> Result<()> {
    pki::tls(setup, DIR, &["--name", "redis", "--ip", &HOST.to_string()])?;
    let mut servers = Vec::new();
    for n in setup.twins() {
        servers.push(server(setup, n)?);
    }
    setup::start(&setup.root, &setup.programs, &servers)?;
    if !setup.options.ha {
        return Ok(());
    }
    let mut sentinels = Vec::new();
    for (n, port) in (1..).zip(SENTINELS) {
        sentinels.push(sentinel(setup, n, port)?);
    }
    setup::start(&setup.root, &setup.programs, &sentinels)
}

/// Where it listens, and by which certificate; nothing is said in the clear.
fn listening(setup: &Setup, port: u16) -> String {
    let (dir, ca) = (setup.root.inside(DIR), pki::file(setup, "servers-ca.pem"));
    let clients = if setup.options.ha { "no" } else { "yes" };
    format!(
        "bind {HOST}\nport 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients {clients}\n\
         tls-cert-file {dir}/tls.pem\ntls-key-file {dir}/tls.key\ntls-ca-cert-file {ca}\ndir {dir}\n"
    )
}

/// A server; of two, the second follows the first until Sentinels say otherwise.
fn server(setup: &Setup, n: u32) -> Result<Component> {
    let (name, port) = (numbered("redis", n), PORTS[n as usize - 1]);
    let mut config = listening(setup, port);
    config += &format!(
        "unixsocket {}\nunixsocketperm 700\naclfile {}\nsave \"\"\nappendonly no\ndaemonize no\n",
        setup.root.inside(unix_socket(n)),
        setup.root.inside(USERS),
    );
    if setup.options.ha {
        let password = files::read(&setup.root.join(User::Lab.password()))?;
        config += &format!("masteruser lab\nmasterauth {password}\nrepl-diskless-sync-delay 0\n");
    }
    if n == 2 {
        config += &format!("replicaof {HOST} {}\n", PORTS[0]);
    }
    let below = format!("{DIR}/{name}.conf");
    files::write_secret(&setup.root.join(&below), config)?;
    let component = Component::new(name, Place::Core, &["redis-server", &setup.root.inside(&below)]);
    Ok(component.ready(Ready::Tcp(SocketAddr::new(HOST.into(), port))))
}

/// A Sentinel; it keeps what it learns in its configuration.
fn sentinel(setup: &Setup, n: u32, port: u16) -> Result<Component> {
    let (below, master) = (format!("{DIR}/sentinel-{n}.conf"), PORTS[0]);
    let password = files::read(&setup.root.join(User::Lab.password()))?;
    files::write_secret(
        &setup.root.join(&below),
        listening(setup, port)
            + &format!(
                "sentinel monitor {SERVICE} {HOST} {master} {QUORUM}\n\
                 sentinel auth-user {SERVICE} lab\n\
                 sentinel auth-pass {SERVICE} {password}\n\
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
