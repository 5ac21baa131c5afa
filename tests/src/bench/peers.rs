//! What people pick instead: autossh, rathole and bore, on the same device, between the same ends.
//!
//! They get what favours them: tunnels that are configured beforehand, servers that are reached without a load balancer,
//! and nobody who asks whether they may. rathole encrypts (noise); bore cannot, and carries everything in the clear.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::byhand::{self, Client, FORWARD};
use super::crowd::at_once;
use super::memory;
use super::results::{Figure, Reach, number};
use super::rig::{BUSY, IDLE, Rig, STREAM_PORT};
use super::stats::Pairs;
use super::{connection, stream};
use crate::component::{Component, Record};
use crate::parts::server;
use crate::place::{LB, Place, device_name, server_address, socket};
use crate::process::Process;
use crate::ready::Ready;
use crate::{Lab, files, process, run, setup};

/// How often each opens, and how often it carries a stream.
const OPENS: usize = 5;
const STREAMS: usize = 2;
/// What a stream carries here, in bytes.
const BYTES: u64 = 256 << 20;
/// How many tunnels more are opened to see what one takes.
const MORE: u16 = 20;
/// How long the device has no link: every keep-alive is long over.
const CUT: Duration = Duration::from_secs(45);
/// How long recovery may take.
const RECOVERS: Duration = Duration::from_secs(120);
/// How long an open may take.
const OPENS_WITHIN: Duration = Duration::from_secs(30);
/// Where rathole's server listens, where bore's does (it has no say in that), and where their tunnels do.
const RATHOLE: u16 = 2400;
const BORE: u16 = 7835;
const TUNNELS: Ipv4Addr = Ipv4Addr::new(127, 0, 200, 2);
const FIRST: u16 = 21_000;
/// The tunnel to the port where streams are taken.
const TO_STREAM: u16 = 20_900;
const KIB: f64 = 1024.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Autossh,
    Rathole,
    Bore,
}

impl Peer {
    const ALL: [Self; 3] = [Self::Autossh, Self::Rathole, Self::Bore];

    const fn name(self) -> &'static str {
        match self {
            Self::Autossh => "autossh",
            Self::Rathole => "rathole",
            Self::Bore => "bore",
        }
    }

    /// Where its `n`-th tunnel listens.
    const fn tunnel(self, n: u16) -> (Ipv4Addr, u16) {
        match self {
            Self::Autossh => FORWARD,
            Self::Rathole => (TUNNELS, FIRST + n),
            Self::Bore => (TUNNELS, FIRST + 1000 + n),
        }
    }

    /// The keys of what is measured of it: the open, the memory of its client, that of a tunnel more, throughput, recovery.
    const fn keys(self) -> [&'static str; 5] {
        match self {
            Self::Autossh => [
                "peer_autossh_open",
                "peer_autossh_client_mib",
                "peer_autossh_tunnel_kib",
                "peer_autossh_throughput",
                "peer_autossh_recovery_s",
            ],
            Self::Rathole => [
                "peer_rathole_open",
                "peer_rathole_client_mib",
                "peer_rathole_tunnel_kib",
                "peer_rathole_throughput",
                "peer_rathole_recovery_s",
            ],
            Self::Bore => [
                "peer_bore_open",
                "peer_bore_client_mib",
                "peer_bore_tunnel_kib",
                "peer_bore_throughput",
                "peer_bore_recovery_s",
            ],
        }
    }

    /// Its program, when it is installed.
    fn program(self, lab: &Lab) -> Option<PathBuf> {
        let path = match self {
            Self::Autossh => PathBuf::from("/usr/bin/autossh"),
            _ => lab.programs().dir().parent()?.join("tools/bin").join(self.name()),
        };
        path.exists().then_some(path)
    }
}

