//! A fleet that one machine cannot hold, in virtual time: what becomes of its tunnels when servers are lost.
//!
//! Every decision is the product's own: agentd's tunnels, serverd's leases, capacity and suspicion, routerd's routes and
//! weights are the very state machines that the daemons run. What lies between them is modelled, with figures that the
//! benchmark measures: round trips, processor time, PostgreSQL, the broker, HAProxy's queue and draw.

mod balancer;
mod clock;
mod world;

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;

use world::{Loss, World};

use crate::bench::results::number;
use crate::bench::stats::quantile;

/// Simulates the loss of servers in a large fleet, and prints a table.
#[derive(Debug, Parser)]
#[command(name = "rssh-simulate", version)]
pub struct Args {
    /// How many devices there are, each with a tunnel
    #[arg(long, default_value_t = 1_000_000)]
    pub devices: u32,
    /// How many servers hold them
    #[arg(long, default_value_t = 1000)]
    pub servers: u32,
    /// How many load balancers let them in
    #[arg(long, default_value_t = 10)]
    pub balancers: u32,
    /// How many servers are lost at once; one table row for each number
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    pub lost: Vec<u32>,
    /// Where the random numbers begin
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What came of one loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// When each tunnel was back, since the loss.
    pub back: Vec<Duration>,
    /// Tunnels that were lost.
    pub lost: usize,
    /// When the last lost server was declared lost.
    pub declared: Option<Duration>,
    /// Logins that began in the busiest second, at all servers and at the busiest one.
    pub logins_per_s: u32,
    pub server_logins_per_s: u32,
    /// MQTT messages in the busiest second.
    pub messages_per_s: u32,
    /// Attempts that ended without a tunnel.
    pub failed: u32,
    /// Tunnels of the server with the fewest and with the most, of those that are left.
    pub spread: (usize, usize),
}

impl Outcome {
    /// Seconds until a share of the tunnels was back.
    pub fn until(&self, share: f64) -> f64 {
        let times: Vec<f64> = self.back.iter().map(Duration::as_secs_f64).collect();
        quantile(&times, share)
    }
}

/// Simulates each loss and prints what came of it.
///
/// # Errors
/// When the state machines cannot be put together.
pub fn run(args: &Args) -> Result<()> {
    let mut rows = vec![
        [
            "lost",
            "how",
            "tunnels",
            "found lost",
            "50 % back",
            "99 %",
            "100 %",
            "logins/s",
            "at one",
            "MQTT/s",
            "failed",
            "tunnels per server",
        ]
        .map(str::to_owned),
    ];
    for how in [Loss::Killed, Loss::Silent] {
        for &lost in &args.lost {
            let begin = Instant::now();
            let outcome = World::new(args, lost, how)?.run()?;
            eprintln!(
                "{:>6.1} s  {lost} of {} servers {how}",
                begin.elapsed().as_secs_f64(),
                args.servers
            );
            let seconds = |time: f64| format!("{} s", number(time));
            rows.push([
                lost.to_string(),
                how.to_string(),
                outcome.lost.to_string(),
                outcome
                    .declared
                    .map_or_else(|| "-".to_owned(), |at| seconds(at.as_secs_f64())),
                seconds(outcome.until(0.5)),
                seconds(outcome.until(0.99)),
                seconds(outcome.until(1.0)),
                outcome.logins_per_s.to_string(),
                outcome.server_logins_per_s.to_string(),
                outcome.messages_per_s.to_string(),
                outcome.failed.to_string(),
                format!("{} to {}", outcome.spread.0, outcome.spread.1),
            ]);
        }
    }
    println!(
        "{} devices with a tunnel each, {} servers, {} load balancers, seed {}; virtual time\n",
        args.devices, args.servers, args.balancers, args.seed
    );
    print!("{}", crate::table::markdown(&rows));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(seed: u64) -> Args {
        Args {
            devices: 2000,
            servers: 20,
            balancers: 2,
            lost: vec![2],
            seed,
        }
    }

    #[test]
    fn every_tunnel_of_lost_servers_comes_back_elsewhere_and_the_same_seed_tells_the_same_story() {
        for how in [Loss::Killed, Loss::Silent] {
            let run = |seed| World::new(&fleet(seed), 2, how).unwrap().run().unwrap();
            let outcome = run(1);
            assert_eq!((outcome.lost, outcome.back.len()), (200, 200), "{how}");
            let (least, most) = outcome.spread;
            assert!(
                least >= 100 && most <= 130,
                "{how}: {least} to {most} tunnels per server"
            );
            assert_eq!(run(1), outcome);
            assert_ne!(run(2).back, outcome.back);
        }
    }

    #[test]
    fn a_loss_that_the_devices_see_is_over_before_the_others_have_declared_it() {
        let seen = World::new(&fleet(3), 1, Loss::Killed).unwrap().run().unwrap();
        let silent = World::new(&fleet(3), 1, Loss::Silent).unwrap().run().unwrap();
        assert!(seen.until(1.0) < silent.until(0.5));
        // Nobody is declared lost before the time to live of a heartbeat, which is five seconds, is over.
        assert!(
            silent.declared.unwrap() >= Duration::from_secs(4),
            "{:?}",
            silent.declared
        );
        assert!(silent.until(0.0) > silent.declared.unwrap().as_secs_f64());
    }
}
