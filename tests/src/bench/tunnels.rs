//! Real tunnels, as many as the machine holds: each an ssh on a device and a session of a server's sshd.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::crowd::{Crowd, Opened, Takes};
use super::memory::KIB;
use super::results::{Figure, Reach, number};

/// How many agents hold them, and how many servers.
const AGENTS: u32 = 100;
const SERVERS: u32 = 2;
/// How many are opened before the next look at what is left.
const STEP: u32 = 500;
/// How much memory is to be left, in bytes: the machine has others to serve.
const RESERVE: f64 = 1.5 * KIB * KIB * KIB;
/// How long nobody does anything while serverd's processor time is counted.
const IDLE: Duration = Duration::from_secs(20);
/// What a tunnel is on the servers' side, and on the devices'.
const SERVERS_SIDE: &[&str] = &["sshd", "serverd", "haproxy"];
const DEVICES_SIDE: &[&str] = &["agentd"];

/// Opens tunnels until there are enough, or memory or the system does not allow more.
///
/// # Errors
/// When the lab does not come up or leaves something behind.
pub fn measure(wanted: u32) -> Result<Vec<Figure>> {
    let crowd = Crowd::up(SERVERS, AGENTS)?;
    let figures = held(&crowd, wanted);
    let down = Instant::now();
    crowd.down()?;
    eprintln!(
        "         all of it was gone after {:.1} s",
        down.elapsed().as_secs_f64()
    );
    figures
}

fn held(crowd: &Crowd, wanted: u32) -> Result<Vec<Figure>> {
    let before = crowd.takes()?;
    let mut all = Opened::default();
    let mut bound = "as many as were asked for";
    while all.opened < wanted {
        let step = crowd.open(STEP.min(wanted - all.opened))?;
        all.opened += step.opened;
        all.failed += step.failed;
        all.took += step.took;
        let left = super::memory::available()?;
        eprintln!(
            "         {} tunnels in {:.0} s, {} failed, {:.1} GiB left",
            all.opened,
            all.took.as_secs_f64(),
            all.failed,
            left / KIB.powi(3)
        );
        if step.failed > 0 {
            bound = "opens failed";
            break;
        }
        if left < RESERVE {
            bound = "no memory is left";
            break;
        }
    }
    let (begin, used) = (Instant::now(), crowd.used("serverd-")?);
    thread::sleep(IDLE);
    let idle = crowd.used("serverd-")?.saturating_sub(used);
    let percent = idle.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0 / f64::from(SERVERS);
    let after = crowd.takes()?;
    let active = crowd.active()?;
    let lost = all.opened.saturating_sub(active);
    Ok(figures(&all, active, lost, percent, bound, &before, &after))
}

fn figures(
    all: &Opened,
    active: u32,
    lost: u32,
    percent: f64,
    bound: &str,
    before: &Takes,
    after: &Takes,
) -> Vec<Figure> {
    let tunnels = f64::from(active.max(1));
    let each = |now: f64, then: f64| (now - then) / tunnels / KIB;
    let side = |kinds: &[&str]| each(after.pss(kinds), before.pss(kinds));
    let processes = |kinds: &[&str]| (after.processes(kinds) as f64 - before.processes(kinds) as f64) / tunnels;
    let (server, device) = (side(SERVERS_SIDE), side(DEVICES_SIDE));
    let kernel = each(after.kernels, before.kernels);
    let whole = each(before.available, after.available);
    vec![
        Figure::amount(
            "real_tunnels",
            Reach::AtLeast(3000.0),
            &[f64::from(active)],
            format!(
                "tunnels held at once by {AGENTS} agents on {SERVERS} servers of this machine, each proven through the load \
                 balancer when it was opened, {} a second; {bound}",
                number(f64::from(all.opened) / all.took.as_secs_f64())
            ),
        ),
        Figure::amount(
            "real_tunnels_failures",
            Reach::AtMost(0.0),
            &[f64::from(all.failed + lost)],
            format!(
                "{} opens that failed, and {lost} tunnels that were lost while nobody did anything",
                all.failed
            ),
        ),
        Figure::amount(
            "real_tunnels_serverd_cpu",
            Reach::AtMost(1.0),
            &[percent],
            format!(
                "% of one processor, for each serverd with its half of the tunnels, in {} s in which nobody does anything",
                IDLE.as_secs()
            ),
        ),
        Figure::amount(
            "tunnel_server_kib",
            Reach::None,
            &[server],
            format!(
                "KiB of PSS for each tunnel on the servers' side (sshd, serverd, HAProxy), in {} processes",
                number(processes(SERVERS_SIDE))
            ),
        ),
        Figure::amount(
            "tunnel_device_kib",
            Reach::None,
            &[device],
            format!(
                "KiB of PSS for each tunnel on the device (agentd and its ssh), in {} processes",
                number(processes(DEVICES_SIDE))
            ),
        ),
        Figure::amount(
            "tunnel_kernel_kib",
            Reach::None,
            &[kernel],
            format!(
                "KiB of the kernel's for each tunnel, both sides (slab, stacks, page tables); the machine's available memory \
                 fell by {} KiB for each",
                number(whole)
            ),
        ),
    ]
}