/// Measures each peer that is installed; one that is not, or that fails, is reported.
///
/// # Errors
/// When our own side fails.
pub fn measure(rig: &mut Rig) -> Result<Vec<Figure>> {
    stream::serve(&rig.lab)?;
    let mut figures = Vec::new();
    let mut there = Vec::new();
    for peer in Peer::ALL {
        match prepare(rig, peer) {
            Ok(()) => there.push(peer),
            Err(error) => figures.extend(
                peer.keys()
                    .map(|key| Figure::missing(key, Reach::None, format!("{error:#}"))),
            ),
        }
    }
    // Ours, as often.
    let mut ours = Vec::new();
    for round in 0..=OPENS {
        rig.settle()?;
        let took = rig.open()?.took();
        if round > 0 {
            ours.push(took.as_secs_f64() * 1000.0);
        }
        if round < OPENS {
            rig.close()?;
        }
    }
    let agent = Record::read(rig.lab.dir(), &format!("agentd-{BUSY}")).context("the device has no agent")?;
    let one_tunnel = memory::pss_of(&agent.members(&rig.lab.networks().inodes()));
    rig.close()?;
    let idle = Record::read(rig.lab.dir(), &format!("agentd-{IDLE}")).context("the device has no agent")?;
    let own = Own {
        opens: ours,
        client: [memory::pss(idle.process)?, one_tunnel],
    };
    for &peer in &there {
        let mut rows = match one(rig, peer, &own) {
            Ok(rows) => rows,
            Err(error) => {
                eprintln!("error: {}: {error:#}", peer.name());
                // Whichever of ours is left.
                rig.close().ok();
                let [open, client, tunnel, throughput, _] = peer.keys();
                [open, client, tunnel, throughput]
                    .map(|key| Figure::missing(key, Reach::None, format!("{error:#}")))
                    .into()
            }
        };
        rig.device.end()?;
        figures.append(&mut rows);
    }
    figures.extend(recoveries(rig, &there)?);
    rig.device.end()?;
    Ok(figures)
}

/// What is compared with each peer.
struct Own {
    /// Milliseconds of opens.
    opens: Vec<f64>,
    /// Bytes of PSS of the agent as devices get it, idle, and of the other with its ssh and a tunnel.
    client: [f64; 2],
}

/// Starts a peer's server.
fn prepare(rig: &Rig, peer: Peer) -> Result<()> {
    let lab = &rig.lab;
    let program = peer
        .program(lab)
        .with_context(|| format!("{} is not installed; run: make bench installs it", peer.name()))?;
    let program = program.to_string_lossy();
    let dir = format!("operator/{}", peer.name());
    files::make_dir(&lab.dir().join(&dir))?;
    let component = match peer {
        // The hand-run ssh's sshd is there.
        Peer::Autossh => return Ok(()),
        Peer::Rathole => {
            let keys = run::checked(Command::new(&*program).arg("--genkey"))?;
            let key = |name: &str| -> Result<String> {
                let mut lines = keys.lines().skip_while(|line| !line.starts_with(name)).skip(1);
                Ok(lines.next().context("rathole prints no key")?.trim().to_owned())
            };
            let (private, public) = (key("Private")?, key("Public")?);
            let server = lab.dir().join(&dir).join("server.toml");
            files::write_secret(&server, rathole_server(&private))?;
            for (name, tunnels) in [("one", 1), ("more", 1 + MORE)] {
                let client = lab.dir().join(&dir).join(format!("{name}.toml"));
                files::write_secret(&client, rathole_client(&public, tunnels))?;
            }
            let config = lab.dir().inside(format_args!("{dir}/server.toml"));
            Component::new("rathole", Place::Core, &[&program, "--server", &config])
                .ready(Ready::Tcp(SocketAddr::new(LB.into(), RATHOLE)))
        }
        Peer::Bore => {
            let (at, tunnels) = (LB.to_string(), TUNNELS.to_string());
            let argv = [
                &*program,
                "server",
                "--bind-addr",
                &at,
                "--bind-tunnels",
                &tunnels,
                "--min-port",
                "1024",
            ];
            Component::new("bore", Place::Core, &argv).ready(Ready::Tcp(SocketAddr::new(LB.into(), BORE)))
        }
    };
    setup::start(lab.dir(), lab.programs(), &[component])
}

/// The tunnels that rathole has: to ssh, and the one to the port where streams are taken.
fn rathole_services(tunnels: u16) -> impl Iterator<Item = (String, u16, u16)> {
    let stream = ("stream".to_owned(), TO_STREAM, STREAM_PORT);
    (0..tunnels).map(|n| (format!("ssh{n}"), FIRST + n, 22)).chain([stream])
}

/// No secret of anybody's: it is the lab's, in a namespace of its own.
const TOKEN: &str = "of-the-bench-only";

fn rathole_server(private: &str) -> String {
    let services: String = rathole_services(1 + MORE)
        .map(|(name, port, _)| {
            format!(
                "[server.services.{name}]\ntoken = \"{TOKEN}\"\nbind_addr = \"{}\"\n",
                socket(TUNNELS, port)
            )
        })
        .collect();
    format!(
        "[server]\nbind_addr = \"{}\"\n[server.transport]\ntype = \"noise\"\n[server.transport.noise]\n\
         local_private_key = \"{private}\"\n{services}",
        socket(LB, RATHOLE)
    )
}

