//! `rssh-serverd setup --join`: another server on a machine of its own, which uses the stores, the broker and the load
//! balancer of an installation that is there.

use std::fs;
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rssh_proto::HttpsUrl;
use rssh_proto::name::ProxyDomain;

use super::machine::Machine;
use super::{CONFIG, admit, files, has_identity, kernel, ready_for_setup, serving, told};
use crate::args::SetupArgs;
use crate::cmd::join;
use crate::config::Config;

/// What has to be installed: a program, and Debian's package of it.
const PROGRAMS: [(&str, &str); 3] = [
    ("sshd", "openssh-server"),
    ("ssh-keygen", "openssh-client"),
    ("nft", "nftables"),
];
/// The rules that keep others than the load balancers from leased ports, and who may pass as they are shipped.
const RULES: &str = "/etc/rssh/nftables.nft";
const NOBODY: &str = "elements = { 127.0.0.0/8 }";

/// What is to be joined, and how.
struct Joining {
    url: HttpsUrl,
    domain: ProxyDomain,
    /// Where leased ports listen.
    address: Ipv4Addr,
    database: String,
    redis: String,
    balancers: Vec<Ipv4Addr>,
    token_file: Option<PathBuf>,
}

impl Joining {
    /// What the arguments say, or else the terminal, or else follows from the URL.
    fn new(url: HttpsUrl, args: SetupArgs) -> Result<Self> {
        let host = url.host();
        let domain = match args.domain {
            Some(domain) => domain,
            None => host
                .parse()
                .ok()
                .with_context(|| format!("{host} is no domain of signed names; use --domain"))?,
        };
        let address = match args.address {
            Some(address) => address,
            None => address()?,
        };
        let balancers = match args.balancer.as_slice() {
            [] => found(&host)?,
            given => given.to_vec(),
        };
        Ok(Self {
            database: args.database.unwrap_or_else(|| files::remote_database(&domain)),
            redis: args
                .redis
                .unwrap_or_else(|| format!("rediss://{domain}:{}/", admit::REDIS_PORT)),
            url,
            domain,
            address,
            balancers,
            token_file: args.token_file,
        })
    }

    /// What its configuration says.
    fn server(&self) -> files::Server {
        files::Server {
            domain: self.domain.clone(),
            address: self.address.into(),
            database: self.database.clone(),
            redis: self.redis.clone(),
            url: self.url.to_string(),
            authorities: false,
        }
    }
}

/// Sets this machine up as another server.
///
/// # Errors
/// When a step cannot be done; what was done before stays, and setup can be run again.
pub(super) async fn run(url: HttpsUrl, args: SetupArgs) -> Result<()> {
    let mut machine = Machine::new(args.dry_run);
    ready_for_setup(&PROGRAMS)?;
    let joining = Joining::new(url, args)?;
    if joining.address.is_loopback() || joining.address.is_unspecified() {
        bail!(
            "{} is no address of this machine that a load balancer reaches; use --address with one that is",
            joining.address
        );
    }
    kernel(&mut machine)?;
    firewall(&joining, &mut machine)?;
    server(&joining, &mut machine).await?;
    serving(&joining.domain, &machine)?;
    told(&machine);
    Ok(())
}

/// The server: configuration, identity, sshd and the daemon.
async fn server(joining: &Joining, machine: &mut Machine) -> Result<()> {
    let path = Path::new(CONFIG);
    // What the operator changed stays: only a file that is not there is written.
    if !path.exists() {
        machine.file(path, &files::serverd(&joining.server()), 0o644, "root")?;
    }
    if machine.is_dry() && !path.exists() {
        machine.change(&format!("join {} with a token", joining.url));
    } else {
        let config = Config::load(path)?;
        if !has_identity(&config) && machine.change(&format!("join {} with a token", joining.url)) {
            join::run(&config, joining.url.clone(), None, joining.token_file.as_deref()).await?;
        }
    }
    machine.unit("rssh-sshd.service")?;
    machine.unit("rssh-serverd.service")
}

/// Keeps all but the load balancers from leased ports.
fn firewall(joining: &Joining, machine: &mut Machine) -> Result<()> {
    let path = Path::new(RULES);
    let there = fs::read_to_string(path).with_context(|| format!("cannot read {RULES}; the package brings it"))?;
    let balancers: Vec<String> = joining.balancers.iter().map(ToString::to_string).collect();
    let text = there.replace(
        NOBODY,
        &format!("elements = {{ 127.0.0.0/8, {} }}", balancers.join(", ")),
    );
    let changed = text != there;
    machine.file(path, &text, 0o644, "root")?;
    machine.unit("rssh-firewall.service")?;
    if changed {
        let command = ["systemctl", "restart", "rssh-firewall.service"];
        machine.run("let the kernel know the load balancers", &command)?;
    }
    Ok(())
}

/// The address of this machine, from the terminal.
fn address() -> Result<Ipv4Addr> {
    if let Ok(config) = Config::load(Path::new(CONFIG))
        && let std::net::IpAddr::V4(kept) = config.sshd.address
    {
        return Ok(kept);
    }
    if !std::io::stdin().is_terminal() {
        bail!("which address leased ports listen at is not said; use --address, such as --address 10.0.0.12");
    }
    let prompt = dialoguer::Input::<Ipv4Addr>::new()
        .with_prompt("the address of this machine that the load balancer reaches, such as 10.0.0.12");
    Ok(prompt.interact_text()?)
}

/// Where a name leads, by IPv4: rules of the firewall have addresses.
fn found(host: &str) -> Result<Vec<Ipv4Addr>> {
    let all = (host, 443)
        .to_socket_addrs()
        .with_context(|| format!("{host} is not found"))?;
    let mut addresses: Vec<Ipv4Addr> = all
        .filter_map(|address| match address {
            SocketAddr::V4(address) => Some(*address.ip()),
            SocketAddr::V6(_) => None,
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        bail!("{host} has no address of IPv4; name the load balancers with --balancer");
    }
    Ok(addresses)
}
