//! One peer beside ours: how long an open takes, what its client takes of the device, and how fast it carries a stream.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::memory::{self, KIB};
use super::super::results::{Figure, Reach, number};
use super::super::rig::Rig;
use super::super::stats::Pairs;
use super::super::{connection, stream};
use super::OPENS;
use super::peer::{self, MORE, OPENS_WITHIN, Peer, TO_STREAM};
use crate::Lab;

/// How often each carries a stream, and how many bytes.
const STREAMS: usize = 2;
const BYTES: u64 = 256 << 20;
/// How long a client that has connected is left alone before its memory counts as idle.
const RESTS: Duration = Duration::from_secs(2);

/// What is compared with each peer.
pub(super) struct Own {
    /// Milliseconds of opens.
    pub(super) opens: Vec<f64>,
    /// Bytes of PSS of the agent as devices get it, idle.
    pub(super) idle: f64,
    /// The same of the other agent, with its ssh and a tunnel.
    pub(super) one_tunnel: f64,
}

/// A peer's open, memory and throughput.
///
/// # Errors
/// When it opens no tunnel.
pub(super) fn measure(rig: &mut Rig, peer: Peer, own: &Own) -> Result<Vec<Figure>> {
    let [open, idle, client, tunnel, throughput, _] = peer.keys();
    let device = |lab: &Lab| memory::pss_of(&peer.processes(lab)[0]);
    rig.settle()?;
    peer.begin(rig, 0)?;
    peer.listens(&rig.lab)?;
    thread::sleep(RESTS);
    let unused = device(&rig.lab);
    let mut opens = Vec::new();
    for round in 0..=OPENS {
        rig.device.end()?;
        rig.settle()?;
        let since = Instant::now();
        peer.begin(rig, 0)?;
        peer.opened(&rig.lab, 0)?;
        if round > 0 {
            opens.push(since.elapsed().as_secs_f64() * 1000.0);
        }
    }
    let [device, core] = peer.processes(&rig.lab).map(|processes| memory::pss_of(&processes));
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
            idle,
            Reach::None,
            &[unused / KIB / KIB],
            "MiB of PSS of its client on the device before anyone has connected: it holds what it is configured for, since \
             nobody can ask it for more; beside it our agent as devices get it, idle, which holds no tunnel",
        )
        .against(own.idle / KIB / KIB),
        Figure::amount(
            client,
            Reach::None,
            &[device / KIB / KIB],
            "MiB of PSS of its client on the device with one tunnel; beside it our agent with one tunnel and its ssh",
        )
        .against(own.one_tunnel / KIB / KIB),
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
                peer.begin(rig, MORE)?;
            } else {
                for n in 1..=MORE {
                    peer.begin(rig, n)?;
                }
            }
            peer.opened(&rig.lab, MORE)?;
            let [device_then, core_then] = peer.processes(&rig.lab).map(|processes| memory::pss_of(&processes));
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
        let begin = |rig: &mut Rig| match peer {
            // A client of its own for each tunnel.
            Peer::Bore => {
                let argv = peer::stream_by_bore(rig)?;
                rig.device.succeed(&argv).map(drop)
            }
            _ => peer.begin(rig, 0),
        };
        begin(rig)?;
        // The tunnel to that port may come a moment later, and drop whoever is too early.
        let limit = Instant::now() + OPENS_WITHIN;
        let carried = loop {
            let carried = connection::tcp(&rig.lab, TO_STREAM).and_then(|connection| stream::carry(connection, BYTES));
            if carried.is_ok() || Instant::now() > limit {
                break carried?;
            }
            thread::sleep(Duration::from_millis(250));
            if peer == Peer::Bore {
                // Its server may still have had the port for the client before, and then this one has ended.
                begin(rig)?;
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