fn rathole_client(public: &str, tunnels: u16) -> String {
    let services: String = rathole_services(tunnels)
        .map(|(name, _, to)| {
            format!("[client.services.{name}]\ntoken = \"{TOKEN}\"\nlocal_addr = \"127.0.0.1:{to}\"\n")
        })
        .collect();
    format!(
        "[client]\nremote_addr = \"{}\"\n[client.transport]\ntype = \"noise\"\n[client.transport.noise]\n\
         remote_public_key = \"{public}\"\n{services}",
        socket(LB, RATHOLE)
    )
}

/// Opens a peer's `n`-th tunnel, for rathole all up to that; returns once it is told to, not when it is there.
fn begin(rig: &mut Rig, peer: Peer, n: u16) -> Result<()> {
    let program = peer.program(&rig.lab).context("it is not installed")?;
    let program = program.to_string_lossy().into_owned();
    let mut argv: Vec<String> = match peer {
        Peer::Autossh => {
            let mut argv = rig.by_hand.command(BUSY, Client::Default, &rig.lab, "localhost:22");
            // What its manual tells those who want it to notice a dead connection; its own monitor needs a second port.
            let options = ["-M", "0", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"];
            argv.splice(0..1, [program.as_str()].into_iter().chain(options).map(str::to_owned));
            argv
        }
        Peer::Rathole => {
            let name = if n == 0 { "one" } else { "more" };
            let config = rig.lab.dir().inside(format_args!("operator/rathole/{name}.toml"));
            vec![program, "--client".to_owned(), config]
        }
        Peer::Bore => bore(&program, 22, peer.tunnel(n).1),
    };
    if peer != Peer::Autossh {
        argv = background(&argv);
    }
    rig.device.succeed(&argv).map(drop)
}

fn bore(program: &str, from: u16, to: u16) -> Vec<String> {
    let (from, to, at) = (from.to_string(), to.to_string(), LB.to_string());
    [program, "local", &from, "--to", &at, "--port", &to]
        .map(str::to_owned)
        .into()
}

/// bore's tunnel to the port where streams are taken.
fn stream_by_bore(rig: &Rig) -> Result<Vec<String>> {
    let program = Peer::Bore.program(&rig.lab).context("it is not installed")?;
    Ok(background(&bore(&program.to_string_lossy(), STREAM_PORT, TO_STREAM)))
}

/// A command that leaves the program in the background.
fn background(argv: &[String]) -> Vec<String> {
    let quoted: Vec<String> = argv.iter().map(|word| format!("'{word}'")).collect();
    let script = format!("{} >/dev/null 2>&1 &", quoted.join(" "));
    ["sh", "-c", &script].map(str::to_owned).into()
}

/// Waits until a tunnel shows the device's banner; says whether it does in time.
fn shows_banner(lab: &Lab, at: (Ipv4Addr, u16), limit: Duration) -> Result<bool> {
    lab.networks()
        .inside(&Place::Core, || process::wait(limit, || banner(at).is_ok()))
}

fn banner(at: (Ipv4Addr, u16)) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&at.into(), Duration::from_secs(1))?;
    // One that was taken too early, and hangs, is not to be what is measured.
    stream.set_read_timeout(Some(Duration::from_millis(250)))?;
    let mut first = [0; 4];
    stream.read_exact(&mut first)?;
    ensure!(first == *b"SSH-", "something else answers");
    Ok(())
}

/// The processes of a peer on the device, and on the servers' side.
fn processes(lab: &Lab, peer: Peer) -> [Vec<Process>; 2] {
    [Place::Device(BUSY), Place::Core].map(|place| {
        let network = process::inode(&lab.networks().file(&place)).unwrap_or(0);
        let mut found = process::in_networks(&[network]);
        found.retain(|process| {
            let line = process.command_line();
            let first = line.split(' ').next().unwrap_or_default();
            match peer {
                Peer::Autossh => {
                    first.ends_with("autossh") || (first.ends_with("ssh") && line.contains("ServerAliveCountMax=3"))
                }
                _ => first.ends_with(&format!("/{}", peer.name())),
            }
        });
        found
    })
}

