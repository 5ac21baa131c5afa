//! Random faults for a long time, under load: tunnels that are held, logins that echo, and an open and close each second.

mod faults;
mod load;
mod usage;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::check::{Checker, Violation};
use super::history::History;
use super::inotify::Raised;
use super::scene::Scene;
use crate::{Options, files};
use faults::Dice;
use load::{Churn, Load};
use usage::Usage;

/// What a soak does.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub time: Duration,
    pub tunnels: u32,
    pub every: Duration,
    pub seed: u64,
}

/// How often the lab is looked at, and its history checked.
const LOOK: Duration = Duration::from_secs(1);
/// How long everything may take to be as it was after the last fault.
const SETTLES: Duration = Duration::from_secs(120);
/// The share of opens that has to succeed while the broker, PostgreSQL and one server are up.
const SHARE: f64 = 0.999;

/// What came of a soak.
#[derive(Debug, Serialize)]
struct Report {
    seconds: u64,
    tunnels: u32,
    faults: Vec<(u64, String)>,
    opens: load::Counts,
    /// Lease rows, listeners and tunnels at the end.
    at_the_end: [usize; 3],
    /// The same once every tunnel was closed.
    closed: [usize; 3],
    usage: Vec<Usage>,
    violations: Vec<Violation>,
    failures: Vec<String>,
}

/// Soaks, prints what came of it and writes it to a file; says whether all is well.
///
/// # Errors
/// When the lab does not come up, or a fault cannot be injected.
pub fn run(plan: &Plan, dir: &Path) -> Result<bool> {
    files::make_dir(dir)?;
    let held = plan.tunnels.div_ceil(load::TUNNELS_PER_DEVICE);
    let options = Options {
        servers: 2.try_into()?,
        devices: held + load::CHURNED,
        users: 3,
        ..Options::default()
    };
    let _raised = Raised::for_devices(plan.tunnels)?;
    let history = Arc::new(History::begin(&dir.join("soak.jsonl"), false)?);
    let scene = Scene::with(options, history.clone(), false, LOOK)?;
    let mut load = Load::begin(&scene, plan, held)?;
    eprintln!("{} tunnels are held on {held} devices", plan.tunnels);

    let mut dice = Dice::new(plan.seed);
    let mut checker = Checker::default();
    let mut told = 0;
    let mut check = |checker: &mut Checker| {
        for record in history.take() {
            checker.take(&record);
        }
        for violation in &checker.violations()[told..] {
            eprintln!("VIOLATION at {} ms: {}", violation.at, violation.what);
        }
        told = checker.violations().len();
    };
    let mut usage = vec![Usage::of(&scene)];
    let mut faults = Vec::new();
    let began = Instant::now();
    let (result, counts) = Churn::during(&scene, held, || -> Result<()> {
        let mut next = plan.every.min(plan.time / 4);
        while began.elapsed() < plan.time {
            std::thread::sleep(LOOK);
            check(&mut checker);
            if began.elapsed() >= next && began.elapsed() + Duration::from_secs(30) < plan.time {
                let what = faults::inject(&scene, &mut dice, &mut load, held)?;
                eprintln!("{:>6} s  {what}", began.elapsed().as_secs());
                faults.push((began.elapsed().as_secs(), what));
                next = began.elapsed().max(next) + plan.every.saturating_sub(Duration::from_secs(1));
            }
            if usage.len() * 60 <= usize::try_from(began.elapsed().as_secs())? {
                usage.push(Usage::of(&scene));
            }
        }
        Ok(())
    });
    let mut failures: Vec<String> = result.err().map(|error| format!("{error:#}")).into_iter().collect();
    let wanted = [plan.tunnels as usize; 3];
    let at_the_end = load::settle(&scene, wanted, SETTLES);
    if at_the_end != wanted {
        failures.push(format!(
            "at the end there are {at_the_end:?} leases, listeners and tunnels"
        ));
    }
    check(&mut checker);
    usage.push(Usage::of(&scene));
    failures.extend(usage::growth(&usage));
    load.end();
    load::close_all(&scene, held)?;
    let closed = load::settle(&scene, [0; 3], SETTLES);
    if closed != [0; 3] {
        failures.push(format!(
            "with all closed there are {closed:?} leases, listeners and tunnels"
        ));
    }
    if counts.share() < SHARE {
        failures.push(format!("{:.3} % of opens succeeded", counts.share() * 100.0));
    }
    check(&mut checker);
    let report = Report {
        seconds: began.elapsed().as_secs(),
        tunnels: plan.tunnels,
        faults,
        opens: counts,
        at_the_end,
        closed,
        usage,
        violations: checker.finish(history.now()),
        failures,
    };
    files::write(&dir.join("soak.json"), serde_json::to_string_pretty(&report)? + "\n")?;
    print(&report);
    let good = report.violations.is_empty() && report.failures.is_empty();
    if !good {
        let logs = dir.join("soak.logs");
        std::fs::remove_dir_all(&logs).ok();
        crate::run::checked(
            std::process::Command::new("cp")
                .arg("-r")
                .args([scene.lab.dir().join("log"), logs]),
        )?;
    }
    Ok(good)
}

fn print(report: &Report) {
    let opens = &report.opens;
    println!(
        "soaked for {} s with {} tunnels and {} faults",
        report.seconds,
        report.tunnels,
        report.faults.len()
    );
    println!(
        "opens: {} of {} succeeded ({:.3} %) while the broker, PostgreSQL and a server were up; {} more fell \
         into a fault of those, {} of them succeeded; p50 {:.0} ms, p99 {:.0} ms",
        opens.good,
        opens.all,
        opens.share() * 100.0,
        opens.excused,
        opens.excused_good,
        opens.p50_ms,
        opens.p99_ms,
    );
    println!(
        "leases, listeners, tunnels: {:?} at the end, {:?} when closed",
        report.at_the_end, report.closed
    );
    if let (Some(first), Some(last)) = (report.usage.first(), report.usage.last()) {
        println!("processes {} then {}", first.processes, last.processes);
        for (name, before) in &first.components {
            if let Some(after) = last.components.get(name) {
                println!(
                    "{name:<10} {} then {} files, {} then {} KiB",
                    before.files, after.files, before.kib, after.kib
                );
            }
        }
    }
    for violation in &report.violations {
        println!(
            "VIOLATION {:?} at {} ms: {}",
            violation.invariant, violation.at, violation.what
        );
    }
    for failure in &report.failures {
        println!("FAILED {failure}");
    }
}
