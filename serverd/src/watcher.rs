//! Watches processes by their pidfds: one thread and one epoll set for all, so that a lease costs a descriptor and a
//! few words of memory.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::epoll;
use tokio::sync::mpsc;

use crate::process::{Handle, Process};

/// Watches processes; clones share the set.
#[derive(Clone)]
pub struct Watcher {
    shared: Arc<Shared>,
}

struct Shared {
    epoll: OwnedFd,
    watched: Mutex<HashMap<u64, (Process, Handle)>>,
}

impl Watcher {
    /// Starts to watch; the receiver gets each process that has ended, once.
    ///
    /// # Errors
    /// When the process has no descriptors or threads left.
    pub fn start() -> io::Result<(Self, mpsc::UnboundedReceiver<Process>)> {
        let shared = Arc::new(Shared {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            watched: Mutex::new(HashMap::new()),
        });
        // Bounded by the number of processes watched: each is told once.
        let (ended, receiver) = mpsc::unbounded_channel();
        let thread = shared.clone();
        std::thread::Builder::new()
            .name("watcher".to_owned())
            .spawn(move || thread.run(&ended))?;
        Ok((Self { shared }, receiver))
    }

    /// Watches a process.
    ///
    /// # Errors
    /// When it has ended already, or no descriptors are left.
    pub fn watch(&self, process: Process) -> io::Result<()> {
        let handle = process.handle()?;
        let mut watched = self.shared.lock();
        let token = token(process);
        epoll::add(
            &self.shared.epoll,
            handle.fd(),
            epoll::EventData::new_u64(token),
            epoll::EventFlags::IN | epoll::EventFlags::ONESHOT,
        )?;
        watched.insert(token, (process, handle));
        Ok(())
    }
}

/// Process ids have at most 22 bits; the start's lower bits tell two holders of one id apart.
fn token(process: Process) -> u64 {
    (process.start << 24) | u64::from(process.pid.unsigned_abs())
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (Process, Handle)>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, ended: &mpsc::UnboundedSender<Process>) {
        let mut events = Vec::with_capacity(256);
        loop {
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot watch sessions any more");
                    return;
                }
            }
            for event in events.drain(..) {
                // Dropping the handle closes its descriptor, which takes it out of the set.
                let gone = self.lock().remove(&event.data.u64());
                if let Some((process, _)) = gone
                    && ended.send(process).is_err()
                {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{end_session, stat};

    #[tokio::test]
    async fn the_end_of_a_process_is_told() {
        let (watcher, mut ended) = Watcher::start().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = stat(i32::try_from(child.id()).unwrap()).unwrap().process;
        watcher.watch(process).unwrap();
        end_session(None, Some(process));
        assert_eq!(ended.recv().await, Some(process));
        child.wait().unwrap();
        assert!(watcher.watch(process).is_err());
    }
}
