//! Many devices that come back at once.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::Action;
use crate::bench::stats::{correlation, quantile};
use crate::faults::case::{Bound, Case, Measured};
use crate::faults::scene::{Opened, Scene, USER, sshd_says};

/// Devices of a storm.
const STORM: u32 = 300;
/// How long a storm may last before the case is given up.
const PATIENCE: Duration = Duration::from_secs(240);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "storm-after-haproxy-restart",
        injects: "HAProxy restarted twice under 300 tunnels of 300 devices",
        bound: Bound::seconds("every tunnel is back", 90.0),
        defence: "jitter on the agents, MaxStartups raised on the servers",
        switch: Some("sshd's MaxStartups is 1"),
        servers: 2,
        devices: STORM,
        ha: false,
        run: through_haproxy,
    },
    Case {
        name: "storm-after-broker-restart",
        injects: "mosquitto restarted twice under 300 tunnels of 300 devices",
        bound: Bound::seconds("every device is online", 90.0),
        defence: "agents come back by themselves, after random pauses; tunnels do not pass through the broker",
        switch: Some("30 agents are frozen"),
        servers: 2,
        devices: STORM,
        ha: false,
        run: to_the_broker,
    },
];

/// Opens a tunnel to every device, a few at a time.
fn open_all(scene: &Scene, devices: u32) -> Result<Vec<Opened>> {
    let next = Mutex::new(1..=devices);
    let opened = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        loop {
            let Some(n) = next.lock().ok().and_then(|mut next| next.next()) else {
                return Ok(());
            };
            let one = scene.open(n)?;
            if let Ok(mut opened) = opened.lock() {
                opened.push(one);
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("a worker panicked"),
        })
    })?;
    opened.into_inner().map_err(|_| anyhow::anyhow!("a worker panicked"))
}

/// Lets every sshd work on one login at a time; sessions live on.
fn few_startups(scene: &Scene) -> Result<()> {
    (1..=2).try_for_each(|n| sshd_says(scene, n, &["MaxStartups 1:100:1"]))
}

/// Has a tunnel to every device, and the servers' logs from here on.
struct Storm<'a> {
    scene: &'a Scene,
    opened: Vec<Opened>,
    /// How long the logs of the servers' sshd were.
    logs: Vec<usize>,
}

impl<'a> Storm<'a> {
    fn gather(scene: &'a Scene) -> Result<Self> {
        let opened = open_all(scene, scene.lab.options().devices)?;
        scene.until(Duration::from_secs(10), "every tunnel is seen", || {
            Ok(opened.iter().all(|opened| scene.place_of(&opened.tunnel).is_some()))
        })?;
        let logs = (1..=2).map(|n| scene.log_length(&format!("sshd-{n}"))).collect();
        Ok(Self { scene, opened, logs })
    }

    /// Restarts HAProxy and waits until every tunnel has landed anew; says how long each took.
    fn restart_haproxy(&self) -> Result<Vec<f64>> {
        let epoch = |opened: &Opened| self.scene.place_of(&opened.tunnel).map(|(epoch, _)| epoch);
        let before: Vec<_> = self.opened.iter().map(epoch).collect();
        self.scene.ctl(Action::Restart, "haproxy")?;
        let began = Instant::now();
        let mut back = vec![None; self.opened.len()];
        let all = self.scene.until(PATIENCE, "every tunnel is back", || {
            for ((span, opened), before) in back.iter_mut().zip(&self.opened).zip(&before) {
                if span.is_none() && epoch(opened) > *before {
                    *span = Some(began.elapsed().as_secs_f64());
                }
            }
            Ok(back.iter().all(Option::is_some))
        });
        all.with_context(|| format!("{} of {} are back", back.iter().flatten().count(), back.len()))?;
        Ok(back.into_iter().flatten().collect())
    }

    /// When something happened to each device, in seconds, from a query that has a line for each in one order.
    fn times(&self, query: &str) -> Result<Vec<f64>> {
        let lines = self.scene.lab.psql(query)?;
        let times: Vec<f64> = lines.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(
            times.len() == self.opened.len(),
            "{} of {}",
            times.len(),
            self.opened.len()
        );
        Ok(times)
    }

