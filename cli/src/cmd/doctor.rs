//! `rssh doctor`: examines what a session needs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use dialoguer::console::style;
use rssh_mqtt::dial::dial;
use rssh_mqtt::proxy::Proxies;
use rssh_mqtt::session::Down;
use rssh_mqtt::{FileError, Identity, IdentityError, files, identity};
use rssh_proto::duration::Span;
use rssh_proto::payload::Operation;
use rssh_proto::{FailureKind, HostPort};
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::args::{Common, DoctorArgs};
use crate::control::Control;
use crate::error::Error;
use crate::examine::{self, Finding, Status};
use crate::output;
use crate::profile::{self, Profile};
use crate::ssh;

/// A host name that no certificate is for: the load balancer's own are signed and not known here.
const NO_HOST: &str = "doctor.invalid";

/// Runs the command.
///
/// # Errors
/// Ends with exit code 1 when something fails; it has been told by then.
pub async fn run(common: &Common, args: &DoctorArgs) -> Result<(), Error> {
    let mut report = Report {
        json: args.json,
        quiet: common.quiet,
        failed: false,
    };
    if let Some(profile) = profile(common, &mut report)?
        && let Some(tls) = own_identity(&profile, &mut report)?
    {
        peers(&profile, &tls, args.timeout, &mut report).await?;
        control(&profile, tls, args.timeout, &mut report).await?;
    }
    system(&mut report)?;
    if report.failed {
        return Err(Error::Silent(1));
    }
    Ok(())
}

struct Report {
    json: bool,
    quiet: bool,
    failed: bool,
}

impl Report {
    fn tell(&mut self, finding: &Finding) -> Result<(), Error> {
        self.failed |= finding.status == Status::Fail;
        if self.json {
            return output::json(finding);
        }
        if self.quiet && finding.status == Status::Ok {
            return Ok(());
        }
        let status = match finding.status {
            Status::Ok => style("ok  ").green(),
            Status::Warn => style("warn").yellow(),
            Status::Fail => style("FAIL").red(),
        };
        let mut text = format!("{status}  {:12}  {}\n", finding.check, finding.detail);
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("{:18}  remedy: {remedy}\n", ""));
        }
        output::data(&text)
    }
}

fn profile(common: &Common, report: &mut Report) -> Result<Option<Profile>, Error> {
    let loaded = profile::path(common.profile.as_deref()).and_then(|path| Ok((Profile::load(&path)?, path)));
    match loaded {
        Ok((profile, path)) => {
            report.tell(&Finding::ok(
                "profile",
                format!("{}, for {}", path.display(), profile.user),
            ))?;
            Ok(Some(profile))
        }
        Err(error) => {
            report.tell(&Finding::of_error("profile", &error.to_string()))?;
            Ok(None)
        }
    }
}

fn own_identity(profile: &Profile, report: &mut Report) -> Result<Option<Arc<rustls::ClientConfig>>, Error> {
    let files = profile.identity();
    let found = |path: &Path| format!("{}, for its owner only", path.display());
    match files::read_secret(&files.key) {
        Ok(_) => report.tell(&Finding::ok("key", found(&files.key)))?,
        Err(error) => report.tell(&Finding::of_error("key", &error.to_string()))?,
    }
    let identity = Identity::load(&files).and_then(|identity| Ok((identity.client_config()?, identity)));
    match identity {
        Ok((tls, identity)) => {
            let now = jiff::Timestamp::now().as_second();
            if let Some(certificate) = identity.certificates.first() {
                report.tell(&examine::certificate(certificate, &profile.user, now))?;
            }
            Ok(Some(Arc::new(tls)))
        }
        // Told with the key already.
        Err(IdentityError::File(FileError::Exposed(_))) => Ok(None),
        Err(error) => {
            report.tell(&Finding::fail(
                "certificate",
                error.to_string(),
                "check ca, cert and key in the profile",
            ))?;
            Ok(None)
        }
    }
}