/// A peer's open, memory and throughput.
fn one(rig: &mut Rig, peer: Peer, own: &Own) -> Result<Vec<Figure>> {
    let [open, client, tunnel, throughput, _] = peer.keys();
    let mut opens = Vec::new();
    for round in 0..=OPENS {
        rig.device.end()?;
        rig.settle()?;
        let since = Instant::now();
        begin(rig, peer, 0)?;
        ensure!(
            shows_banner(&rig.lab, peer.tunnel(0), OPENS_WITHIN)?,
            "{} opens no tunnel within {} s",
            peer.name(),
            OPENS_WITHIN.as_secs()
        );
        if round > 0 {
            opens.push(since.elapsed().as_secs_f64() * 1000.0);
        }
    }
    let [device, core] = processes(&rig.lab, peer).map(|processes| memory::pss_of(&processes));
    let pairs = Pairs {
        ours: own.opens.clone(),
        theirs: opens,
    };
    let mut figures = vec![
        Figure::ratio(
            open,
            Reach::None,
            &pairs,
            "ms",
            "a cold rssh open until proven through the load balancer, against the start of its client, configured beforehand, \
             until the device's banner comes through its tunnel",
        ),
        Figure::amount(
            client,
            Reach::None,
            &[device / KIB / KIB],
            format!(
                "MiB of PSS of its client on the device with one tunnel; beside it our agent with one tunnel and its ssh; idle, \
                 as devices get it, the agent takes {}",
                number(own.client[0] / KIB / KIB)
            ),
        )
        .against(own.client[1] / KIB / KIB),
    ];
    match peer {
        // A tunnel more is the same once more.
        Peer::Autossh => figures.push(Figure::amount(
            tunnel,
            Reach::None,
            &[device / KIB],
            "KiB of PSS on the device for a tunnel more, which is an autossh and an ssh more",
        )),
        Peer::Rathole | Peer::Bore => {
            if peer == Peer::Rathole {
                rig.device.end()?;
                begin(rig, peer, MORE)?;
            } else {
                for n in 1..=MORE {
                    begin(rig, peer, n)?;
                }
            }
            ensure!(
                shows_banner(&rig.lab, peer.tunnel(MORE), OPENS_WITHIN)?,
                "{} opens no more tunnels",
                peer.name()
            );
            let [device_then, core_then] = processes(&rig.lab, peer).map(|processes| memory::pss_of(&processes));
            let each = |then: f64, now: f64| (then - now) / f64::from(MORE) / KIB;
            figures.push(Figure::amount(
                tunnel,
                Reach::None,
                &[each(device_then, device)],
                format!(
                    "KiB of PSS on the device for each of {MORE} tunnels more; {} on the server",
                    number(each(core_then, core))
                ),
            ));
        }
    }
    figures.push(carried(rig, peer, throughput).unwrap_or_else(|error| {
        // Whichever of ours is left.
        rig.close().ok();
        Figure::missing(throughput, Reach::None, format!("{error:#}"))
    }));
    Ok(figures)
}

/// How fast a stream goes through a peer's tunnel, and through ours.
fn carried(rig: &mut Rig, peer: Peer, key: &'static str) -> Result<Figure> {
    let how = match peer {
        // It is what the other figure compares with.
        Peer::Autossh => {
            return Ok(Figure::missing(
                key,
                Reach::None,
                "is that of ssh -R: throughput_vs_ssh",
            ));
        }
        Peer::Rathole => "encrypted by noise (ChaChaPoly)",
        Peer::Bore => "in the clear: it has no encryption",
    };
    let mut pairs = Pairs::default();
    for _ in 0..STREAMS {
        rig.device.end()?;
        rig.settle()?;
        pairs.ours.push(stream::carry(connection::ours(&rig.lab)?, BYTES)?);
        rig.close()?;
        begin(rig, peer, 0)?;
        if peer == Peer::Bore {
            let argv = stream_by_bore(rig)?;
            rig.device.succeed(&argv)?;
        }
        ensure!(
            shows_banner(&rig.lab, peer.tunnel(0), OPENS_WITHIN)?,
            "{} is not back",
            peer.name()
        );
        // The tunnel to that port may come a moment later, and drop whoever is too early.
        let limit = Instant::now() + OPENS_WITHIN;
        let carried = loop {
            let carried =
                connection::tcp(&rig.lab, (TUNNELS, TO_STREAM)).and_then(|connection| stream::carry(connection, BYTES));
            if carried.is_ok() || Instant::now() > limit {
                break carried?;
            }
            if peer == Peer::Bore {
                // Its server may still have had the port for the client before, and then this one has ended.
                thread::sleep(Duration::from_millis(250));
                let argv = stream_by_bore(rig)?;
                rig.device.succeed(&argv)?;
            }
        };
        pairs.theirs.push(carried);
    }
    rig.device.end()?;
    Ok(Figure::ratio(
        key,
        Reach::None,
        &pairs,
        "MiB/s",
        &format!(
            "{} MiB from the user to the device, ours with TLS and ssh; {how}",
            BYTES >> 20
        ),
    ))
}

