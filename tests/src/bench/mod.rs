//! The benchmarks: each figure a ratio against what a person would do or pick instead, measured in alternating rounds.
//!
//! Other work on the machine hits both sides of a ratio alike; its load is noted beside each figure. Nothing is asserted:
//! the table says what was reached.

pub mod broker;
pub mod byhand;
pub mod connection;
pub mod control;
pub mod cpu;
pub mod crowd;
pub mod delay;
pub mod device;
pub mod helper;
pub mod inside;
mod leases;
pub mod login;
pub mod memory;
pub mod open;
pub mod peers;
pub mod quiet;
pub mod results;
pub mod rig;
pub mod route;
pub mod servers;
pub mod stats;
pub mod storm;
pub mod stream;
pub mod tunnels;
pub mod worker;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use results::{Figure, Reach};
use rig::Rig;

/// Measures the system against what a person would do instead, prints a table and writes it to a file.
#[derive(Debug, Parser)]
#[command(name = "rssh-bench", version)]
pub struct Args {
    #[command(subcommand)]
    inner: Option<Inner>,
    /// How many rounds of each kind of open are counted
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// How many MiB a stream carries
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// How many tunnels are held at once
    #[arg(long, default_value_t = 3000)]
    tunnels: u32,
    /// Measure these groups of figures only
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    only: Vec<String>,
    /// Where the figures go; those of other groups stay when --only is given
    #[arg(long, default_value = "target/bench/results.json")]
    results: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Inner {
    /// Time programs at a place of the lab
    #[command(hide = true)]
    Worker,
    /// Hold as many leases as a server has, and print how much memory that takes
    #[command(hide = true)]
    HoldLeases,
    /// Be users and devices that open tunnels
    #[command(hide = true)]
    Control(control::Args),
    /// Be devices that idle
    #[command(hide = true)]
    Idle(broker::Args),
}

/// What the command line may tune.
#[derive(Debug, Clone, Copy)]
struct Tuning {
    rounds: usize,
    mib: u64,
    tunnels: u32,
}

/// Figures that are measured together.
struct Group {
    name: &'static str,
    measure: fn(&mut Rig, Tuning) -> Result<Vec<Figure>>,
}

/// In this order: first what is measured by the clock, then what fills the machine and leaves it busy.
const GROUPS: &[Group] = &[
    Group {
        name: "open",
        measure: |rig, tuning| open::measure(rig, tuning.rounds),
    },
    Group {
        name: "cpu",
        measure: |rig, tuning| cpu::measure(rig, tuning.rounds),
    },
    Group {
        name: "far",
        // Each open is long, and there are eight in a round.
        measure: |rig, tuning| open::measure_far(rig, tuning.rounds.div_ceil(2)),
    },
    Group {
        name: "login",
        measure: |rig, tuning| login::measure(rig, tuning.rounds),
    },
    Group {
        name: "stream",
        measure: |rig, tuning| stream::measure(rig, STREAMS, tuning.mib << 20),
    },
    Group {
        name: "helper",
        measure: |rig, _| helper::measure(rig),
    },
    Group {
        name: "lookup",
        measure: |rig, _| route::measure_lookup(rig),
    },
    Group {
        name: "peers",
        measure: |rig, _| peers::measure(rig),
    },
    Group {
        name: "routes",
        measure: |rig, _| route::measure_changes(rig),
    },
    Group {
        name: "servers",
        measure: |rig, _| servers::measure(rig),
    },
    Group {
        name: "broker",
        measure: |rig, _| broker::measure(rig),
    },
    Group {
        name: "leases",
        measure: |rig, _| leases::measure(rig),
    },
    // Labs of their own.
    Group {
        name: "storm",
        measure: |_, _| storm::measure(),
    },
    Group {
        name: "tunnels",
        measure: |_, tuning| tunnels::measure(tuning.tunnels),
    },
    Group {
        name: "control",
        measure: |_, _| control::measure(),
    },
    // Last: the idle device is watched meanwhile.
    Group {
        name: "device",
        measure: |rig, _| device::measure(rig),
    },
];

/// How often each way carries a stream.
const STREAMS: usize = 3;

/// Measures.
///
/// # Errors
/// When the results cannot be written; a group that fails is reported as missing.
pub fn run(args: Args) -> Result<()> {
    match args.inner {
        Some(Inner::Worker) => return worker::serve(),
        Some(Inner::HoldLeases) => return leases::hold(),
        Some(Inner::Control(args)) => return control::serve(&args),
        Some(Inner::Idle(args)) => return broker::serve(&args),
        None => {}
    }
    if let Some(unknown) = args
        .only
        .iter()
        .find(|name| !GROUPS.iter().any(|group| group.name == **name))
    {
        let names: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
        bail!("no group {unknown:?}; use some of: {}", names.join(", "));
    }
    let tuning = Tuning {
        rounds: args.rounds,
        mib: args.mib,
        tunnels: args.tunnels,
    };
    let mut figures = Vec::new();
    if args.only.is_empty() {
        fs::remove_file(&args.results).ok();
    }
    let mut rig = None;
    for group in GROUPS {
        if !args.only.is_empty() && !args.only.iter().any(|name| name == group.name) {
            continue;
        }
        figures.extend(measure(group, &mut rig, tuning));
        // Whatever becomes of the next.
        results::write(&args.results, &figures)?;
    }
    print!("{}", results::table(&figures));
    Ok(())
}

/// Measures a group; one that fails is missing, and loses the rig, since what is left of it would disturb the next.
fn measure(group: &Group, rig: &mut Option<Rig>, tuning: Tuning) -> Vec<Figure> {
    // What the group before has left the kernel and the database to do is not this one's.
    if !quiet::wait() {
        eprintln!("         {} begins while others are at work", group.name);
    }
    let (begin, load_before) = (Instant::now(), load());
    let measured = match rig.take().map_or_else(Rig::up, Ok) {
        Ok(up) => (group.measure)(rig.insert(up), tuning),
        Err(error) => Err(error),
    };
    eprintln!(
        "{:>6.1} s  {} (load {})",
        begin.elapsed().as_secs_f64(),
        group.name,
        load()
    );
    match measured {
        Ok(mut figures) => {
            for figure in &mut figures {
                figure.note.push_str(&format!("; load {load_before} to {}", load()));
            }
            figures
        }
        Err(error) => {
            eprintln!("error: {}: {error:#}", group.name);
            *rig = None;
            vec![Figure::missing(group.name, Reach::None, format!("{error:#}"))]
        }
    }
}

/// The machine's load in the last minute.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
