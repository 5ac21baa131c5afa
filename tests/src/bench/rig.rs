//! The lab that is measured, and the state that every round begins in.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::byhand::{self, ByHand, Client};
use super::device::Idle;
use super::worker::{Ran, Worker};
use crate::component::Record;
use crate::place::{Place, device_name};
use crate::{Action, Lab, Options, files, process};

/// Who asks.
pub const USER: &str = "alice";
/// The device that tunnels are opened to.
pub const BUSY: u32 = 1;
/// The device that nobody disturbs.
pub const IDLE: u32 = 2;
/// The port of the device where streams are taken.
pub const STREAM_PORT: u16 = 9;
/// How long everything may take to be as before a round.
const SETTLES: Duration = Duration::from_secs(20);

/// A lab with a worker where the user is, one on the device, and the person's own sshd.
#[derive(Debug)]
pub struct Rig {
    pub lab: Lab,
    pub user: Worker,
    pub device: Worker,
    pub by_hand: ByHand,
    pub idle: Idle,
}

impl Rig {
    /// Brings it up.
    ///
    /// # Errors
    /// When the lab does not come up.
    pub fn up() -> Result<Self> {
        let options = Options {
            servers: NonZeroU32::new(2).unwrap_or(NonZeroU32::MIN),
            devices: 2,
            users: 1,
            ..Options::default()
        };
        let lab = Lab::temporary(options)?;
        allow_streams(&lab)?;
        Ok(Self {
            user: Worker::start(&lab, &lab.place(Some(USER))?)?,
            device: Worker::start(&lab, &Place::Device(BUSY))?,
            by_hand: ByHand::start(&lab, BUSY..=BUSY)?,
            idle: Idle::begin(&lab)?,
            lab,
        })
    }

    /// Waits until no ssh runs on the device, no login is left on any server, and no lease is live.
    ///
    /// # Errors
    /// When that does not come to pass.
    pub fn settle(&self) -> Result<()> {
        let networks = self.lab.networks().inodes();
        let alone = |component: &str| {
            Record::read(self.lab.dir(), component).is_some_and(|record| record.members(&networks).len() == 1)
        };
        let agent = format!("agentd-{BUSY}");
        let settled = process::wait(SETTLES, || {
            [agent.as_str(), "sshd-1", "sshd-2"]
                .iter()
                .chain(&byhand::SSHDS)
                .all(|component| alone(component))
        }) && process::wait(SETTLES, || {
            self.lab
                .psql("SELECT count(*) FROM live_leases")
                .is_ok_and(|count| count == "0")
        });
        ensure!(
            settled,
            "a tunnel of the last round is left after {} s",
            SETTLES.as_secs()
        );
        Ok(())
    }

    /// Starts the agent anew, with new connections.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart_agent(&self) -> Result<()> {
        restart_agent(&self.lab)
    }

    /// A cold `rssh open` until it is proven through the load balancer.
    ///
    /// # Errors
    /// When it fails.
    pub fn open(&mut self) -> Result<Ran> {
        self.user
            .succeed(&words(&["rssh", "open", &device_name(BUSY), "--json"]))
    }

    /// Ends what [`Rig::open`] opened.
    ///
    /// # Errors
    /// When it fails.
    pub fn close(&mut self) -> Result<()> {
        self.user
            .succeed(&words(&["rssh", "close", &device_name(BUSY), "--force"]))?;
        self.settle()
    }

    /// A tunnel opened by hand.
    ///
    /// # Errors
    /// When it fails.
    pub fn open_by_hand(&mut self, client: Client, to: &str) -> Result<Ran> {
        let command = self.by_hand.command(BUSY, client, &self.lab, to);
        self.device.succeed(&command)
    }

    /// Ends what [`Rig::open_by_hand`] opened.
    ///
    /// # Errors
    /// When it does not end.
    pub fn close_by_hand(&mut self) -> Result<()> {
        self.device.end()?;
        self.settle()
    }
}

/// Lets the agent lead to the port where streams are taken.
fn allow_streams(lab: &Lab) -> Result<()> {
    let config = lab.dir().join(format!("devices/{}/agentd.toml", device_name(BUSY)));
    let text = files::read(&config)?;
    files::write(
        &config,
        format!("{text}\n[targets]\nallow = [\"localhost:22\", \"localhost:{STREAM_PORT}\"]\n"),
    )?;
    restart_agent(lab)
}

/// Starts the agent anew; returns once it says that it is ready.
fn restart_agent(lab: &Lab) -> Result<()> {
    lab.ctl(Action::Restart, &format!("agentd-{BUSY}"))
}

/// Words of a command line.
pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
