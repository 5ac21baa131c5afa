//! A lab as its user holds it: programs to run in it, faults to inject, and the way to end it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::component::{Component, Record};
use crate::files;
use crate::network::Networks;
use crate::place::Place;
use crate::postgres;
use crate::process::{self, Process};
use crate::programs::Programs;
use crate::root::Root;
use crate::run;
use crate::setup::{Options, Progress, Setup};

/// What a lab's directory records of the lab as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    options: Options,
    programs: Programs,
    /// Whose end is the lab's end too; none for a lab that lives until `down`.
    owner: Option<Process>,
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    root: Root,
    facts: Facts,
    /// Whether it ends with this value.
    owned: bool,
}

/// What `status` says of one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentStatus {
    pub name: String,
    pub pid: Option<i32>,
    pub address: Option<String>,
    pub place: String,
    pub up: bool,
    /// `running`, `stopped` (frozen) or `ended`.
    pub state: &'static str,
    pub log: PathBuf,
}

/// What `status` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub dir: PathBuf,
    pub components: Vec<ComponentStatus>,
}

impl Lab {
    /// Brings up a lab in `dir`; it lives until [`Lab::down`], whoever started it.
    ///
    /// # Errors
    /// When something does not come up; what did is ended again, the logs stay.
    pub fn up(dir: &Path, options: Options, progress: Progress<'_>) -> Result<Self> {
        Self::start(dir, options, None, progress)
    }

    /// Brings up a lab that ends with the value, in a directory of its own beside the built programs.
    ///
    /// # Errors
    /// See [`Lab::up`].
    pub fn temporary(options: Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let programs = Programs::locate()?;
        let base = programs.dir().parent().unwrap_or(programs.dir()).join("lab");
        files::make_dir(&base)?;
        sweep(&base);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let owner = Process::with_pid(i32::try_from(std::process::id())?);
        let mut lab = Self::start(&base.join(name), options, owner, &|_, _| {})?;
        lab.owned = true;
        Ok(lab)
    }