/// The brokers and the load balancer, as far as TLS.
async fn peers(
    profile: &Profile,
    tls: &Arc<rustls::ClientConfig>,
    patience: Span,
    report: &mut Report,
) -> Result<(), Error> {
    let brokers = profile.brokers.iter().map(|broker| ("broker", broker, broker.host()));
    let balancers = profile
        .lb
        .all()
        .iter()
        .map(|balancer| ("lb", balancer, NO_HOST.to_owned()));
    let mut handshakes = Vec::new();
    for (check, address, name) in brokers.chain(balancers) {
        let slow = |_| {
            let detail = format!("{address} does not answer within {patience}");
            Finding::fail(check, detail, "check the network, and the address in the profile")
        };
        if let Some(proxy) = profile.proxies.of(address) {
            report.tell(&Finding::ok("proxy", format!("{address} by way of {proxy}")))?;
        }
        let hop = profile.proxies.of(address).map_or(address, |proxy| proxy.address());
        let found = timeout(patience.duration(), resolve(hop)).await;
        let addresses = match found.map_err(slow).and_then(|found| found) {
            Ok(addresses) => addresses,
            Err(finding) => {
                report.tell(&finding)?;
                continue;
            }
        };
        if hop.host().parse::<IpAddr>().is_err() {
            let addresses: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
            let detail = format!("{} is {}", hop.host(), addresses.join(", "));
            report.tell(&Finding::ok("dns", detail))?;
        }
        let socket = timeout(patience.duration(), connect(address, &profile.proxies)).await;
        let socket = match socket.map_err(slow).and_then(|socket| socket) {
            Ok(socket) => socket,
            Err(finding) => {
                report.tell(&finding)?;
                continue;
            }
        };
        // A load balancer may serve both at one port, and tells them apart by this.
        let tls = if check == "broker" {
            identity::with_alpn(tls)
        } else {
            tls.clone()
        };
        let ended = timeout(patience.duration(), handshake(socket, name, tls)).await;
        let ended = ended.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let handshake = examine::handshake(ended);
        report.tell(&examine::tls(check, &address.to_string(), &handshake))?;
        handshakes.push(handshake);
    }
    match examine::clock(&handshakes) {
        Some(finding) => report.tell(&finding),
        None => Ok(()),
    }
}

async fn resolve(address: &HostPort) -> Result<Vec<SocketAddr>, Finding> {
    let found = lookup_host((address.host(), address.port())).await;
    found.map(Iterator::collect).map_err(|error| {
        let detail = format!("{} is not found: {error}", address.host());
        Finding::fail("dns", detail, "check the name in the profile, and this machine's DNS")
    })
}

async fn connect(address: &HostPort, proxies: &Proxies) -> Result<TcpStream, Finding> {
    dial(address, proxies).await.map_err(|error| {
        Finding::fail(
            "network",
            error.to_string(),
            "check the network, and the address in the profile",
        )
    })
}

async fn handshake(socket: TcpStream, name: String, tls: Arc<rustls::ClientConfig>) -> io::Result<()> {
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    TlsConnector::from(tls).connect(name, socket).await.map(drop)
}

/// The session with a broker, and whether a server answers.
async fn control(
    profile: &Profile,
    tls: Arc<rustls::ClientConfig>,
    patience: Span,
    report: &mut Report,
) -> Result<(), Error> {
    let mut control = Control::start(profile, tls);
    let connected = timeout(patience.duration(), control.connected()).await;
    let finding = match &connected {
        Ok(Ok(())) => Finding::ok("subscription", "the broker takes this user, and answers can come"),
        Ok(Err(down @ (Down::Certificate { .. } | Down::NotEnrolled { .. }))) => Finding::fail(
            "subscription",
            down.to_string(),
            "check ca, cert and key in the profile, and ask your administrator whether you are enrolled, and not revoked",
        ),
        Ok(Err(down)) => Finding::fail(
            "subscription",
            down.to_string(),
            "check brokers, user and cert in the profile",
        ),
        Err(_) => Finding::fail(
            "subscription",
            format!("no session with the broker within {patience}"),
            "check the network",
        ),
    };
    report.tell(&finding)?;
    if finding.status == Status::Ok {
        let start = Instant::now();
        let mut ask = control.ask(Operation::List, patience);
        let finding = match control.carry(&mut ask, |_, _| {}).await {
            Ok(_) => Finding::ok(
                "server",
                format!("a server answered within {} ms", start.elapsed().as_millis()),
            ),
            Err(failure) if failure.kind == FailureKind::Deadline => Finding::fail(
                "server",
                format!("no server answered within {patience}"),
                "try again, and tell your administrator if it goes on",
            ),
            Err(failure) => Finding::of_error("server", failure.message()),
        };
        report.tell(&finding)?;
    }
    control.leave().await;
    Ok(())
}

/// The programs of this machine.
fn system(report: &mut Report) -> Result<(), Error> {
    match ssh::said() {
        Ok(said) => report.tell(&examine::ssh_version(&said))?,
        Err(error) => {
            let detail = format!("ssh cannot be run: {error}");
            return report.tell(&Finding::fail("ssh", detail, "install the package openssh-client"));
        }
    }
    let options = Command::new("ssh")
        .args(["-G", "doctor.rssh"])
        .stdin(Stdio::null())
        .output();
    let options = options.map(|options| options.stdout).unwrap_or_default();
    report.tell(&examine::ssh_config(&String::from_utf8_lossy(&options)))
}
