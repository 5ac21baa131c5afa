//! What the load balancer takes: to check a signed name, and to learn of a server that comes or goes.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rssh_proto::id::ServerId;
use rssh_proto::name::{NameKey, ProxyDomain, SignedName};
use rssh_routerd::desired::Map;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::byhand;
use super::results::{Figure, Reach};
use super::rig::{Rig, USER};
use super::stats::{median, quantile, spread};
use crate::component::Component;
use crate::parts::router;
use crate::place::{DOMAIN, LB, LB_BEARER, LB_DEVICES, LB_USERS, Place, server_address, socket};
use crate::ready::Ready;
use crate::{Action, Lab, files, process, setup};

/// How many servers the maps have.
const SERVERS: usize = 1000;
/// Connections are timed in batches; each batch has a p99 of its own.
const BATCHES: usize = 20;
const BATCH: usize = 200;
/// What is added to the ports of the lab's HAProxy for the one that is measured.
const PORTS: u16 = 9000;
/// The users' door without any check of names.
pub const PLAIN: u16 = 9001;
/// A door of devices that leads to the person's own sshd.
pub const TO_SSHD: u16 = 9002;
/// Where what lies behind the doors listens: outside the ports that servers lease.
const BEHIND: u16 = 19_999;
/// How often a server goes and comes.
const GOES: usize = 8;

/// Measures the check of a signed name among a thousand servers, against the same door without it.
///
/// # Errors
/// When a connection fails.
pub fn measure_lookup(rig: &mut Rig) -> Result<Vec<Figure>> {
    let lab = &rig.lab;
    let behind = SocketAddr::new(server_address(1).into(), BEHIND);
    let listener = lab.networks().inside(&Place::Core, || TcpListener::bind(behind))??;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Whoever went away already is not served.
            stream.write_all(b"!").ok();
        }
    });
    open_doors(lab, behind)?;
    let times = time_doors(lab);
    close_doors(lab)?;
    let (signed, plain) = times?;

    let p99 = |batches: &[Vec<f64>]| -> Vec<f64> { batches.iter().map(|batch| quantile(batch, 0.99)).collect() };
    let added: Vec<f64> = p99(&signed).iter().zip(p99(&plain)).map(|(a, b)| a - b).collect();
    let middle = |batches: &[Vec<f64>]| median(&batches.concat());
    Ok(vec![Figure {
        key: "route_lookup_us",
        reach: Reach::AtMost(500.0),
        value: Some(median(&added)),
        baseline: Some(median(&p99(&plain))),
        n: BATCHES * BATCH,
        spread: Some(spread(&added)),
        note: format!(
            "us added to the p99 of connect, TLS with client certificate and the first byte, by the whole check among \
             {SERVERS} servers; medians {:.0} us with and {:.0} us without",
            middle(&signed),
            middle(&plain)
        ),
    }])
}

/// Starts an HAProxy with the lab's doors on other ports and a thousand servers, and with a door that checks no name and
/// leads to one place, and with one for devices that leads to the person's own sshd.
///
/// # Errors
/// When it does not come up.
pub fn open_doors(lab: &Lab, behind: SocketAddr) -> Result<()> {
    let home = lab.dir().join("router");
    let rendered = files::read(&home.join("haproxy/haproxy.cfg"))?;
    files::make_dir(&home.join("bench/maps"))?;
    files::write(&home.join("bench/haproxy.cfg"), config(&rendered, behind)?)?;
    for map in Map::ALL {
        let rows = files::read(&home.join("haproxy/maps").join(map.file()))?;
        let rows = match map {
            Map::Addresses | Map::KeysCurrent => rows.clone() + &more_rows(&rows)?,
            _ => rows,
        };
        files::write(&home.join("bench/maps").join(map.file()), rows)?;
    }
    let config = lab.dir().inside("router/bench/haproxy.cfg");
    let haproxy = Component::new("haproxy-bench", Place::Core, &["haproxy", "-W", "-f", &config])
        .ready(Ready::Tcp(SocketAddr::new(LB.into(), PLAIN)));
    setup::start(lab.dir(), lab.programs(), &[haproxy])
}

