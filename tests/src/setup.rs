//! Brings a lab up, stage by stage; within a stage everything happens at once.

use std::io::{Read as _, Write as _};
use std::num::NonZeroU32;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::component::Component;
use crate::network::Networks;
use crate::parts::{broker, device, pki, redis, router, server, user};
use crate::place::{Place, device_name, user_name};
use crate::process;
use crate::programs::Programs;
use crate::ready::{Pending, connect_unix};
use crate::root::Root;
use crate::{accounts, component, files, postgres, run};

/// How many of each a lab has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    pub servers: NonZeroU32,
    pub devices: u32,
    pub users: u32,
    /// Whether each store, broker and load balancer is there twice, one of them to be lost.
    #[serde(default)]
    pub ha: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            servers: NonZeroU32::new(2).unwrap_or(NonZeroU32::MIN),
            devices: 4,
            users: 2,
            ha: false,
        }
    }
}

/// Is told of each stage as it ends, and how long it took.
pub type Progress<'a> = &'a (dyn Fn(&str, Duration) + Sync);

/// A lab that is coming up.
pub struct Setup {
    pub root: Root,
    pub programs: Programs,
    pub options: Options,
}

/// The name of the first or the second of its kind: the first has no number.
pub fn numbered(name: &str, n: u32) -> String {
    match n {
        1 => name.to_owned(),
        _ => format!("{name}-{n}"),
    }
}

/// One of the many things of a stage.
type Job<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

impl Setup {
    /// Starts everything; returns when a user can open a tunnel to every device.
    ///
    /// # Errors
    /// When a part cannot be configured or does not come up.
    pub fn run(&self, progress: Progress<'_>) -> Result<()> {
        let mut stages = Stages::new(progress);
        self.prepare()?;
        stages.end("network namespaces");
        self.start_stores()?;
        stages.end("PostgreSQL, Redis, broker; keys and authorities");
        self.start_first_server()?;
        stages.end("the first server");
        self.join()?;
        stages.end("other servers and router joined");
        self.start_servers()?;
        stages.end("serverd, sshd, HAProxy, routerd");
        self.admit()?;
        stages.end("devices and users enrolled");
        self.start_devices()?;
        stages.end("devices");
        Ok(())
    }

    /// The numbers of whatever there is twice in a lab that loses one.
    pub fn twins(&self) -> std::ops::RangeInclusive<u32> {
        1..=if self.options.ha { 2 } else { 1 }
    }

    fn servers(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.options.servers.get()
    }

    fn devices(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.options.devices
    }

    fn users(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.options.users
    }

    fn prepare(&self) -> Result<()> {
        for below in ["components", "run", "log", "pki"] {
            files::make_dir(&self.root.join(below))?;
        }
        accounts::write_shared(&self.root)?;
        redis::prepare(&self.root)?;
        // Enough: two labs at the same time are few.
        let lab = uuid::Uuid::new_v4().as_u64_pair().0 as u16;
        let write = |place: Place, server: u32| accounts::write(&self.root, &place, accounts::tunnels_uid(lab, server));
        write(Place::Core, 0)?;
        for n in self.devices() {
            write(Place::Device(n), 0)?;
        }
        for n in self.users() {
            write(Place::User(user_name(n).parse()?), 0)?;
        }
        for n in self.servers() {
            write(Place::Server(n), n)?;
            server::write_config(self, n)?;
        }
        server::install_helpers(self)?;
        Networks::of(&self.root).create(self.options.devices)
    }

    fn start_stores(&self) -> Result<()> {
        let host_keys = Mutex::new(String::new());
        let authorized_keys = Mutex::new(String::new());
        let mut jobs: Vec<Job> = vec![
            Box::new(|| {
                postgres::prepare(&self.root, &self.programs, self.options.ha)?;
                start(&self.root, &self.programs, &[postgres::component(&self.root, 1)?])?;
                if self.options.ha {
                    postgres::add_stand_by(&self.root, &self.programs)
                } else {
                    Ok(())
                }
            }),
            Box::new(|| {
                pki::create(self)?;
                let mut components = Vec::new();
                for n in self.twins() {
                    broker::render(self, n)?;
                    components.push(broker::component(self, n));
                }
                start(&self.root, &self.programs, &components)?;
                redis::start(self)
            }),
        ];
        for n in self.users() {
            let keys = &authorized_keys;
            jobs.push(Box::new(move || {
                let key = user::init(self, n)?;
                add_line(keys, &key);
                Ok(())
            }));
        }
        for n in self.devices() {
            let keys = &host_keys;
            jobs.push(Box::new(move || {
                let key = device::init(self, n)?;
                add_line(keys, &format!("{} {key}", device_name(n)));
                Ok(())
            }));
        }
        parallel(jobs)?;
        let (host_keys, authorized_keys) = (taken(host_keys), taken(authorized_keys));
        for n in self.users() {
            user::pin(self, n, &host_keys)?;
        }
        for n in self.devices() {
            device::authorize(self, n, &authorized_keys)?;
        }
        Ok(())
    }

