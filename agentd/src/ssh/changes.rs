//! Changes in the directories of tunnels: one inotify(7) instance serves all, since a user may have 128.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::master::watched;
use crate::rundir::{LOG, SOCKET};

/// What was seen in a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    socket: bool,
    /// How often something was written to the log, or may have been.
    writes: u64,
}

/// Watches directories; begins with the first.
#[derive(Debug, Default)]
pub(super) struct Changes(OnceLock<(Arc<Instance>, AbortHandle)>);

#[derive(Debug)]
struct Instance {
    inotify: AsyncFd<OwnedFd>,
    watches: Mutex<HashMap<i32, watch::Sender<Seen>>>,
}

/// A watched directory.
#[derive(Debug)]
pub(super) struct Changed {
    instance: Arc<Instance>,
    descriptor: i32,
    seen: watch::Receiver<Seen>,
    /// How many writes were waited for.
    writes: u64,
}

impl Changes {
    /// Watches a directory for the control socket, and for what is written to the log.
    pub(super) fn watch(&self, dir: &Path) -> io::Result<Changed> {
        let (instance, _) = match self.0.get() {
            Some(begun) => begun,
            None => {
                let begun = Instance::begin()?;
                self.0.get_or_init(|| begun)
            }
        };
        let mut watches = instance.watches();
        let flags = WatchFlags::CREATE | WatchFlags::MODIFY;
        let descriptor = inotify::add_watch(instance.inotify.get_ref(), dir, flags)?;
        let (sender, seen) = watch::channel(Seen::default());
        watches.insert(descriptor, sender);
        Ok(Changed {
            instance: instance.clone(),
            descriptor,
            seen,
            writes: 0,
        })
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        if let Some((_, telling)) = self.0.get() {
            telling.abort();
        }
    }
}

impl Changed {
    /// Waits until the control socket is there.
    pub(super) async fn socket(&mut self) -> io::Result<()> {
        self.until(|seen| seen.socket).await.map(drop)
    }

    /// Waits until something was written to the log since the last call.
    pub(super) async fn written(&mut self) -> io::Result<()> {
        let before = self.writes;
        self.writes = self.until(|seen| seen.writes != before).await?.writes;
        Ok(())
    }

    async fn until(&mut self, holds: impl FnMut(&Seen) -> bool) -> io::Result<Seen> {
        let gone = |_| io::Error::other("the watch has ended");
        self.seen.wait_for(holds).await.map(|seen| *seen).map_err(gone)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        self.instance.watches().remove(&self.descriptor);
        // It is gone already if the directory is.
        let _ = inotify::remove_watch(self.instance.inotify.get_ref(), self.descriptor);
    }
}

impl Instance {
    fn begin() -> io::Result<(Arc<Self>, AbortHandle)> {
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let instance = Arc::new(Self {
            inotify: watched(inotify)?,
            watches: Mutex::default(),
        });
        let telling = tokio::spawn(instance.clone().tell());
        Ok((instance, telling.abort_handle()))
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<Seen>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells each directory's watcher what happens there.
    async fn tell(self: Arc<Self>) {
        let error = loop {
            let taken = self.inotify.readable().await.and_then(|mut ready| {
                self.take()?;
                ready.clear_ready();
                Ok(())
            });
            if let Err(error) = taken {
                break error;
            }
        };
        tracing::warn!(%error, "cannot watch tunnels any more");
        // Whoever waits is told that the watch has ended.
        self.watches().clear();
    }

    /// Takes the events that there are.
    fn take(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
        let watches = self.watches();
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                // A reader of the log finds nothing new at worst; a landing that waits for its socket has a limit.
                watches
                    .values()
                    .for_each(|seen| seen.send_modify(|seen| seen.writes += 1));
            }
            let Some((seen, name)) = watches.get(&event.wd()).zip(event.file_name()) else {
                continue;
            };
            match name.to_bytes() {
                name if name == SOCKET.as_bytes() => seen.send_modify(|seen| seen.socket = true),
                name if name == LOG.as_bytes() => seen.send_modify(|seen| seen.writes += 1),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn one_instance_tells_each_directory_its_own_changes() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let changes = Changes::default();
        let mut first = changes.watch(one.path()).unwrap();
        let mut second = changes.watch(other.path()).unwrap();
        assert!(Arc::ptr_eq(&first.instance, &second.instance));
        fs::write(other.path().join(LOG), "x").unwrap();
        second.written().await.unwrap();
        assert_eq!(*first.seen.borrow(), Seen::default());
        fs::write(one.path().join(SOCKET), "").unwrap();
        first.socket().await.unwrap();
        assert!(!second.seen.borrow().socket);
    }

    #[tokio::test]
    async fn a_directory_is_watched_again_after_its_watcher_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let changes = Changes::default();
        drop(changes.watch(dir.path()).unwrap());
        let mut changed = changes.watch(dir.path()).unwrap();
        assert_eq!(changed.instance.watches().len(), 1);
        fs::write(dir.path().join(LOG), "x").unwrap();
        changed.written().await.unwrap();
    }
}