/// Ends it.
///
/// # Errors
/// When it does not end.
pub fn close_doors(lab: &Lab) -> Result<()> {
    lab.ctl(Action::Term, "haproxy-bench")
}

/// The lab's HAProxy once more, on other ports, with files of its own, without limits on new connections, and with a door
/// that checks no name.
fn config(rendered: &str, behind: SocketAddr) -> Result<String> {
    // One client asks more often than any may.
    let unlimited = rendered
        .lines()
        .filter(|line| !line.contains("rate-limit sessions") && !line.contains("sc2_conn_rate"));
    let mut text = unlimited.collect::<Vec<_>>().join("\n") + "\n";
    // Nobody takes the audit trail's lines here, and HAProxy 2.6 would try to hand them over without a pause.
    text = text.replace("    log ring@audit ", "    # log ring@audit ");
    if let Some((before, ring)) = text.split_once("\nring audit\n") {
        let (_, after) = ring
            .split_once("\n\n")
            .context("the configuration's ring does not end")?;
        text = format!("{before}\n{after}");
    }
    text = text.replace("/router/haproxy/", "/router/bench/");
    for port in [LB_DEVICES, LB_BEARER] {
        text = text.replace(&socket(LB, port), &socket(LB, port + PORTS));
    }
    let users = socket(LB, LB_USERS);
    let bind = rendered
        .lines()
        .find(|line| line.trim_start().starts_with("bind") && line.contains(&users))
        .context("the configuration has no door for users")?;
    text = text.replace(&format!("{users} "), &format!("{} ", socket(LB, LB_USERS + PORTS)));
    let bind = bind.replace(&users, &socket(LB, PLAIN));
    let _ = write!(
        text,
        "\nfrontend plain from base\n{bind}\n    default_backend plain\n\nbackend plain from base\n    server plain {behind}\n\
         \nfrontend to_sshd from base\n    bind {}\n    default_backend by_hand\n\nbackend by_hand from base\n    server by_hand {}\n",
        socket(LB, TO_SSHD),
        socket(LB, byhand::PORTS[0]),
    );
    Ok(text)
}

/// Rows like the first one, for servers that are not there.
fn more_rows(rows: &str) -> Result<String> {
    let (_, value) = rows
        .lines()
        .next()
        .and_then(|row| row.split_once(' '))
        .context("the map is empty")?;
    let have = rows.lines().count();
    Ok((have..SERVERS).map(|n| format!("x{n} {value}\n")).collect())
}

type Batches = Vec<Vec<f64>>;

fn time_doors(lab: &Lab) -> Result<(Batches, Batches)> {
    let maps = lab.dir().join("router/haproxy/maps/keys-current.map");
    let keys = files::read(&maps)?;
    let key: NameKey = keys
        .lines()
        .find_map(|row| row.strip_prefix("s1 "))
        .context("s1 has no name key")?
        .parse()?;
    let server: ServerId = "s1".parse()?;
    let domain: ProxyDomain = DOMAIN.parse()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let name = SignedName::sign(&key, &server, BEHIND, now + 600, Some(&USER.parse()?)).host(&domain);
    let tls = tls(&lab.dir().join(format!("users/{USER}/home/.config/rssh")))?;
    let name = ServerName::try_from(name)?;
    let connect = |port: u16| -> Result<f64> {
        let begin = Instant::now();
        let mut socket = TcpStream::connect((LB, port))?;
        socket.set_nodelay(true)?;
        let mut session = ClientConnection::new(tls.clone(), name.clone())?;
        let mut byte = [0];
        rustls::Stream::new(&mut session, &mut socket)
            .read_exact(&mut byte)
            .context("HAProxy closed the connection")?;
        Ok(begin.elapsed().as_secs_f64() * 1e6)
    };
    let (mut signed, mut plain) = (Vec::new(), Vec::new());
    lab.networks().inside(&Place::Core, || -> Result<()> {
        for _ in 0..BATCHES {
            let (mut with, mut without) = (Vec::new(), Vec::new());
            for _ in 0..BATCH {
                with.push(connect(LB_USERS + PORTS)?);
                without.push(connect(PLAIN)?);
            }
            signed.push(with);
            plain.push(without);
        }
        Ok(())
    })??;
    Ok((signed, plain))
}

