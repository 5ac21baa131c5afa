//! Faults and repairs of single components: what `rssh-lab ctl` does.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::component::{Component, Record};
use crate::lab::Lab;
use crate::process;
use crate::setup;

/// How long a component may take to end when asked.
const GRACE: Duration = Duration::from_secs(10);

/// What can be done to a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Kill it at once, as the kernel does when memory runs out
    Kill,
    /// Ask it to end, as init does
    Term,
    /// Freeze it with all that it started, as a machine that hangs
    Stop,
    /// Let it go on
    Cont,
    /// Start it again from its record
    Start,
    /// End and start it
    Restart,
}

impl Lab {
    /// Does something to a component, and waits until it has come to pass.
    ///
    /// # Errors
    /// When there is no such component, or it does not do as it should.
    pub fn ctl(&self, action: Action, name: &str) -> Result<()> {
        let component = Component::read(self.dir(), name)?;
        let record = Record::read(self.dir(), name);
        let alive = record.filter(|record| record.process.is_alive());
        let needed = || match alive {
            Some(record) => Ok(record),
            None => bail!(
                "{name} is not running; run: rssh-lab ctl --dir {} start {name}",
                self.dir().display()
            ),
        };
        match action {
            Action::Kill => self.end(&component, needed()?, Signal::SIGKILL),
            Action::Term => self.end(&component, needed()?, component.stop_signal()),
            Action::Stop => self.freeze(&component, needed()?),
            Action::Cont => self.signal_all(&needed()?, Signal::SIGCONT),
            Action::Start => {
                ensure!(alive.is_none(), "{name} is running already");
                self.start_again(&component, record)
            }
            Action::Restart => {
                if let Some(record) = alive
                    && self.end(&component, record, component.stop_signal()).is_err()
                {
                    self.end(&component, record, Signal::SIGKILL)?;
                }
                self.start_again(&component, record)
            }
        }
    }

    fn end(&self, component: &Component, record: Record, signal: Signal) -> Result<()> {
        record.process.signal(signal)?;
        ensure!(
            process::wait_ended(&[record.process], GRACE),
            "{} has not ended {} s after {signal}",
            component.name,
            GRACE.as_secs()
        );
        if !component.leaves_sessions() {
            // As init does with what a daemon leaves.
            self.signal_all(&record, Signal::SIGKILL)?;
            self.gone(component, &record)?;
            // The kernel gives the namespace's number to another one now.
            Record { mounts: 0, ..record }.write(self.dir(), &component.name)?;
        }
        Ok(())
    }

    /// Waits until no process of a component is left.
    fn gone(&self, component: &Component, record: &Record) -> Result<()> {
        let networks = self.networks().inodes();
        ensure!(
            process::wait(GRACE, || record.members(&networks).is_empty()),
            "processes of the last {} are left",
            component.name
        );
        Ok(())
    }

    /// Stops all of a component, also what it starts meanwhile.
    fn freeze(&self, component: &Component, record: Record) -> Result<()> {
        let networks = self.networks().inodes();
        let frozen = process::wait(GRACE, || {
            let moving: Vec<_> = record
                .members(&networks)
                .into_iter()
                .filter(|process| process.stat().is_some_and(|stat| !stat.is_stopped()))
                .collect();
            moving.iter().for_each(|process| {
                process.signal(Signal::SIGSTOP).ok();
            });
            moving.is_empty()
        });
        ensure!(
            frozen,
            "{} has not stopped {} s after SIGSTOP",
            component.name,
            GRACE.as_secs()
        );
        Ok(())
    }

    fn signal_all(&self, record: &Record, signal: Signal) -> Result<()> {
        for process in record.members(&self.networks().inodes()) {
            process.signal(signal)?;
        }
        Ok(())
    }

    fn start_again(&self, component: &Component, last: Option<Record>) -> Result<()> {
        if let Some(last) = last
            && !component.leaves_sessions()
        {
            self.gone(component, &last)?;
        }
        setup::start(self.dir(), self.programs(), std::slice::from_ref(component))
    }
}

impl Component {
    /// Whether what it started lives on without it: logins of an sshd, an agent's ssh (`KillMode=process`).
    fn leaves_sessions(&self) -> bool {
        ["sshd-", "target-", "agentd-"]
            .iter()
            .any(|prefix| self.name.starts_with(prefix))
    }
}
