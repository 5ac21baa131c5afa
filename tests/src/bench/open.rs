//! How long one open takes, against a tunnel opened by hand.

use std::time::Duration;

use anyhow::Result;

use super::byhand::{self, Client};
use super::delay::Delay;
use super::results::{Figure, Reach};
use super::rig::Rig;
use super::stats::Pairs;
use crate::place::{BROKER_PORT, LB_DEVICES};

/// The ways that a tunnel is opened; each round takes all of them, each round beginning with another.
const WAYS: [Way; 4] = [
    Way::Ours,
    Way::ByHand(Client::Default),
    Way::ByHand(Client::Equal),
    Way::ByHand(Client::Tuned),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ours,
    ByHand(Client),
}

/// What a long way takes there and back.
const ROUND_TRIP: Duration = Duration::from_millis(50);

const HOW: &str = "a new process until proven through the load balancer, against ssh -f -N -R straight to an sshd that asks \
                   nobody, unproven";

/// Measures a cold `rssh open` against a hand-run ssh, with the distribution's settings and with ours.
///
/// # Errors
/// When an open fails.
pub fn measure(rig: &mut Rig, rounds: usize) -> Result<Vec<Figure>> {
    let [default, equal, tuned] = against_ssh(rig, rounds)?;
    Ok(vec![
        Figure::ratio("open_vs_ssh", Reach::AtMost(0.60), &default, "ms", HOW),
        Figure::ratio(
            "open_vs_ssh_equal",
            Reach::AtMost(1.0),
            &equal,
            "ms",
            "the same with our key exchange and cipher",
        ),
        Figure::ratio(
            "open_vs_ssh_tuned",
            Reach::None,
            &tuned,
            "ms",
            "the same, and its sshd sends small packets at once as ours does, which takes a tool of ours",
        ),
    ])
}

/// Measures the same over a link of 50 ms there and back.
///
/// # Errors
/// When an open fails.
pub fn measure_far(rig: &mut Rig, rounds: usize) -> Result<Vec<Figure>> {
    let ssh_only = [&[LB_DEVICES][..], &byhand::PORTS].concat();
    let delay = Delay::start(&rig.lab, &ssh_only, ROUND_TRIP)?;
    let near_broker = against_ssh(rig, rounds);
    drop(delay);
    let [default, equal, tuned] = near_broker?;

    let delay = Delay::start(&rig.lab, &[&ssh_only[..], &[BROKER_PORT]].concat(), ROUND_TRIP)?;
    // The agent's connection to the broker is made anew, over the long way.
    rig.restart_agent()?;
    let far_broker = against_ssh(rig, rounds);
    drop(delay);
    rig.restart_agent()?;
    let [far_default, far_equal, _] = far_broker?;

    let figure = |key, reach, pairs, note| Figure::ratio(key, reach, pairs, "ms", note);
    Ok(vec![
        figure(
            "open_rtt_50ms",
            Reach::AtMost(0.80),
            &default,
            "the open with 50 ms there and back between device and load balancer, by a proxy that hides what Nagle costs on \
             a long link",
        ),
        figure(
            "open_rtt_50ms_equal",
            Reach::None,
            &equal,
            "the same, the hand-run ssh with our key exchange and cipher",
        ),
        figure(
            "open_rtt_50ms_tuned",
            Reach::None,
            &tuned,
            "the same, and its sshd sends small packets at once",
        ),
        figure(
            "open_rtt_50ms_broker",
            Reach::None,
            &far_default,
            "the device as far from the broker too, which a hand-run ssh does not need",
        ),
        figure(
            "open_rtt_50ms_broker_equal",
            Reach::None,
            &far_equal,
            "as far from the broker, and the hand-run ssh with our key exchange and cipher",
        ),
    ])
}

/// The times in milliseconds of each round: ours against the default ssh, the equal one, and the equal one to a tuned sshd.
fn against_ssh(rig: &mut Rig, rounds: usize) -> Result<[Pairs; 3]> {
    let mut times = [const { Vec::new() }; 4];
    // The first of each fills caches and is not counted.
    for round in 0..=rounds {
        for step in 0..WAYS.len() {
            let at = (round + step) % WAYS.len();
            rig.settle()?;
            let ran = match WAYS[at] {
                Way::Ours => {
                    let ran = rig.open()?;
                    rig.close()?;
                    ran
                }
                Way::ByHand(client) => {
                    let ran = rig.open_by_hand(client, "localhost:22")?;
                    rig.close_by_hand()?;
                    ran
                }
            };
            if round > 0 {
                times[at].push(ran.took().as_secs_f64() * 1000.0);
            }
        }
    }
    let [ours, default, equal, tuned] = times;
    let pairs = |theirs| Pairs {
        ours: ours.clone(),
        theirs,
    };
    Ok([pairs(default), pairs(equal), pairs(tuned)])
}
