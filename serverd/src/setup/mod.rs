//! `rssh-serverd setup`: one machine, from installed packages to a running installation.
//!
//! Each step looks first and changes only what is not as it should be, so that setup can be run again at any time: after
//! a step that failed, after an upgrade, or to renew the certificates of the broker and the load balancer.

mod admit;
mod database;
mod files;
mod join;
mod machine;
mod router;

use std::fs;
use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rssh_proto::name::ProxyDomain;
use rssh_proto::{RouterId, ServerId};
use x509_parser::pem::parse_x509_pem;

use crate::args::{Admitted, SetupArgs};
use crate::capacity;
use crate::clock;
use crate::cmd::install;
use crate::config::Config;
use crate::pki::Pki;
use crate::{broker, sshd};
use machine::Machine;

const CONFIG: &str = "/etc/rssh/serverd.toml";
const PKI: &str = "/etc/rssh/pki";
const STATE: &str = "/var/lib/rssh-serverd";
const BROKER: &str = "/var/lib/rssh-broker";
const ROUTER: &str = "/var/lib/rssh-routerd";
const HAPROXY: &str = "/etc/rssh/haproxy";
const BROKER_PORT: u16 = 8883;
const LOCAL_REDIS: &str = "redis://127.0.0.1:6379/";
const ACCOUNT: &str = "rssh-serverd";
const BROKER_ACCOUNT: &str = "mosquitto";
/// A certificate that ends within so many seconds is made anew.
const SOON: i64 = 30 * 86_400;
/// How long the installation may take to serve, once its units run.
const PATIENCE: Duration = Duration::from_secs(60);

/// What has to be installed: a program, and Debian's package of it.
const PROGRAMS: [(&str, &str); 7] = [
    ("sshd", "openssh-server"),
    ("ssh-keygen", "openssh-client"),
    ("psql", "postgresql"),
    ("redis-server", "redis-server"),
    ("mosquitto", "mosquitto"),
    ("haproxy", "haproxy"),
    ("rssh-routerd", "rssh-routerd"),
];

/// What is to be set up.
struct Wanted {
    domain: ProxyDomain,
    id: Option<ServerId>,
    router: RouterId,
    /// Where leased ports listen.
    address: Ipv4Addr,
    /// Other servers that use the stores of this machine.
    admit: Vec<Admitted>,
}

/// Sets this machine up.
///
/// # Errors
/// When a step cannot be done; what was done before stays, and setup can be run again.
pub async fn run(args: SetupArgs) -> Result<()> {
    if let Some(url) = args.join.clone() {
        return join::run(url, args).await;
    }
    let wanted = Wanted {
        domain: domain(args.domain)?,
        id: args.id,
        router: args.router,
        address: args.address.unwrap_or(Ipv4Addr::LOCALHOST),
        admit: args.admit,
    };
    let mut machine = Machine::new(args.dry_run);
    ready_for_setup(&PROGRAMS)?;
    steps(&wanted, &mut machine).await?;
    told(&machine);
    if !machine.is_dry() {
        next(&wanted);
    }
    Ok(())
}

/// Says what came of it.
fn told(machine: &Machine) {
    match (machine.changes(), machine.is_dry()) {
        (0, _) => eprintln!("nothing to change"),
        (1, true) => eprintln!("1 change would be made; nothing was"),
        (n, true) => eprintln!("{n} changes would be made; nothing was"),
        (1, false) => eprintln!("1 change made"),
        (n, false) => eprintln!("{n} changes made"),
    }
}

async fn steps(wanted: &Wanted, machine: &mut Machine) -> Result<()> {
    kernel(machine)?;
    database::prepare(&wanted.admit, machine)?;
    machine.unit("redis-server.service")?;
    authorities(machine)?;
    broker(wanted, machine)?;
    server(wanted, machine).await?;
    database::let_router_in(machine)?;
    router::prepare(wanted, machine).await?;
    admit::prepare(wanted, machine)?;
    serving(&wanted.domain, machine)
}