/// How long each takes to be back after the device was without a link, all in the same cut.
fn recoveries(rig: &mut Rig, peers: &[Peer]) -> Result<Vec<Figure>> {
    rig.device.end()?;
    rig.settle()?;
    rig.open()?;
    for &peer in peers {
        begin(rig, peer, 0)?;
        ensure!(
            shows_banner(&rig.lab, peer.tunnel(0), OPENS_WITHIN)?,
            "{} is not there",
            peer.name()
        );
    }
    let link = |state: &str| {
        let device = format!("d{BUSY}");
        rig.lab.networks().inside(&Place::Site, || {
            run::checked(Command::new("ip").args(["link", "set", &device, state]))
        })?
    };
    link("down")?;
    thread::sleep(CUT);
    let since = Instant::now();
    link("up")?;
    let (lab, times) = (&rig.lab, std::sync::Mutex::new(Vec::new()));
    at_once([None].into_iter().chain(peers.iter().copied().map(Some)), |who| {
        let back = match who {
            None => process::wait(RECOVERS, || {
                thread::sleep(Duration::from_millis(50));
                ours_shows_banner(lab)
            }),
            Some(peer) => shows_banner(lab, peer.tunnel(0), RECOVERS)?,
        };
        let took = back.then(|| since.elapsed().as_secs_f64());
        if let Ok(mut times) = times.lock() {
            times.push((who, took));
        }
        Ok(())
    })?;
    let times = times.into_inner().unwrap_or_default();
    let of = |who: Option<Peer>| times.iter().find(|(peer, _)| *peer == who).and_then(|(_, took)| *took);
    let own = of(None);
    let how = format!(
        "s from when the link of {} is there again after {} s until the banner comes through; beside it ours",
        device_name(BUSY),
        CUT.as_secs()
    );
    let rows = peers.iter().map(|&peer| {
        let [.., key] = peer.keys();
        let row = match of(Some(peer)) {
            Some(took) => Figure::amount(key, Reach::None, &[took], how.clone()),
            None => Figure::missing(
                key,
                Reach::None,
                format!("not back within {} s; {how}", RECOVERS.as_secs()),
            ),
        };
        match own {
            Some(own) => row.against(own),
            None => row,
        }
    });
    let rows = rows.collect();
    rig.device.end()?;
    // The sessions that autossh lost are still there for the sshd that it used.
    if let Some(sshd) = Record::read(rig.lab.dir(), byhand::SSHDS[0]) {
        let sessions = sshd.members(&rig.lab.networks().inodes());
        for session in sessions.iter().filter(|session| **session != sshd.process) {
            session.signal(Signal::SIGKILL)?;
        }
    }
    rig.close()?;
    Ok(rows)
}

/// Whether our tunnel shows the device's banner, wherever it is now.
fn ours_shows_banner(lab: &Lab) -> bool {
    let Ok(row) = lab.psql("SELECT server_id, port FROM live_leases") else {
        return false;
    };
    let at = row.split_once('|').and_then(|(id, port)| {
        let n = (1..=2).find(|n| server::id(*n) == id)?;
        Some((server_address(n), port.parse().ok()?))
    });
    let shows = |at| lab.networks().inside(&Place::Core, || banner(at).is_ok());
    at.is_some_and(|at| shows(at).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tunnel_of_ratholes_client_is_one_of_its_server() {
        let (server, client) = (rathole_server("private"), rathole_client("public", 1 + MORE));
        for (name, port, _) in rathole_services(1 + MORE) {
            assert!(server.contains(&format!("[server.services.{name}]")), "{server}");
            assert!(server.contains(&socket(TUNNELS, port)), "{server}");
            assert!(client.contains(&format!("[client.services.{name}]")), "{client}");
        }
        assert!(!client.contains("private") && !server.contains("public"));
    }

    #[test]
    fn no_two_peers_have_a_tunnel_in_common() {
        let mut all: Vec<_> = Peer::ALL.iter().map(|peer| peer.tunnel(0)).collect();
        all.extend((1..=MORE).flat_map(|n| [Peer::Rathole.tunnel(n), Peer::Bore.tunnel(n)]));
        all.push((TUNNELS, TO_STREAM));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
