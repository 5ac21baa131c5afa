//! Looking at the whole lab again and again: leases by psql, listeners in the kernel's table, daemons in /proc.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::history::{Event, History, Lease, Listener, Rows, Seen};
use crate::Lab;
use crate::component::Record;
use crate::network::Networks;
use crate::place::{Place, server_address};

/// How often is looked.
pub const EVERY: Duration = Duration::from_millis(250);
/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// The ports that servers lease.
const LEASED: std::ops::RangeInclusive<u16> = 20_000..=29_999;

/// One line of JSON: [`Rows`].
const LOOK: &str = "SELECT json_build_object('leases', coalesce((SELECT json_agg(json_build_object(\
 'server', substr(server_id, 2)::int, 'port', port, 'tunnel', tunnel_id, 'epoch', epoch, 'session', session_pid)) \
 FROM leases WHERE released_at IS NULL), '[]'), 'tunnels', coalesce((SELECT json_agg(json_build_object(\
 'id', id, 'device', device_id, 'state', state, 'epoch', epoch, \
 'deadline_ms', (extract(epoch FROM deadline_at - clock_timestamp()) * 1000)::bigint, \
 'expires_ms', (extract(epoch FROM expires_at - clock_timestamp()) * 1000)::bigint)) \
 FROM tunnels WHERE state IN ('requested', 'claimed', 'active', 'reconnecting')), '[]'));";

/// A psql that stays, and is replaced when its server goes away.
struct Psql {
    child: Child,
    lines: Receiver<String>,
}

impl Psql {
    fn start(lab: &Lab) -> Result<Self> {
        let psql = crate::postgres::program_dir()?.join("psql");
        let mut child = lab
            .command(&Place::Core, &[&psql.to_string_lossy(), "-XAtq"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn ask(&mut self) -> Result<Rows> {
        let stdin = self.child.stdin.as_mut().context("no stdin")?;
        writeln!(stdin, "{LOOK}")?;
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(serde_json::from_str(&line)?),
            Err(RecvTimeoutError::Timeout) => bail!("the database does not answer"),
            Err(RecvTimeoutError::Disconnected) => bail!("the database is away"),
        }
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Looks until it is dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to look.
    ///
    /// # Errors
    /// When the lab cannot be found again.
    pub fn begin(lab: &Lab, history: Arc<History>, every: Duration) -> Result<Self> {
        let lab = Lab::attach(lab.dir())?;
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = thread::spawn(move || {
            let mut psql = None;
            while !until.load(Ordering::Relaxed) {
                history.add(Event::Seen(look(&lab, &mut psql)));
                thread::sleep(every);
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn look(lab: &Lab, psql: &mut Option<Psql>) -> Seen {
    if psql.is_none() {
        *psql = Psql::start(lab).ok();
    }
    let rows = psql.as_mut().and_then(|psql| psql.ask().ok());
    if rows.is_none() {
        *psql = None;
    }
    let leases = rows.as_ref().map_or(&[][..], |rows| &rows.leases);
    let servers = lab.options().servers.get();
    Seen {
        listeners: listeners(&lab.networks(), servers, leases).unwrap_or_default(),
        serving: (1..=servers).filter(|n| serves(lab, *n)).collect(),
        rows,
    }
}

fn serves(lab: &Lab, n: u32) -> bool {
    Record::read(lab.dir(), &format!("serverd-{n}"))
        .and_then(|record| record.process.stat())
        .is_some_and(|stat| !stat.is_stopped())
}

/// Who listens on ports that servers lease.
///
/// # Errors
/// When the servers' network cannot be entered.
pub fn listeners(networks: &Networks, servers: u32, leases: &[Lease]) -> Result<Vec<Listener>> {
    let table = networks.inside(&Place::Core, || fs::read_to_string("/proc/thread-self/net/tcp"))??;
    Ok(parse(&table, servers)
        .map(|(server, port, inode)| {
            let of = |server| move |lease: &&Lease| (lease.server, lease.port) == (server, port);
            let lease = leases.iter().find(of(server));
            let lease = lease.or_else(|| leases.iter().find(of(successor(server))));
            Listener {
                server: lease.map_or(server, |lease| lease.server),
                port,
                inode,
                by_lease: lease.map(|lease| sockets(lease.session).contains(&inode)),
            }
        })
        .collect())
}

/// The sockets of a process.
fn sockets(pid: i32) -> HashSet<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return HashSet::new();
    };
    entries
        .filter_map(|entry| {
            let link = fs::read_link(entry.ok()?.path()).ok()?;
            link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

/// Where server `n` is once it has moved.
pub fn moved_address(n: u32) -> Ipv4Addr {
    let [a, b, c, d] = server_address(n).octets();
    Ipv4Addr::new(a, b, c + 100, d)
}

/// The number of the server that takes over the address of server `n`.
pub fn successor(n: u32) -> u32 {
    n + 100
}

/// Server, port and inode of each listener on a leased port, as /proc/net/tcp (proc(5)) has them.
fn parse(table: &str, servers: u32) -> impl Iterator<Item = (u32, u16, u64)> {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let (address, port) = fields.nth(1)?.split_once(':')?;
        // 0A is TCP_LISTEN.
        if fields.nth(1)? != "0A" {
            return None;
        }
        // A tunnel's listener is the tunnel account's; a stranger's is none of ours.
        if fields.nth(3)? == "0" {
            return None;
        }
        let inode = fields.nth(1)?.parse().ok()?;
        // In the byte order of the machine that runs it.
        let address = Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes());
        let server = (1..=servers).find(|n| [server_address(*n), moved_address(*n)].contains(&address))?;
        let port = u16::from_str_radix(port, 16).ok()?;
        LEASED.contains(&port).then_some((server, port, inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_on_leased_ports_are_told_from_other_sockets() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0101007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000   100        0 4711 1 0 100 0\n\
            1: 0101007F:0899 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0\n\
            2: 0101007F:4E21 0101007F:0001 01 00000000:00000000 00:00000000 00000000   100        0 4713 1 0 100 0\n\
            3: 0101007F:4E23 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4715 1 0 100 0\n\
            4: 0301007F:4E22 00000000:0000 0A 00000000:00000000 00:00000000 00000000   100        0 4714 1 0 100 0\n";
        if cfg!(target_endian = "little") {
            assert_eq!(parse(table, 2).collect::<Vec<_>>(), [(1, 20_000, 4711)]);
        }
    }
}