/// The user's side of TLS, from the files of a profile.
///
/// # Errors
/// When one of them cannot be read.
pub fn tls(dir: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(dir.join("servers-ca.pem"))? {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_file_iter(dir.join("user.pem"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(dir.join("user.key"))?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// Measures how soon HAProxy sends devices to a server that has come, and to one that has gone no more.
///
/// # Errors
/// When HAProxy does not learn of it.
pub fn measure_changes(rig: &mut Rig) -> Result<Vec<Figure>> {
    let lab = &rig.lab;
    let (mut ups, mut downs) = (Vec::new(), Vec::new());
    // HAProxy counts addresses; both servers have as many.
    let all = router::servers_up(lab.dir())?;
    for _ in 0..GOES {
        let begin = Instant::now();
        lab.ctl(Action::Kill, "serverd-2")?;
        lab.ctl(Action::Kill, "sshd-2")?;
        downs.push(until_up(lab, all / 2, begin)?);
        lab.ctl(Action::Start, "sshd-2")?;
        // It answers health checks once it has registered.
        lab.ctl(Action::Start, "serverd-2")?;
        ups.push(until_up(lab, all, Instant::now())?);
    }
    let p99 = |values: &[f64]| quantile(values, 0.99);
    let figure = |key, limit, values: &[f64], note| Figure {
        value: Some(p99(values)),
        ..Figure::amount(key, Reach::AtMost(limit), values, note)
    };
    Ok(vec![
        figure(
            "route_up_ms",
            100.0,
            &ups,
            format!(
                "ms, p99, from a server's first healthy answer until HAProxy sends devices there; median {:.0}",
                median(&ups)
            ),
        ),
        figure(
            "route_down_ms",
            1000.0,
            &downs,
            format!(
                "ms, p99, from the first kill of a server's serverd and sshd until HAProxy sends nobody there; median {:.0}",
                median(&downs)
            ),
        ),
    ])
}

/// Milliseconds since `begin` until HAProxy counts that many addresses of servers up.
fn until_up(lab: &Lab, servers: usize, begin: Instant) -> Result<f64> {
    let limit = Duration::from_secs(20);
    let seen = process::wait(limit, || router::servers_up(lab.dir()).is_ok_and(|up| up == servers));
    ensure!(
        seen,
        "HAProxy does not see {servers} addresses up after {} s",
        limit.as_secs()
    );
    Ok(begin.elapsed().as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_haproxy_shares_no_port_and_no_file_with_the_labs() {
        let rendered = "stats socket /x/router/haproxy/admin.sock\n    log ring@audit raw\n\nring audit\n    size 4\n    \
                        server routerd unix@/x/router/haproxy/audit.sock\n\ndefaults base\n    bind 198.51.100.1:2222\n    \
                        bind 198.51.100.1:443 ssl crt /x/router/haproxy.pem\n    bind 198.51.100.1:8444 ssl\n";
        let text = config(rendered, SocketAddr::new(server_address(1).into(), BEHIND)).unwrap();
        assert!(!text.contains("/router/haproxy/"), "{text}");
        assert!(
            !text.contains("audit.sock") && text.contains("\ndefaults base\n"),
            "{text}"
        );
        for port in ["2222", "8444", "443"] {
            assert!(
                !text.contains(&format!(".1:{port}\n")) && !text.contains(&format!(".1:{port} ")),
                "{text}"
            );
        }
        assert!(
            text.contains("198.51.100.1:9443 ssl crt /x/router/haproxy.pem"),
            "{text}"
        );
        assert!(
            text.contains("198.51.100.1:9001 ssl crt /x/router/haproxy.pem"),
            "{text}"
        );
    }

    #[test]
    fn a_map_grows_to_a_thousand_servers() {
        let rows = "s1 127.0.1.1\ns2 127.0.1.2\n";
        let all = rows.to_owned() + &more_rows(rows).unwrap();
        assert_eq!(all.lines().count(), SERVERS);
        assert!(more_rows("").is_err());
    }
}
