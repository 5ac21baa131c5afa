//! How many opens per second the control path does: users' requests, devices' landings and the servers' answers, over
//! the real broker, PostgreSQL and Redis, on the real sockets for sshd's helpers.
//!
//! Simulated are sshd and ssh, and the users and devices, each with a certificate and an MQTT session of its own.

pub mod fleet;
mod floor;
pub mod logins;
pub mod run;
pub mod standin;
pub mod tally;

use std::num::NonZeroU32;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub use run::{Args, Ran, serve};

use super::inside::Inside;
use super::results::{Figure, Reach};
use super::stats::{median, quantile, spread};
use crate::cgroup::Group;
use crate::component::Record;
use crate::place::Place;
use crate::postgres::ACCOUNT;
use crate::{Lab, Options};

/// How large a fleet is, and how many opens it does.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub servers: NonZeroU32,
    pub users: u32,
    pub devices: u32,
    /// Opens that are counted, and before those.
    pub opens: u32,
    pub warm_up: u32,
    /// Opens under way at once.
    pub in_flight: u32,
}

/// What the row is measured with.
const SIZE: Size = Size {
    servers: NonZeroU32::new(2).expect("two"),
    users: 100,
    devices: 500,
    opens: 10_000,
    warm_up: 1_000,
    in_flight: 96,
};

/// How long after the last answer what an open causes has come to its end: the audit trail is sealed in batches, and an
/// order's acknowledgement is looked for after half a second.
const AFTER: Duration = Duration::from_secs(2);

/// What an open uses, by part: its name, and the components whose processor time is counted.
const PARTS: [(&str, &[&str]); 4] = [
    ("mosquitto", &["mosquitto"]),
    ("serverd", &["serverd-1", "serverd-2"]),
    ("PostgreSQL", &["postgres"]),
    ("Redis", &["redis"]),
];

/// The generator at work in a lab.
pub struct Generator(Inside);

impl Generator {
    /// Starts it; returns once its fleet is connected and has warmed up.
    ///
    /// # Errors
    /// When the fleet does not come up.
    pub fn start(lab: &Lab, size: &Size) -> Result<Self> {
        let programs = lab.programs();
        let (own, standin) = (programs.path("rssh-bench"), programs.path("rssh-standin"));
        let numbers = [
            ("--servers", size.servers.get()),
            ("--users", size.users),
            ("--devices", size.devices),
            ("--opens", size.opens),
            ("--warm-up", size.warm_up),
            ("--in-flight", size.in_flight),
        ];
        let mut command = lab.command(&Place::Core, &[&own.to_string_lossy(), "control", "--dir"]);
        command.arg(lab.dir().mounted_at()).arg("--standin").arg(standin);
        for (name, number) in numbers {
            command.args([name, &number.to_string()]);
        }
        let mut inside = Inside::start(command)?;
        let said = inside.hear()?;
        ensure!(said == "ready", "the generator does not come up: {said}");
        Ok(Self(inside))
    }

    /// Its process id; the stand-ins are below it, and end with it.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Has it open everything.
    ///
    /// # Errors
    /// When it ends meanwhile.
    pub fn run(&mut self) -> Result<Ran> {
        self.0.go_on()?;
        let said = self.0.hear()?;
        serde_json::from_str(&said).with_context(|| format!("the generator says {said:?}"))
    }
}

/// Measures opens per second, and what each uses of which part.
///
/// # Errors
/// When the lab or the fleet does not come up.
pub(super) fn measure() -> Result<Vec<Figure>> {
    let lab = Lab::temporary(Options {
        servers: SIZE.servers,
        devices: 0,
        users: 0,
        ..Options::default()
    })?;
    let mut generator = Generator::start(&lab, &SIZE)?;
    let mut groups = Vec::new();
    let networks = lab.networks().inodes();
    for (name, components) in PARTS {
        let group = Group::new(&format!("control-{name}"))?;
        for component in components {
            let record = Record::read(lab.dir(), component).with_context(|| format!("there is no {component}"))?;
            for process in record.members(&networks) {
                group.take(process.pid as u32)?;
            }
        }
        groups.push((name, group));
    }
    let group = Group::new("control-generator")?;
    group.take_tree(generator.pid())?;
    groups.push(("the generator", group));

    let before = Usage::now(&lab, &groups)?;
    let ran = generator.run()?;
    thread::sleep(AFTER);
    let after = Usage::now(&lab, &groups)?;
    let held =
        lab.psql("SELECT count(DISTINCT (server_id, port)) || ' ' || count(DISTINCT tunnel_id) FROM live_leases")?;
    floor::write(&lab)?;
    let floor = Usage::now(&lab, &groups)?;
    let mut figures = figures(&ran, &before, &after, &groups, &held);
    figures.extend(floors(&ran, [&before, &after, &floor], &groups));
    Ok(figures)
}

