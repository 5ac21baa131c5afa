//! The peers' programs: how each is configured and started, and which processes are its own.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rssh_serverd::sock_diag;

use super::super::byhand::{Client, FORWARD};
use super::super::rig::{BUSY, Rig, STREAM_PORT};
use crate::component::Component;
use crate::place::{LB, Place, socket};
use crate::process::Process;
use crate::ready::Ready;
use crate::{Lab, files, process, run, setup};

/// How many tunnels more are opened to see what one takes.
pub(super) const MORE: u16 = 20;
/// How long an open may take.
pub(super) const OPENS_WITHIN: Duration = Duration::from_secs(30);
/// Where rathole's server listens, where bore's does (it has no say in that), and where their tunnels do.
const RATHOLE: u16 = 2400;
const BORE: u16 = 7835;
const TUNNELS: Ipv4Addr = Ipv4Addr::new(127, 0, 200, 2);
const FIRST: u16 = 21_000;
/// The tunnel to the port where streams are taken.
pub(super) const TO_STREAM: (Ipv4Addr, u16) = (TUNNELS, 20_900);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Autossh,
    Rathole,
    Bore,
}

impl Peer {
    pub(super) const ALL: [Self; 3] = [Self::Autossh, Self::Rathole, Self::Bore];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Autossh => "autossh",
            Self::Rathole => "rathole",
            Self::Bore => "bore",
        }
    }

    /// Where its `n`-th tunnel listens.
    pub(super) const fn tunnel(self, n: u16) -> (Ipv4Addr, u16) {
        match self {
            Self::Autossh => FORWARD,
            Self::Rathole => (TUNNELS, FIRST + n),
            Self::Bore => (TUNNELS, FIRST + 1000 + n),
        }
    }

    /// The keys of what is measured of it: the open, the memory of its client before anyone connects and after, that of a
    /// tunnel more, throughput, recovery.
    pub(super) const fn keys(self) -> [&'static str; 6] {
        match self {
            Self::Autossh => [
                "peer_autossh_open",
                "peer_autossh_idle_mib",
                "peer_autossh_client_mib",
                "peer_autossh_tunnel_kib",
                "peer_autossh_throughput",
                "peer_autossh_recovery_s",
            ],
            Self::Rathole => [
                "peer_rathole_open",
                "peer_rathole_idle_mib",
                "peer_rathole_client_mib",
                "peer_rathole_tunnel_kib",
                "peer_rathole_throughput",
                "peer_rathole_recovery_s",
            ],
            Self::Bore => [
                "peer_bore_open",
                "peer_bore_idle_mib",
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

    /// Starts its server.
    pub(super) fn prepare(self, lab: &Lab) -> Result<()> {
        let program = self
            .program(lab)
            .with_context(|| format!("{} is not installed; run: make bench installs it", self.name()))?;
        let program = program.to_string_lossy();
        let dir = format!("operator/{}", self.name());
        files::make_dir(&lab.dir().join(&dir))?;
        let component = match self {
            // The hand-run ssh's sshd is there.
            Self::Autossh => return Ok(()),
            Self::Rathole => {
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
            Self::Bore => {
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

    /// Opens its `n`-th tunnel, for rathole all up to that; returns once it is told to, not when it is there.
    pub(super) fn begin(self, rig: &mut Rig, n: u16) -> Result<()> {
        let program = self.program(&rig.lab).context("it is not installed")?;
        let program = program.to_string_lossy().into_owned();
        let mut argv: Vec<String> = match self {
            Self::Autossh => {
                let mut argv = rig.by_hand.command(BUSY, Client::Default, &rig.lab, "localhost:22");
                // What its manual tells those who want it to notice a dead connection; its own monitor needs a second port.
                let options = ["-M", "0", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"];
                argv.splice(0..1, [program.as_str()].into_iter().chain(options).map(str::to_owned));
                argv
            }
            Self::Rathole => {
                let name = if n == 0 { "one" } else { "more" };
                let config = rig.lab.dir().inside(format_args!("operator/rathole/{name}.toml"));
                vec![program, "--client".to_owned(), config]
            }
            Self::Bore => bore(&program, 22, self.tunnel(n).1),
        };
        if self != Self::Autossh {
            argv = background(&argv);
        }
        rig.device.succeed(&argv).map(drop)
    }

    /// Waits until its `n`-th tunnel shows the device's banner.
    ///
    /// # Errors
    /// When that does not come to pass.
    pub(super) fn opened(self, lab: &Lab, n: u16) -> Result<()> {
        let shown = shows_banner(lab, self.tunnel(n), OPENS_WITHIN)?;
        self.in_time(shown)
    }

    /// Waits until somebody could connect to its first tunnel. Nobody does.
    ///
    /// # Errors
    /// When that does not come to pass.
    pub(super) fn listens(self, lab: &Lab) -> Result<()> {
        let at = SocketAddr::from(self.tunnel(0));
        let there = lab.networks().inside(&Place::Core, || {
            process::wait(OPENS_WITHIN, || {
                sock_diag::listener(at).is_ok_and(|found| found.is_some())
            })
        })?;
        self.in_time(there)
    }

    fn in_time(self, there: bool) -> Result<()> {
        ensure!(
            there,
            "{} opens no tunnel within {} s",
            self.name(),
            OPENS_WITHIN.as_secs()
        );
        Ok(())
    }

    /// Its processes on the device, and on the servers' side.
    pub(super) fn processes(self, lab: &Lab) -> [Vec<Process>; 2] {
        [Place::Device(BUSY), Place::Core].map(|place| {
            let network = process::inode(&lab.networks().file(&place)).unwrap_or(0);
            let mut found = process::in_networks(&[network]);
            found.retain(|process| {
                let line = process.command_line();
                let first = line.split(' ').next().unwrap_or_default();
                match self {
                    Self::Autossh => {
                        first.ends_with("autossh") || (first.ends_with("ssh") && line.contains("ServerAliveCountMax=3"))
                    }
                    _ => first.ends_with(&format!("/{}", self.name())),
                }
            });
            found
        })
    }
}

/// The tunnels that rathole has: to ssh, and the one to the port where streams are taken.
fn rathole_services(tunnels: u16) -> impl Iterator<Item = (String, u16, u16)> {
    let stream = ("stream".to_owned(), TO_STREAM.1, STREAM_PORT);
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

fn bore(program: &str, from: u16, to: u16) -> Vec<String> {
    let (from, to, at) = (from.to_string(), to.to_string(), LB.to_string());
    [program, "local", &from, "--to", &at, "--port", &to]
        .map(str::to_owned)
        .into()
}

/// bore's tunnel to the port where streams are taken.
pub(super) fn stream_by_bore(rig: &Rig) -> Result<Vec<String>> {
    let program = Peer::Bore.program(&rig.lab).context("it is not installed")?;
    Ok(background(&bore(&program.to_string_lossy(), STREAM_PORT, TO_STREAM.1)))
}

/// A command that leaves the program in the background.
fn background(argv: &[String]) -> Vec<String> {
    let quoted: Vec<String> = argv.iter().map(|word| format!("'{word}'")).collect();
    let script = format!("{} >/dev/null 2>&1 &", quoted.join(" "));
    ["sh", "-c", &script].map(str::to_owned).into()
}

/// Waits until a tunnel shows the device's banner; says whether it does in time.
pub(super) fn shows_banner(lab: &Lab, at: (Ipv4Addr, u16), limit: Duration) -> Result<bool> {
    lab.networks()
        .inside(&Place::Core, || process::wait(limit, || banner(at).is_ok()))
}

pub(super) fn banner(at: (Ipv4Addr, u16)) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&at.into(), Duration::from_secs(1))?;
    // One that was taken too early, and hangs, is not to be what is measured.
    stream.set_read_timeout(Some(Duration::from_millis(250)))?;
    let mut first = [0; 4];
    stream.read_exact(&mut first)?;
    ensure!(first == *b"SSH-", "something else answers");
    Ok(())
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
        all.push(TO_STREAM);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
