//! The fault suite: each case injects one fault into a real lab, shows from its history that the fault was there and
//! that the invariants held, and measures the recovery.
//!
//! | part | |
//! |---|---|
//! | [`history`] | what happened |
//! | [`check`] | the invariants, from a history alone |
//! | [`watch`], [`session`], [`scene`] | write the history |
//! | [`case`], [`cases`] | the table of cases |
//! | [`soak`] | random faults for a long time |

pub mod case;
pub mod cases;
pub mod check;
pub mod history;
pub mod inotify;
pub mod report;
pub mod scene;
pub mod session;
pub mod soak;
pub mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use rssh_proto::duration::Span;

use crate::files;
use case::{Case, How, Outcome};

/// Injects faults into the real system and checks that its promises hold.
#[derive(Debug, Parser)]
#[command(name = "rssh-faults", version)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Run the cases whose names contain one of these words only
    #[arg(value_name = "CASE")]
    only: Vec<String>,
    /// Switch each case's defence off: a case has to fail then
    #[arg(long)]
    without_defence: bool,
    /// Keep the logs of every case's lab, not only of those that fail
    #[arg(long)]
    logs: bool,
    /// Say which cases there are
    #[arg(long)]
    list: bool,
    /// Where the results and the histories go
    #[arg(long, default_value = "target/faults")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Load the system and inject a random fault again and again
    Soak {
        /// How long
        #[arg(long, default_value = "30m")]
        time: Span,
        /// How many tunnels are held
        #[arg(long, default_value_t = 200)]
        tunnels: u32,
        /// How far apart faults are
        #[arg(long, default_value = "60s")]
        every: Span,
        /// What the random choices begin with
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where the results and the history go
        #[arg(long, default_value = "target/faults")]
        dir: PathBuf,
    },
}

/// Runs cases, or a soak.
///
/// # Errors
/// When no case has such a name, or the results cannot be written.
pub fn run(args: Args) -> Result<ExitCode> {
    if let Some(Verb::Soak {
        time,
        tunnels,
        every,
        seed,
        dir,
    }) = args.verb
    {
        let plan = soak::Plan {
            time: time.duration(),
            tunnels,
            every: every.duration(),
            seed,
        };
        return Ok(exit_code(soak::run(&plan, &dir)?));
    }
    let mut cases: Vec<&Case> = cases::all()
        .filter(|case| args.only.is_empty() || args.only.iter().any(|word| case.name.contains(word.as_str())))
        .collect();
    if args.without_defence {
        cases.retain(|case| case.switch.is_some());
    }
    if cases.is_empty() {
        bail!("no case has such a name; run: rssh-faults --list");
    }
    if args.list {
        for case in cases {
            println!(
                "{:<34} {}; {} <= {} {}; {}{}",
                case.name,
                case.injects,
                case.bound.what,
                case.bound.limit,
                case.bound.unit,
                case.defence,
                case.switch
                    .map_or_else(String::new, |switch| format!(" (off: {switch})")),
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    files::make_dir(&args.dir)?;
    let how = How {
        without: args.without_defence,
        logs: args.logs,
    };
    let name = if args.without_defence {
        "without.json"
    } else {
        "results.json"
    };
    let mut outcomes: Vec<Outcome> = Vec::new();
    for case in cases {
        let outcome = case.outcome(&args.dir, how);
        eprintln!("{:>6.1} s  {} {:?}", outcome.took_s, outcome.name, outcome.verdict);
        outcomes.push(outcome);
        // A run that is cut short leaves what it has.
        report::write(&args.dir.join(name), &outcomes)?;
    }
    print!("{}", report::table(&outcomes));
    Ok(exit_code(outcomes.iter().all(report::is_good)))
}

fn exit_code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