/// The domain, from the flag or the terminal.
fn domain(flag: Option<ProxyDomain>) -> Result<ProxyDomain> {
    if let Some(domain) = flag {
        return Ok(domain);
    }
    let kept = Config::load(Path::new(CONFIG)).ok().map(|config| config.public.domain);
    if !std::io::stdin().is_terminal() {
        return kept.context("which domain is not said; use --domain, such as --domain proxy.example.com");
    }
    let mut prompt = dialoguer::Input::<String>::new()
        .with_prompt("the domain that points at this machine, such as proxy.example.com")
        .validate_with(|text: &String| text.parse::<ProxyDomain>().map(drop).map_err(|error| error.to_string()));
    if let Some(kept) = kept {
        prompt = prompt.default(kept.to_string());
    }
    Ok(prompt.interact_text()?.parse()?)
}

/// Whether this machine can be set up at all.
fn ready_for_setup(programs: &[(&str, &'static str)]) -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("setup changes the system; run it as root");
    }
    if !Path::new("/run/systemd/system").exists() {
        bail!("this system was not booted with systemd; install by hand, see docs/install.md");
    }
    let absent = programs.iter().filter(|(program, _)| !machine::installed(program));
    let missing: Vec<&str> = absent.map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        bail!("programs are missing; run: apt install {}", missing.join(" "));
    }
    Ok(())
}

/// The kernel's settings, which the package brings and a boot applies.
fn kernel(machine: &mut Machine) -> Result<()> {
    let ports = "20000-29999".parse().map_err(anyhow::Error::msg)?;
    if capacity::port_conflict(ports).is_none() {
        return Ok(());
    }
    machine.run(
        "reserve the ports to lease",
        &["sysctl", "--quiet", "--load", "/usr/lib/sysctl.d/60-rssh-serverd.conf"],
    )
}

/// The authorities. The daemon signs with them, and the other parts read the certificates.
fn authorities(machine: &mut Machine) -> Result<()> {
    let dir = Path::new(PKI);
    machine.directory(dir, 0o711, ACCOUNT)?;
    if dir.join("servers-ca.pem").exists() || !machine.change(&format!("make the authorities in {PKI}")) {
        return Ok(());
    }
    Pki::at(dir).init(sshd::HOST_ALIAS)?;
    Ok(rssh_mqtt::files::hand_over(dir)?)
}

/// The broker: its certificate, its configuration, its unit.
fn broker(wanted: &Wanted, machine: &mut Machine) -> Result<()> {
    let dir = Path::new(BROKER);
    machine.directory(dir, 0o700, BROKER_ACCOUNT)?;
    let (cert, key) = (dir.join("tls.pem"), dir.join("tls.key"));
    let renewed =
        !lasts(&cert) && machine.change(&format!("issue the certificate of the broker, for {}", wanted.domain));
    let pki = Pki::at(Path::new(PKI));
    if renewed {
        let (issued, secret) = pki.issue_tls(&[wanted.domain.to_string()], &[])?;
        rssh_mqtt::files::write_secret(&key, secret.as_bytes())?;
        rssh_mqtt::files::write_public(&cert, issued.pem.as_bytes())?;
    }
    if !dir.join("mosquitto.conf").exists()
        && machine.change("write the broker's configuration, which denies by default")
    {
        broker::render(
            &pki,
            &broker::Render {
                dir,
                listen: SocketAddr::new(everywhere(), BROKER_PORT),
                cert: &cert,
                key: &key,
                user: BROKER_ACCOUNT,
            },
        )?;
    }
    if !machine.is_dry() {
        rssh_mqtt::files::hand_over(dir)?;
    }
    machine.unit("rssh-broker.service")?;
    if renewed {
        machine.run(
            "let the broker read its certificate",
            &["systemctl", "reload", "rssh-broker.service"],
        )?;
    }
    Ok(())
}

