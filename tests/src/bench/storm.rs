//! A server is gone, and all of its tunnels come back at another.

use std::io::Read as _;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::byhand::{ByHand, Client};
use super::crowd::{Crowd, at_once};
use super::results::{Figure, Reach};
use super::stats::Pairs;
use super::worker::Worker;
use crate::component::Record;
use crate::parts::{router, server};
use crate::place::{Place, server_address};
use crate::{Action, process};

const AGENTS: u32 = 50;
const TUNNELS: u32 = 500;
/// How often the server that holds them all goes.
const ROUNDS: usize = 2;
/// What agents wait before they come back from a loss: a second, and up to another one drawn by each (`AFTER_LOSS` of
/// agentd's tunnels).
const JITTER: Duration = Duration::from_secs(2);
/// How often it is looked whether all are back; each look is a program of its own.
const LOOK: Duration = Duration::from_millis(100);
/// How long all may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Measures how soon 500 tunnels are back, against as many logins by hand that begin at once.
///
/// # Errors
/// When they do not come back.
pub fn measure() -> Result<Vec<Figure>> {
    let crowd = Crowd::up(2, AGENTS)?;
    let figures = storms(&crowd);
    crowd.down()?;
    figures
}

fn storms(crowd: &Crowd) -> Result<Vec<Figure>> {
    let by_hand = ByHand::start(&crowd.lab, 1..=AGENTS)?;
    let mut workers = Vec::new();
    for device in 1..=AGENTS {
        workers.push((device, Worker::start(&crowd.lab, &Place::Device(device))?));
    }
    let mut times = [const { Vec::new() }; 3];
    for client in [Client::Default, Client::Equal] {
        for _ in 0..ROUNDS {
            let took = logins(crowd, &by_hand, &mut workers, client)?;
            times[if client == Client::Default { 1 } else { 2 }].push(took.as_secs_f64());
        }
    }
    // All of them on one server.
    gone(crowd, 2)?;
    let opened = crowd.open(TUNNELS)?;
    ensure!(opened.failed == 0, "{} of {TUNNELS} did not open", opened.failed);
    back(crowd, 2)?;
    for round in 0..ROUNDS {
        let (from, to) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
        let took = storm(crowd, from, to)?;
        times[0].push(took.saturating_sub(JITTER).as_secs_f64());
        back(crowd, from)?;
    }
    let [ours, default, equal] = times;
    let pairs = |theirs| Pairs {
        ours: ours.clone(),
        theirs,
    };
    Ok(vec![
        Figure::ratio(
            "storm_500",
            Reach::AtMost(1.3),
            &pairs(default),
            "s",
            &format!(
                "{TUNNELS} tunnels of {AGENTS} agents on one server, until all are active on another and show their devices' \
                 banners, less the {} s that agents wait and spread themselves over; against as many hand-run ssh -f -N \
                 logins that begin at once and forward nothing",
                JITTER.as_secs()
            ),
        ),
        Figure::ratio(
            "storm_500_equal",
            Reach::None,
            &pairs(equal),
            "s",
            "the same, the hand-run ssh with our key exchange and cipher",
        ),
    ])
}

/// Logs in by hand as often as there are tunnels, all at once; returns how long until the last one is in.
fn logins(crowd: &Crowd, by_hand: &ByHand, workers: &mut [(u32, Worker)], client: Client) -> Result<Duration> {
    let begin = Instant::now();
    at_once(workers.iter_mut(), |(device, worker)| {
        let one: Vec<String> = by_hand
            .login(*device, client, &crowd.lab, [])
            .iter()
            .map(|word| format!("'{word}'"))
            .collect();
        let one = one.join(" ");
        let script = format!(
            "for n in $(seq {}); do {one} || echo failed & done; wait",
            TUNNELS / AGENTS
        );
        let ran = worker.succeed(&["sh".to_owned(), "-c".to_owned(), script])?;
        ensure!(!ran.stdout.contains("failed"), "a login by hand failed: {}", ran.stderr);
        Ok(())
    })?;
    let took = begin.elapsed();
    at_once(workers.iter_mut(), |(_, worker)| worker.end())?;
    Ok(took)
}

/// Kills everything of a server: its daemon, its sshd, and every session; returns how long until all tunnels are at the
/// other.
fn storm(crowd: &Crowd, from: u32, to: u32) -> Result<Duration> {
    let networks = crowd.lab.networks().inodes();
    let mut doomed = Vec::new();
    for name in ["serverd", "sshd"] {
        let record = Record::read(crowd.lab.dir(), &format!("{name}-{from}")).context("the server is not there")?;
        doomed.extend(record.members(&networks));
    }
    ensure!(
        doomed.len() > TUNNELS as usize,
        "server {from} has {} processes, fewer than tunnels",
        doomed.len()
    );
    let begin = Instant::now();
    for process in &doomed {
        process.signal(nix::sys::signal::Signal::SIGKILL)?;
    }
    let count = format!(
        "SELECT count(*) FROM tunnels WHERE state = 'active' AND server_id = '{}'",
        server::id(to)
    );
    let all = TUNNELS.to_string();
    let mut seen = String::new();
    loop {
        thread::sleep(LOOK);
        seen = crowd.lab.psql(&count).unwrap_or(seen);
        if seen == all {
            break;
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "{seen} of {TUNNELS} tunnels are back after {} s",
            PATIENCE.as_secs()
        );
    }
    let took = begin.elapsed();
    eprintln!(
        "         {TUNNELS} tunnels are at server {to} after {:.1} s",
        took.as_secs_f64()
    );
    banners(crowd, to)?;
    Ok(took)
}

/// Makes sure that each tunnel leads to its device.
fn banners(crowd: &Crowd, server: u32) -> Result<()> {
    let rows = crowd
        .lab
        .psql("SELECT l.port, t.device_id FROM live_leases l JOIN tunnels t ON t.id = l.tunnel_id")?;
    ensure!(rows.lines().count() == TUNNELS as usize, "some leases are not there");
    crowd.lab.networks().inside(&Place::Core, || {
        for row in rows.lines() {
            let (port, device) = row.split_once('|').context("a row without a device")?;
            let mut stream = TcpStream::connect((server_address(server), port.parse()?))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut banner = [0; 64];
            let length = stream.read(&mut banner)?;
            let banner = String::from_utf8_lossy(&banner[..length]).into_owned();
            ensure!(
                banner.trim_end().ends_with(&format!(" {device}")),
                "port {port} shows {banner:?} and not {device}"
            );
        }
        Ok(())
    })?
}

/// Takes a server away before there is anything on it.
fn gone(crowd: &Crowd, server: u32) -> Result<()> {
    for name in ["serverd", "sshd"] {
        crowd.lab.ctl(Action::Kill, &format!("{name}-{server}"))?;
    }
    until_up(crowd, 1)
}

/// Brings a server back.
fn back(crowd: &Crowd, server: u32) -> Result<()> {
    for name in ["sshd", "serverd"] {
        crowd.lab.ctl(Action::Start, &format!("{name}-{server}"))?;
    }
    until_up(crowd, 2)
}

fn until_up(crowd: &Crowd, servers: usize) -> Result<()> {
    let seen = process::wait(Duration::from_secs(30), || {
        router::servers_up(crowd.lab.dir()).is_ok_and(|up| up == servers)
    });
    ensure!(seen, "HAProxy does not see {servers} servers up");
    Ok(())
}