    /// No login was dropped, and devices can be logged in to.
    fn ends_well(&self) -> Result<()> {
        let logs: String = (1..=2)
            .zip(&self.logs)
            .map(|(n, from)| self.scene.log_since(&format!("sshd-{n}"), *from))
            .collect();
        let dropped = logs.matches("MaxStartups").count() + logs.matches("drop connection").count();
        ensure!(dropped == 0, "sshd dropped {dropped} logins");
        let devices = self.scene.lab.options().devices;
        [1, devices / 2, devices]
            .into_iter()
            .try_for_each(|n| self.scene.login(n).map(drop))
    }
}

/// That devices which came back twice did so in another order each time; says how alike the two were, and how many came
/// at a time.
fn not_in_step(first: &[f64], second: &[f64]) -> Result<String> {
    let alike = correlation(first, second);
    // Of 300 that are independent, one set in a million is as much alike.
    ensure!(
        alike.abs() <= 0.3,
        "devices come back in step: the correlation is {alike:.2}"
    );
    let most = busiest_tenth(first).max(busiest_tenth(second));
    Ok(format!(
        "correlation of two storms {alike:.2}; at most {most} in a tenth of a second"
    ))
}

/// How many fall into the tenth of a second with the most.
fn busiest_tenth(times: &[f64]) -> usize {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let within = |from: f64| sorted.iter().filter(|at| (from..from + 0.1).contains(*at)).count();
    sorted.iter().map(|from| within(*from)).max().unwrap_or(0)
}

fn through_haproxy(scene: &Scene) -> Result<Measured> {
    let storm = Storm::gather(scene)?;
    if scene.without {
        few_startups(scene)?;
    }
    let mut spans = Vec::new();
    let mut claims = Vec::new();
    for _ in 0..2 {
        spans.extend(storm.restart_haproxy()?);
        // As the servers saw it.
        claims.push(storm.times("SELECT extract(epoch FROM claimed_at) FROM live_leases ORDER BY tunnel_id")?);
    }
    storm.ends_well()?;
    let steps = not_in_step(&claims[0], &claims[1])?;
    let (p50, p90) = (quantile(&spans, 0.5), quantile(&spans, 0.9));
    Ok(Measured {
        value: quantile(&spans, 1.0),
        note: format!("p50 {p50:.1} s, p90 {p90:.1} s; {steps}; no login dropped"),
    })
}

fn to_the_broker(scene: &Scene) -> Result<Measured> {
    let storm = Storm::gather(scene)?;
    let online = || {
        scene
            .lab
            .psql("SELECT id, generation FROM devices WHERE online ORDER BY 1")
    };
    let mut longest = Duration::ZERO;
    let mut returns = Vec::new();
    for _ in 0..2 {
        let before = online()?;
        if scene.without {
            (1..=30).try_for_each(|n| scene.lab.ctl(Action::Stop, &format!("agentd-{n}")))?;
        }
        scene.ctl(Action::Restart, "mosquitto")?;
        let took = scene.until(PATIENCE, "every device is online again", || {
            thread::sleep(Duration::from_millis(200));
            let now = online()?;
            Ok(now.lines().count() == before.lines().count()
                && now.lines().zip(before.lines()).all(|(now, before)| now != before))
        })?;
        longest = longest.max(took);
        returns.push(storm.times("SELECT extract(epoch FROM last_seen) FROM devices ORDER BY id")?);
    }
    storm.ends_well()?;
    let steps = not_in_step(&returns[0], &returns[1])?;
    let moved = scene.lab.psql("SELECT count(*) FROM live_leases WHERE epoch > 1")?;
    ensure!(
        moved == "0",
        "{moved} tunnels landed again though only the broker was restarted"
    );
    scene.close_tunnel(USER, 1)?;
    Ok(Measured::seconds(longest, format!("{steps}; no tunnel moved")))
}
