//! Faults of the broker.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::Action;
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{PROBER, Scene, USER};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "mosquitto-restarted",
        injects: "SIGTERM to mosquitto under live sessions; started again at once",
        bound: Bound::seconds("an open succeeds", 15.0),
        defence: "no session passes through the broker; everyone reconnects and subscribes again",
        switch: Some("the device's agent is frozen"),
        servers: 2,
        devices: 4,
        ha: false,
        run: |scene| broker(scene, Action::Term, Duration::ZERO),
    },
    Case {
        name: "mosquitto-killed-5s",
        injects: "SIGKILL to mosquitto under live sessions; started again after 5 s",
        bound: Bound::seconds("an open succeeds", 15.0),
        defence: "no session passes through the broker; the CLI names what is away",
        switch: Some("the device's agent is frozen"),
        servers: 2,
        devices: 4,
        ha: false,
        run: |scene| broker(scene, Action::Kill, Duration::from_secs(5)),
    },
    Case {
        name: "mosquitto-frozen-8s",
        injects: "SIGSTOP to mosquitto under live sessions for 8 s",
        bound: Bound::seconds("an open succeeds", 15.0),
        defence: "no session passes through the broker; the CLI ends by its deadline",
        switch: Some("the device's agent is frozen"),
        servers: 2,
        devices: 4,
        ha: false,
        run: |scene| broker(scene, Action::Stop, Duration::from_secs(8)),
    },
];

fn broker(scene: &Scene, action: Action, lasts: Duration) -> Result<Measured> {
    let sessions = (1..=3).map(|n| scene.session(n)).collect::<Result<Vec<_>>>()?;
    scene.ctl(action, "mosquitto")?;
    let began = std::time::Instant::now();
    let mut note = String::new();
    if !lasts.is_zero() {
        let answer = scene.try_open(PROBER, 4, Duration::from_secs(4))?;
        ensure!(!answer.succeeded(), "an open succeeded without a broker");
        let closing = scene.ask(
            USER,
            "device-1",
            Duration::from_secs(3),
            &["rssh", "ls", "--timeout", "3s"],
        )?;
        ensure!(!closing.succeeded(), "a list came without a broker");
        note = format!(
            "meanwhile after {:.1} s: {}",
            answer.took.as_secs_f64(),
            answer.stderr.trim()
        );
        // The name of an open tunnel is in the cache, or it is not: a session that is there needs none.
        scene.last(lasts.saturating_sub(began.elapsed()));
    }
    if scene.without {
        scene.ctl(Action::Stop, "agentd-4")?;
    }
    match action {
        Action::Stop => scene.ctl(Action::Cont, "mosquitto")?,
        _ => scene.start("mosquitto")?,
    }
    let took = scene.until_opens(PROBER, 4, Duration::from_secs(60))?;
    ensure!(
        sessions.iter().all(|session| session.goes_on(Duration::from_secs(5))),
        "a session ended"
    );
    drop(sessions);
    for n in 1..=3 {
        scene.close_tunnel(USER, n)?;
    }
    Ok(Measured::seconds(took, note))
}
