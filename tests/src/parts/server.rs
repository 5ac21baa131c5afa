//! Servers: a serverd each, with the sshd that it renders the configuration of.

use std::net::SocketAddr;

use anyhow::Result;

use crate::component::Component;
use crate::files;
use crate::parts::{broker, pki, redis, router};
use crate::place::{
    DOMAIN, HEALTH_PORT, HTTPS_PORT, LB, LB_BEARER, LB_DEVICES, LB_HTTPS, LB_USERS, Place, SSHD_PORTS, TUNNEL_ACCOUNT,
    server_address, socket,
};
use crate::postgres;
use crate::ready::{Ready, notify_variable};
use crate::run;
use crate::setup::Setup;

/// The ports that a server leases: below those that the kernel draws for connections (32768-60999).
const LEASE_PORTS: &str = "20000-29999";

/// The id of server `n`.
pub fn id(n: u32) -> String {
    format!("s{n}")
}

fn dir(n: u32) -> String {
    format!("servers/{}", id(n))
}

/// Where the installation answers HTTPS.
pub fn url() -> String {
    format!("https://{}", socket(LB, LB_HTTPS))
}

/// The configuration with which server `n` runs, as programs see it.
pub fn config(setup: &Setup, n: u32) -> String {
    setup.root.inside(format_args!("{}/serverd.toml", dir(n)))
}

/// The configuration of the operator, who holds the authorities; otherwise server 1's.
pub fn admin_config(setup: &Setup) -> String {
    setup.root.inside(format_args!("{}/admin.toml", dir(1)))
}

/// Runs one of rssh-serverd's commands of administration.
///
/// # Errors
/// When it fails.
pub fn admin(setup: &Setup, args: &[&str]) -> Result<()> {
    serverd(setup, &Place::Core, args).map(drop)
}

/// Has the operator make a one-time token; it lies in a file of the lab's that its owner alone reads.
///
/// # Errors
/// When the product's command fails.
pub fn token(setup: &Setup, args: &[&str], file: &str) -> Result<String> {
    let config = admin_config(setup);
    let args: Vec<&str> = args.iter().copied().chain(["--config", &config]).collect();
    let token = serverd(setup, &Place::Core, &args)?;
    files::make_dir(&setup.root.join("tokens"))?;
    files::write_secret(&setup.root.join("tokens").join(file), token)?;
    Ok(setup.root.inside(format_args!("tokens/{file}")))
}

fn serverd(setup: &Setup, place: &Place, args: &[&str]) -> Result<String> {
    let mut command = setup.programs.at(&setup.root, place, None);
    command.arg(setup.programs.path("rssh-serverd")).args(args);
    run::checked(&mut command)
}

/// Writes the configuration files of server `n`.
///
/// # Errors
/// When one cannot be written.
pub fn write_config(setup: &Setup, n: u32) -> Result<()> {
    let dir = setup.root.join(dir(n));
    files::make_dir(&dir.join("state"))?;
    let administrates = format!("\n[admin]\npki = \"{}\"\naccounts = [\"root\"]\n", pki::dir(setup));
    let admin = toml(setup, n, postgres::ROLE) + &administrates;
    files::write_secret(&dir.join("admin.toml"), admin)?;
    let mut config = toml(setup, n, postgres::SERVERD);
    if n == 1 {
        // The first server issues what is asked for over HTTPS; the others have no authority's key.
        config += &administrates;
    }
    files::write_secret(&dir.join("serverd.toml"), config)
}