    fn start(dir: &Path, options: Options, owner: Option<Process>, progress: Progress<'_>) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces; run it as root"
        );
        ensure!(
            !facts_file(dir).exists(),
            "there is a lab in {0} already; run: rssh-lab down --dir {0}",
            dir.display()
        );
        let programs = Programs::locate()?;
        files::make_dir(dir)?;
        // PostgreSQL and sshd's helpers run under other accounts and come through here; secrets have modes of their own.
        files::set_mode(dir, 0o755)?;
        let root = Root::new(dir)?;
        let facts = Facts {
            options,
            programs: programs.clone(),
            owner,
        };
        files::write(&facts_file(&root), serde_json::to_vec_pretty(&facts)?)?;
        let lab = Self {
            root: root.clone(),
            facts,
            owned: false,
        };
        match (Setup {
            root,
            programs,
            options,
        })
        .run(progress)
        {
            Ok(()) => Ok(lab),
            Err(error) => match lab.down() {
                Ok(()) => Err(error),
                Err(left) => Err(error.context(format!("and then: {left:#}"))),
            },
        }
    }

    /// Finds the lab in `dir`, which somebody else started.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach(dir: &Path) -> Result<Self> {
        let file = facts_file(dir);
        let text = fs::read(&file)
            .with_context(|| format!("there is no lab in {0}; run: rssh-lab up --dir {0}", dir.display()))?;
        let facts = serde_json::from_slice(&text).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            root: Root::new(dir)?,
            facts,
            owned: false,
        })
    }

    /// Its directory.
    pub fn dir(&self) -> &Root {
        &self.root
    }

    /// How many of each it has.
    pub fn options(&self) -> Options {
        self.facts.options
    }

    /// The product's programs that it runs.
    pub fn programs(&self) -> &Programs {
        &self.facts.programs
    }

    /// Its network namespaces.
    pub fn networks(&self) -> Networks {
        Networks::of(&self.root)
    }

    /// The place of a user, or of the operator.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn place(&self, user: Option<&str>) -> Result<Place> {
        let Some(name) = user else {
            return Ok(Place::Core);
        };
        let place = Place::User(name.parse()?);
        ensure!(
            self.root.join(place.owner_dir()).exists(),
            "the lab has no user {name}; run up with more --users"
        );
        Ok(place)
    }

    /// A command that runs at a place of the lab.
    pub fn command(&self, place: &Place, argv: &[&str]) -> Command {
        let mut command = self.facts.programs.at(&self.root, place, None);
        command.args(argv);
        command
    }

    /// Runs a command as a user to its end.
    ///
    /// # Errors
    /// When it cannot be run; how it ended is in the output.
    pub fn exec(&self, user: &str, argv: &[&str]) -> Result<Output> {
        let place = self.place(Some(user))?;
        Ok(self.command(&place, argv).stdin(Stdio::null()).output()?)
    }

    /// Runs a command on device `n` to its end; returns what it wrote to stdout.
    ///
    /// # Errors
    /// When it fails.
    pub fn on_device(&self, n: u32, argv: &[&str]) -> Result<String> {
        run::checked(&mut self.command(&Place::Device(n), argv))
    }

    /// Asks the database; rows are lines, columns are separated by `|`.
    ///
    /// # Errors
    /// When the statement fails.
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.psql_as(postgres::ROLE, sql)
    }

    /// The same as one of the database's roles.
    ///
    /// # Errors
    /// When psql fails.
    pub fn psql_as(&self, role: &str, sql: &str) -> Result<String> {
        let psql = postgres::program_dir()?.join("psql");
        let psql = psql.to_string_lossy();
        let argv = [&psql, "-U", role, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql];
        let answer = run::checked(&mut self.command(&Place::Core, &argv))?;
        Ok(answer.trim_end().to_owned())
    }

    /// The path of a component's log.
    pub fn log(&self, component: &str) -> PathBuf {
        crate::component::log_file(&self.root, component)
    }

    /// What its components are and do.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn status(&self) -> Result<Status> {
        let components = Component::all(&self.root)?;
        let components = components
            .into_iter()
            .map(|component| {
                let process = Record::read(&self.root, &component.name).map(|record| record.process);
                let stat = process.and_then(|process| process.stat());
                let state = match stat {
                    Some(stat) if stat.is_stopped() => "stopped",
                    Some(_) => "running",
                    None => "ended",
                };
                ComponentStatus {
                    log: self.log(&component.name),
                    pid: stat.and(process).map(|process| process.pid),
                    address: component.address,
                    place: component.place.to_string(),
                    up: state == "running",
                    state,
                    name: component.name,
                }
            })
            .collect();
        Ok(Status {
            dir: self.root.to_path_buf(),
            components,
        })
    }

    /// The processes of the lab: everything in its network namespaces but the caller.
    pub fn processes(&self) -> Vec<Process> {
        let own = std::process::id() as i32;
        let mut processes = process::in_networks(&self.networks().inodes());
        processes.retain(|process| process.pid != own);
        processes
    }

    /// Ends every process of the lab and removes all but the logs.
    ///
    /// # Errors
    /// When a process is left; it is named.
    pub fn down(&self) -> Result<()> {
        let components = Component::all(&self.root).unwrap_or_default();
        // Agents first: on their way out they end their own ssh and tell the servers.
        let is_agent = |component: &&Component| component.name.starts_with("agentd-");
        self.ask_to_end(components.iter().filter(is_agent));
        self.ask_to_end(components.iter().filter(|component| !is_agent(component)));
        let ended = process::wait(Duration::from_secs(60), || {
            let left = self.processes();
            for process in &left {
                process.signal(Signal::SIGKILL).ok();
            }
            left.is_empty()
        });
        if !ended {
            let left: Vec<_> = self
                .processes()
                .iter()
                .map(|process| format!("{} ({})", process.pid, process.command_line()))
                .collect();
            bail!(
                "processes of the lab in {} are left: {}",
                self.root.display(),
                left.join(", ")
            );
        }
        self.networks()
            .remove()
            .with_context(|| format!("cannot let go of the namespaces of {}", self.root.display()))?;
        for below in [
            "broker",
            "broker-2",
            "components",
            "devices",
            "empty",
            "etc",
            "helpers",
            "operator",
            "pki",
            "postgres",
            "postgres-2",
            "redis",
            "router",
            "router-2",
            "run",
            "servers",
            "tokens",
            "users",
        ] {
            let path = self.root.join(below);
            if path.exists() {
                fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(fs::remove_file(facts_file(&self.root))?)
    }

    /// Ends a lab of one's own now, its logs too, and says whether that went well.
    ///
    /// # Errors
    /// See [`Lab::down`].
    pub fn take_down(mut self) -> Result<()> {
        self.owned = false;
        self.down()?;
        Ok(fs::remove_dir_all(&*self.root)?)
    }

    /// Asks components to end, and waits for a while.
    fn ask_to_end<'a>(&self, components: impl Iterator<Item = &'a Component>) {
        let mut asked = Vec::new();
        for component in components {
            if let Some(record) = Record::read(&self.root, &component.name) {
                record.process.signal(component.stop_signal()).ok();
                // A frozen one hears nothing.
                record.process.signal(Signal::SIGCONT).ok();
                asked.push(record.process);
            }
        }
        process::wait_ended(&asked, Duration::from_secs(5));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let failed = std::thread::panicking();
        match self.down() {
            // The logs of a failed test stay.
            Ok(()) if failed => eprintln!("the lab's logs: {}", self.root.join("log").display()),
            Ok(()) => {
                fs::remove_dir_all(&*self.root).ok();
            }
            Err(error) => eprintln!("the lab did not go down: {error:#}"),
        }
    }
}

/// Ends the labs whose owners died without doing so.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(lab) = Lab::attach(&entry.path()) else {
            continue;
        };
        if lab.facts.owner.is_some_and(|owner| !owner.is_alive()) {
            match lab.down() {
                Ok(()) => eprintln!("ended the lab in {}, whose owner had died", lab.root.display()),
                Err(error) => eprintln!("a lab whose owner has died did not go down: {error:#}"),
            }
        }
    }
}

fn facts_file(root: &Path) -> PathBuf {
    root.join("lab.json")
}