/// What has been used until a moment.
struct Usage {
    /// Of each group, in microseconds.
    cpu: Vec<f64>,
    transactions: f64,
}

impl Usage {
    fn now(lab: &Lab, groups: &[(&str, Group)]) -> Result<Self> {
        let count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'rssh'";
        Ok(Self {
            cpu: groups
                .iter()
                .map(|(_, group)| Ok(group.used()?.as_secs_f64() * 1e6))
                .collect::<Result<_>>()?,
            transactions: lab.psql_as(ACCOUNT, count)?.parse()?,
        })
    }
}

fn figures(ran: &Ran, before: &Usage, after: &Usage, groups: &[(&str, Group)], held: &str) -> Vec<Figure> {
    let Outcome {
        ms,
        conflicts,
        lost,
        told,
    } = &ran.outcome;
    let opens = ms.len() as f64;
    let rates: Vec<f64> = ran.each_second.iter().map(|count| f64::from(*count)).collect();
    let rate = |key, reach, value: f64, note: String| Figure {
        value: Some(value),
        n: ms.len(),
        ..Figure::amount(key, reach, &[], note)
    };
    let used: Vec<f64> = before
        .cpu
        .iter()
        .zip(&after.cpu)
        .map(|(a, b)| (b - a) / opens)
        .collect();
    let parts: Vec<String> = groups
        .iter()
        .zip(&used)
        .map(|((name, _), us)| format!("{name} {us:.0}"))
        .collect();
    let told = told.iter().map(|what| format!("; {what}")).collect::<String>();
    vec![
        Figure {
            spread: Some(spread(&rates)),
            ..rate(
                "control_opens_per_s",
                Reach::AtLeast(3000.0),
                opens / ran.seconds,
                format!(
                    "{} opens, each of another pair of {} users and {} devices, {} at once, over {} servers; live leases \
                     afterwards, by port and by tunnel: {held}; simulated are sshd and ssh",
                    ms.len(),
                    SIZE.users,
                    SIZE.devices,
                    SIZE.in_flight,
                    SIZE.servers
                ),
            )
        },
        rate(
            "control_p99_ms",
            Reach::AtMost(250.0),
            quantile(ms, 0.99),
            format!("ms from the request to the name; median {:.0}", median(ms)),
        ),
        rate(
            "control_faults",
            Reach::AtMost(0.0),
            f64::from(conflicts + lost),
            format!("{conflicts} conflicts, {lost} lost{told}"),
        ),
        rate(
            "control_messages_per_s",
            Reach::None,
            ran.messages as f64 / ran.seconds,
            format!(
                "MQTT messages through the broker; {:.1} for an open",
                ran.messages as f64 / opens
            ),
        ),
        rate(
            "control_cpu_us",
            Reach::None,
            used.iter().sum(),
            format!(
                "us of processor for an open: {}; {:.1} transactions of the database",
                parts.join(", "),
                (after.transactions - before.transactions) / opens
            ),
        ),
    ]
}

/// How many opens a second both processors could do, if they did nothing but what no server of ours can spare them.
fn floors(ran: &Ran, [before, after, floor]: [&Usage; 3], groups: &[(&str, Group)]) -> [Figure; 2] {
    let used = |names: &[&str], from: &Usage, to: &Usage| -> f64 {
        let used = groups.iter().zip(from.cpu.iter().zip(&to.cpu));
        used.filter(|((name, _), _)| names.contains(name))
            .map(|(_, (from, to))| to - from)
            .sum()
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let alone = |key, us: f64, n, note: &str| Figure {
        value: Some(processors as f64 * 1e6 / us),
        n,
        spread: None,
        ..Figure::amount(
            key,
            Reach::None,
            &[],
            format!("{note}: {us:.0} us of processor for an open, on {processors} processors"),
        )
    };
    let opens = ran.outcome.ms.len();
    let mqtt = used(&["mosquitto", "the generator"], before, after) / opens as f64;
    let written = used(&["PostgreSQL"], after, floor) / f64::from(floor::OPENS);
    [
        alone(
            "control_floor_mqtt",
            mqtt,
            opens,
            "opens a second, if the servers and the database took no time at all and only the broker, the users, the devices \
             and their logins did what they did in this run",
        ),
        alone(
            "control_floor_postgres",
            written,
            floor::OPENS as usize,
            "opens a second, if there were the database alone, and it only wrote that there is a tunnel and, in a second \
             transaction, that it has a lease, six of each together, prepared and with fsync",
        ),
    ]
}

use tally::Outcome;