/// With the database as one of its roles sees it.
fn toml(setup: &Setup, n: u32, role: &str) -> String {
    let state = setup.root.inside(format_args!("{}/state", dir(n)));
    let sshd = setup.root.inside(format_args!("{}/sshd", dir(n)));
    let address = server_address(n);
    let listen = SSHD_PORTS
        .map(|port| format!("\"{}\"", socket(address, port)))
        .join(", ");
    format!(
        r#"state-dir = "{state}"

[public]
domain = "{DOMAIN}"
port = {LB_USERS}
bearer-port = {LB_BEARER}
lb = {lb}
ssh = {ssh}

[database]
url = "{database}"

{redis}
[mqtt]
brokers = {brokers}

[sshd]
address = "{address}"
listen = [{listen}]
ports = "{LEASE_PORTS}"
user = "{TUNNEL_ACCOUNT}"
dir = "{sshd}"
helpers = "{helpers}"

[http]
listen = "{health}"

[https]
listen = "{https}"
url = "{url}"
"#,
        lb = router::doors(setup, LB_USERS),
        ssh = router::doors(setup, LB_DEVICES),
        database = postgres::url(setup, role),
        redis = redis::toml(setup, redis::User::Serverd),
        brokers = broker::addresses(setup),
        helpers = setup.root.inside("helpers"),
        health = socket(address, HEALTH_PORT),
        https = socket(address, HTTPS_PORT),
        url = url(),
    )
}

/// Copies sshd's two helper programs to where every account reaches them and nobody but root writes, as sshd demands.
///
/// # Errors
/// When they cannot be copied.
pub fn install_helpers(setup: &Setup) -> Result<()> {
    let to = setup.root.join("helpers");
    files::make_dir(&to)?;
    for name in ["rssh-authorize", "rssh-claim"] {
        files::copy(&setup.programs.path(name), &to.join(name))?;
        files::set_mode(&to.join(name), 0o755)?;
    }
    Ok(())
}

/// Makes the tables.
///
/// # Errors
/// When the product's command fails.
pub fn migrate(setup: &Setup) -> Result<()> {
    admin(setup, &["migrate", "--config", &admin_config(setup)])
}

/// Gives the first server, where the authorities are, its id, keys, certificates and sshd configuration.
///
/// # Errors
/// When the product's command fails.
pub fn init(setup: &Setup) -> Result<()> {
    let (config, id) = (admin_config(setup), id(1));
    serverd(
        setup,
        &Place::Server(1),
        &["server", "init", "--config", &config, "--id", &id],
    )
    .map(drop)
}

/// Where the first server answers HTTPS itself: what joins before there is a load balancer connects here.
pub fn first_door() -> String {
    socket(server_address(1), HTTPS_PORT)
}

/// Has server `n` join, at the first one.
///
/// # Errors
/// When the product's command fails.
pub fn join(setup: &Setup, n: u32) -> Result<()> {
    let id = id(n);
    let token = token(setup, &["server", "add", &id], &id)?;
    let (config, url, door) = (config(setup, n), url(), first_door());
    serverd(
        setup,
        &Place::Server(n),
        &[
            "join",
            &url,
            "--connect",
            &door,
            "--config",
            &config,
            "--token-file",
            &token,
        ],
    )
    .map(drop)
}

/// The daemon and sshd of server `n`.
pub fn components(setup: &Setup, n: u32) -> [Component; 2] {
    let address = server_address(n);
    let name = format!("serverd-{n}");
    let serverd = setup.programs.path("rssh-serverd");
    let (variable, value) = notify_variable(&setup.root, &name);
    [
        Component::new(
            format!("sshd-{n}"),
            Place::Server(n),
            &[
                "/usr/sbin/sshd",
                "-D",
                "-e",
                "-f",
                &setup.root.inside(format_args!("{}/sshd/sshd_config", dir(n))),
            ],
        )
        .ready(Ready::Tcp(SocketAddr::new(address.into(), SSHD_PORTS[0])))
        .after(&[
            &serverd.to_string_lossy(),
            "sshd",
            "nodelay",
            "--config",
            &config(setup, n),
        ]),
        Component::new(
            name,
            Place::Server(n),
            &[&serverd.to_string_lossy(), "run", "--config", &config(setup, n)],
        )
        .env(&variable, value)
        .ready(Ready::Health(SocketAddr::new(address.into(), HEALTH_PORT))),
    ]
}