/// Every address of this machine.
fn everywhere() -> IpAddr {
    if files::has_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

/// The server: configuration, tables, identity, sshd and the daemon.
async fn server(wanted: &Wanted, machine: &mut Machine) -> Result<()> {
    let path = Path::new(CONFIG);
    // What the operator changed stays: only a file that is not there is written.
    if !path.exists() {
        let server = files::Server::first(&wanted.domain, wanted.address.into());
        machine.file(path, &files::serverd(&server), 0o644, "root")?;
    }
    resolvable(wanted, machine)?;
    if machine.is_dry() {
        for (what, there) in [
            ("bring the database's schema up to date", path.exists()),
            (
                "give this server its id, keys and certificates",
                Path::new(STATE).join("server-id").exists(),
            ),
        ] {
            if !there {
                machine.change(what);
            }
        }
    } else {
        let config = Config::load(path)?;
        if config.public.domain != wanted.domain {
            bail!(
                "{CONFIG} is for {}, not for {}; devices and users know the first, so change it there only if there are none",
                config.public.domain,
                wanted.domain
            );
        }
        crate::store::Store::new(&config.database)?.migrate().await?;
        enrolled(wanted, machine, &config).await?;
    }
    machine.unit("rssh-sshd.service")?;
    machine.unit("rssh-serverd.service")
}

/// The identity of the server; an older certificate is made anew.
async fn enrolled(wanted: &Wanted, machine: &mut Machine, config: &Config) -> Result<()> {
    if has_identity(config) {
        return Ok(());
    }
    machine.change("give this server its id, keys and certificates");
    install::server(config, wanted.id.clone()).await
}

/// Whether the server has its certificates and its sshd's configuration.
fn has_identity(config: &Config) -> bool {
    let is_there = config.https.is_none() || config.https_identity().cert.exists();
    lasts(&config.identity().cert) && is_there && config.sshd.dir.join("sshd_config").exists()
}

/// The machine itself must find the broker by its public name, which its certificate is for.
fn resolvable(wanted: &Wanted, machine: &mut Machine) -> Result<()> {
    use std::net::ToSocketAddrs as _;
    let name = wanted.domain.to_string();
    if (name.as_str(), BROKER_PORT).to_socket_addrs().is_ok() {
        return Ok(());
    }
    let path = Path::new("/etc/hosts");
    let there = fs::read_to_string(path).unwrap_or_default();
    let text = format!("{}\n127.0.0.1 {name} # rssh\n", there.trim_end());
    if machine.is_dry() {
        machine.change(&format!("add {name} to /etc/hosts, since DNS does not know it yet"));
        return Ok(());
    }
    machine.file(path, &text, 0o644, "root")
}

/// Waits until the whole takes landings.
fn serving(domain: &ProxyDomain, machine: &Machine) -> Result<()> {
    if machine.is_dry() {
        return Ok(());
    }
    let config = Config::load(Path::new(CONFIG))?;
    let since = Instant::now();
    loop {
        match healthy(config.http.listen) {
            Ok(()) => return Ok(()),
            Err(error) if since.elapsed() > PATIENCE => bail!(
                "the server for {domain} does not take landings: {error}; see: journalctl -u rssh-serverd -u rssh-sshd"
            ),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Asks for the health of the server, by HTTP/1.0.
fn healthy(address: SocketAddr) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    bail!(
        "{}",
        rssh_proto::text::sanitize(answer.lines().last().unwrap_or_default(), 300)
    )
}

/// Whether a certificate is there and lasts for some time yet.
fn lasts(path: &Path) -> bool {
    let Ok(pem) = fs::read(path) else { return false };
    let Ok((_, pem)) = parse_x509_pem(&pem) else {
        return false;
    };
    pem.parse_x509()
        .is_ok_and(|certificate| certificate.validity().not_after.timestamp() > clock::now().0 + SOON)
}

/// What there is to do now, on stderr like all that is no data.
fn next(wanted: &Wanted) {
    eprintln!(
        "\n{domain} takes devices' ssh on port {devices}, users on 443 and {bearer}, MQTT on {BROKER_PORT}, HTTPS on {https}.\n\
         Next:\n\
         \x20   rssh-serverd device add DEVICE     a token; there: rssh-agentd enroll https://{domain}:{https}\n\
         \x20   rssh-serverd user add USER         a token; there: rssh login https://{domain}:{https}\n\
         \x20   rssh-serverd grant add USER --device DEVICE\n\
         Keep a copy of {PKI} in a safe place: nothing can replace it.",
        domain = wanted.domain,
        devices = files::DEVICES_PORT,
        bearer = files::BEARER_PORT,
        https = files::HTTPS_PORT,
    );
}
