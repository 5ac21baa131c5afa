//! Logging in through an open tunnel, against the device's own sshd dialled directly.

use std::fs;

use anyhow::Result;

use super::results::{Figure, Reach};
use super::rig::{BUSY, Rig, USER, words};
use super::stats::Pairs;
use crate::place::device_name;

/// Measures `ssh device-1 true`, with a cached name and with none, against the same login on the device itself.
///
/// # Errors
/// When a login fails.
pub fn measure(rig: &mut Rig, rounds: usize) -> Result<Vec<Figure>> {
    let device = device_name(BUSY);
    let through = words(&["ssh", &device, "true"]);
    let home = format!("users/{USER}/home");
    let ssh = rig.lab.dir().inside(format_args!("{home}/.ssh"));
    let cache = rig.lab.dir().join(format!("{home}/.cache"));
    let direct = words(&[
        "ssh",
        "-F",
        "none",
        "-o",
        &format!("HostKeyAlias={device}"),
        "-o",
        &format!("UserKnownHostsFile={ssh}/known_hosts"),
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
        "-i",
        &format!("{ssh}/id_ed25519"),
        "root@127.0.0.1",
        "true",
    ]);
    rig.open()?;
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=rounds {
        for step in 0..3 {
            let way = (round + step) % 3;
            let ran = match way {
                0 => {
                    // There is one from the round before, and nobody else's.
                    rig.user.succeed(&through)?
                }
                1 => {
                    fs::remove_dir_all(&cache).ok();
                    fs::create_dir(&cache)?;
                    rig.user.succeed(&through)?
                }
                _ => rig.device.succeed(&direct)?,
            };
            if round > 0 {
                times[way].push(ran.took().as_secs_f64() * 1000.0);
            }
        }
    }
    rig.close()?;
    let [cached, fresh, direct] = times;
    let figure = |key, reach, ours, note| {
        let pairs = Pairs {
            ours,
            theirs: direct.clone(),
        };
        Figure::ratio(key, reach, &pairs, "ms", note)
    };
    Ok(vec![
        figure(
            "login_vs_direct",
            Reach::AtMost(1.30),
            cached,
            "ssh device-1 true through an open tunnel with the name cached, against the same sshd dialled on the device",
        ),
        figure(
            "login_vs_direct_fresh",
            Reach::None,
            fresh,
            "the same with a name asked for first",
        ),
    ])
}
