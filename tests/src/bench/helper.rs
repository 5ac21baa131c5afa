//! sshd's AuthorizedKeysCommand, which runs for every login: how long a call takes, process start included.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::results::{Figure, Reach};
use super::rig::{BUSY, Rig};
use super::stats::Pairs;
use super::worker::Worker;
use crate::files;
use crate::place::{Place, device_name};

/// How often each is called: all within the ten seconds after which a login without a claim is ended.
const CALLS: usize = 200;

/// Measures a call that is granted a port against `/bin/true`.
///
/// # Errors
/// When the helper answers otherwise than to sshd.
pub fn measure(rig: &mut Rig) -> Result<Vec<Figure>> {
    rig.open()?;
    let dir = rig.lab.dir();
    let config = files::read(&dir.join("servers/s1/sshd/sshd_config"))?;
    let command = config
        .lines()
        .find_map(|line| line.strip_prefix("AuthorizedKeysCommand "))
        .context("sshd_config has no AuthorizedKeysCommand")?;
    let key = files::read(&dir.join(format!("devices/{}/state/ssh_key.public", device_name(BUSY))))?;
    let [kind, key] = key.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
        anyhow::bail!("not a public key: {key}");
    };
    let helper: Vec<String> = command
        .split(' ')
        .map(|word| word.replace("%t", kind).replace("%k", key))
        .collect();
    let nothing = vec!["/bin/true".to_owned()];

    // serverd takes whoever calls for sshd's monitor of one login; this worker is that, and ends with the group.
    let mut monitor = Worker::start(&rig.lab, &Place::Server(1))?;
    let mut pairs = Pairs::default();
    let micros = |took: Duration| took.as_secs_f64() * 1e6;
    for round in 0..=CALLS {
        let ours = monitor.succeed(&helper)?;
        ensure!(ours.stdout.contains("permitlisten"), "the helper was refused a port");
        let theirs = monitor.succeed(&nothing)?;
        if round > 0 {
            pairs.ours.push(micros(ours.took()));
            pairs.theirs.push(micros(theirs.took()));
        }
    }
    drop(monitor);
    rig.close()?;
    let size = std::fs::metadata(Path::new(&rig.lab.programs().path("rssh-authorize")))?.len() >> 10;
    Ok(vec![Figure::ratio(
        "authorize_vs_true",
        Reach::AtMost(3.0),
        &pairs,
        "us",
        &format!("rssh-authorize ({size} KiB) granted a port by serverd out of PostgreSQL, against /bin/true"),
    )])
}
