//! How long one open takes, against a tunnel opened by hand.

use anyhow::Result;

use super::byhand::Client;
use super::results::{Figure, Reach};
use super::rig::Rig;
use super::stats::Pairs;

/// The ways that a tunnel is opened; each round takes all of them, each round beginning with another.
const WAYS: [Way; 3] = [Way::Ours, Way::ByHand(Client::Default), Way::ByHand(Client::Equal)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ours,
    ByHand(Client),
}

const HOW: &str = "a new process until proven through the load balancer, against ssh -f -N -R straight to an sshd that asks \
                   nobody, unproven";

/// Measures a cold `rssh open` against a hand-run ssh, with the distribution's settings and with ours.
///
/// # Errors
/// When an open fails.
pub fn measure(rig: &mut Rig, rounds: usize) -> Result<Vec<Figure>> {
    let [default, equal] = against_ssh(rig, rounds)?;
    Ok(vec![
        Figure::ratio("open_vs_ssh", Reach::AtMost(0.60), &default, "ms", HOW),
        Figure::ratio(
            "open_vs_ssh_equal",
            Reach::AtMost(1.0),
            &equal,
            "ms",
            "the same with our key exchange and cipher",
        ),
    ])
}

/// The times in milliseconds of each round: ours against the default ssh, and against the equal one.
fn against_ssh(rig: &mut Rig, rounds: usize) -> Result<[Pairs; 2]> {
    let mut times = [const { Vec::new() }; 3];
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
    let [ours, default, equal] = times;
    let pairs = |theirs| Pairs {
        ours: ours.clone(),
        theirs,
    };
    Ok([pairs(default), pairs(equal)])
}