    fn start_first_server(&self) -> Result<()> {
        server::migrate(self)?;
        server::init(self)?;
        start(&self.root, &self.programs, &server::components(self, 1))
    }

    /// Everything else of the servers' side comes in over HTTPS, with one-time tokens.
    fn join(&self) -> Result<()> {
        let mut jobs: Vec<Job> = Vec::new();
        for n in self.servers().skip(1) {
            jobs.push(Box::new(move || server::join(self, n)));
        }
        for n in self.twins() {
            jobs.push(Box::new(move || router::join(self, n)));
        }
        parallel(jobs)
    }

    /// Lets devices and users in: over HTTPS, with one-time tokens.
    fn admit(&self) -> Result<()> {
        let token = device::token(self)?;
        let mut jobs: Vec<Job> = Vec::new();
        for n in self.devices() {
            let token = &token;
            jobs.push(Box::new(move || device::enrol(self, n, token)));
        }
        for n in self.users() {
            jobs.push(Box::new(move || user::enrol(self, n)));
        }
        parallel(jobs)?;
        let grant = |n| -> Job { Box::new(move || user::grant(self, n)) };
        parallel(self.users().map(grant).collect())
    }

    fn start_servers(&self) -> Result<()> {
        let mut components: Vec<Component> = self
            .servers()
            .skip(1)
            .flat_map(|n| server::components(self, n))
            .collect();
        components.extend(self.twins().map(|n| router::haproxy(self, n)));
        start(&self.root, &self.programs, &components)?;
        let routerds: Vec<Component> = self.twins().map(|n| router::routerd(self, n)).collect();
        start(&self.root, &self.programs, &routerds)?;
        let servers = self.options.servers.get() as usize;
        for n in self.twins() {
            let mut seen = 0;
            let all = process::wait(Duration::from_secs(20), || {
                seen = router::servers_up_at(&self.root, n).unwrap_or(0);
                seen >= servers
            });
            ensure!(
                all,
                "{} sees {seen} of {servers} servers up:\n{}",
                numbered("haproxy", n),
                component::log_tail(&self.root, &numbered("routerd", n))
            );
        }
        Ok(())
    }

    fn start_devices(&self) -> Result<()> {
        let components: Vec<Component> = self.devices().flat_map(|n| device::components(self, n)).collect();
        start(&self.root, &self.programs, &components)
    }
}

/// Records components, starts them all, and waits until each serves.
///
/// # Errors
/// When one does not come up.
pub fn start(root: &Path, programs: &Programs, components: &[Component]) -> Result<()> {
    let mut pending = Vec::with_capacity(components.len());
    for component in components {
        component.write(root)?;
        pending.push(Pending::new(root, component)?);
    }
    let mut launch = Command::new(programs.path("rssh-lab"));
    launch.arg("launch").arg("--dir").arg(root);
    launch.args(components.iter().map(|component| &component.name));
    run::checked(&mut launch)?;
    pending.iter().try_for_each(|pending| pending.wait(root))?;
    for component in components.iter().filter(|component| !component.after.is_empty()) {
        run::checked(programs.at(root, &component.place, None).args(&component.after))?;
    }
    Ok(())
}

/// Asks HAProxy something at its runtime socket.
///
/// # Errors
/// When it does not answer.
pub fn ask_haproxy(root: &Path, socket: &str, command: &str) -> Result<String> {
    let mut stream = connect_unix(root, socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("no answer")?;
    Ok(answer)
}

fn add_line(text: &Mutex<String>, line: &str) {
    let mut text = text.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    text.push_str(line);
    text.push('\n');
}

fn taken(text: Mutex<String>) -> String {
    text.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Does all jobs, a few at a time; the first error ends it.
fn parallel(jobs: Vec<Job<'_>>) -> Result<()> {
    // Most of a job is waiting for a program that itself waits for a disk or a peer.
    let workers = (thread::available_parallelism().map_or(2, usize::from) * 4).min(jobs.len());
    let jobs: Vec<Mutex<Option<Job>>> = jobs.into_iter().map(|job| Mutex::new(Some(job))).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let job = job.lock().map_err(|_| anyhow!("a job panicked"))?.take();
            if let Some(Err(error)) = job.map(|job| job()) {
                next.store(jobs.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread of the lab panicked"),
            }
        }
        Ok(())
    })
}

/// Tells of stages as they end.
struct Stages<'a> {
    progress: Progress<'a>,
    since: Instant,
}

impl<'a> Stages<'a> {
    fn new(progress: Progress<'a>) -> Self {
        Self {
            progress,
            since: Instant::now(),
        }
    }

    fn end(&mut self, stage: &str) {
        (self.progress)(stage, self.since.elapsed());
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_once_and_an_error_comes_out() {
        let count = AtomicUsize::new(0);
        let job = || -> Job {
            Box::new(|| {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        parallel((0..100).map(|_| job()).collect()).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 100);
        let error = parallel(vec![job(), Box::new(|| bail!("no")), job()]).unwrap_err();
        assert_eq!(error.to_string(), "no");
        parallel(Vec::new()).unwrap();
    }
}
