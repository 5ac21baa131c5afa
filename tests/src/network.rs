//! The lab's network namespaces: made, joined by veth pairs (ip(8)), hidden behind NAT (nft(8)), and removed.
//!
//! A namespace is kept by a bind mount of its file, all of them on one tmpfs at `DIR/ns`: no process has to hold it,
//! and one unmount takes every trace away.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::place::{LB, LB_PUBLIC, LB2, Place, SITE, SITE_GATEWAY, device_address};
use crate::run;

/// What the tmpfs of namespaces is called in mountinfo, so that programs of the lab can shed other labs' ones.
pub const TMPFS: &str = "rssh-lab-ns";

/// The namespaces of one lab.
#[derive(Debug, Clone)]
pub struct Networks {
    dir: PathBuf,
}

impl Networks {
    /// The namespaces of the lab in `root`.
    pub fn of(root: &Path) -> Self {
        Self { dir: root.join("ns") }
    }

    /// The file of a place's namespace.
    pub fn file(&self, place: &Place) -> PathBuf {
        self.dir.join(place.network())
    }

    /// The inode numbers of all of them: who has one of these is part of the lab.
    pub fn inodes(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| crate::process::inode(&entry.ok()?.path()))
            .collect()
    }

    /// Makes the servers' side, the devices' site and a namespace for each device, joined and addressed.
    ///
    /// # Errors
    /// When the kernel or `ip` or `nft` refuses.
    pub fn create(&self, devices: u32) -> Result<()> {
        fs::create_dir_all(&self.dir)?;
        mount(
            Some(TMPFS),
            &self.dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=0755"),
        )
        .with_context(|| format!("cannot mount a tmpfs at {}; the lab needs root", self.dir.display()))?;
        // A mount namespace elsewhere must not get copies of what follows.
        mount(None::<&str>, &self.dir, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?;
        let mut places = vec![Place::Core, Place::Site];
        places.extend((1..=devices).map(Place::Device));
        self.create_namespaces(&places)?;
        self.inside(&Place::Core, || -> Result<()> {
            // As the packages set it (packaging/sysctl.d/60-rssh-routerd.conf).
            fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").context("cannot let listeners take early data")?;
            ip(&self.dir, &core_batch())
        })??;
        self.inside(&Place::Site, || -> Result<()> {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot let the site's router forward")?;
            ip(&self.dir, &site_batch(devices))?;
            run::fed(Command::new("nft").args(["-f", "-"]), NAT)?;
            Ok(())
        })??;
        for n in 1..=devices {
            self.inside(&Place::Device(n), || ip(&self.dir, &device_batch(n)))??;
        }
        Ok(())
    }

    fn create_namespaces(&self, places: &[Place]) -> Result<()> {
        on_own_thread(|| {
            for place in places {
                let file = self.file(place);
                File::create(&file)?;
                unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; the lab needs root")?;
                mount(
                    Some("/proc/thread-self/ns/net"),
                    &file,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
                .with_context(|| format!("cannot keep the network namespace {}", file.display()))?;
            }
            Ok(())
        })?
    }

    /// Runs `work` on a thread that is in the place's network namespace; what it starts or connects to is there too.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, place: &Place, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.file(place);
        on_own_thread(|| {
            let namespace = File::open(&file).with_context(|| format!("the lab has no place {place}"))?;
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter the network of {place}"))?;
            Ok(work())
        })?
    }

    /// Lets go of every namespace; the kernel frees each when its last process has ended.
    ///
    /// # Errors
    /// When the mount cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match umount2(&self.dir, MntFlags::MNT_DETACH) {
            // EINVAL: not a mount point.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow!("a thread of the lab panicked"))
}

/// Applies a batch of ip(8) commands in the calling thread's network namespace.
fn ip(dir: &Path, batch: &str) -> Result<()> {
    run::fed(Command::new("ip").args(["-batch", "-"]).current_dir(dir), batch).map(drop)
}

fn core_batch() -> String {
    // A name with a slash is a path for ip(8), here relative to the directory of namespaces.
    format!(
        "link set lo up\n\
         link add wan type veth peer name uplink netns ./site\n\
         addr add {LB}/24 dev wan\n\
         addr add {LB_PUBLIC}/24 dev wan\n\
         addr add {LB2}/24 dev wan\n\
         link set wan up\n"
    )
}

fn site_batch(devices: u32) -> String {
    let mut batch = format!(
        "link set lo up\n\
         addr add {SITE}/24 dev uplink\n\
         link set uplink up\n\
         link add lan type bridge\n\
         addr add {SITE_GATEWAY}/16 dev lan\n\
         link set lan up\n"
    );
    for n in 1..=devices {
        batch.push_str(&format!(
            "link add d{n} type veth peer name eth0 netns ./device-{n}\n\
             link set d{n} master lan up\n"
        ));
    }
    batch
}

fn device_batch(n: u32) -> String {
    format!(
        "link set lo up\n\
         addr add {}/16 dev eth0\n\
         link set eth0 up\n\
         route add default via {SITE_GATEWAY}\n",
        device_address(n)
    )
}

/// What a router at home does: nobody outside reaches in, and everybody inside has the router's address.
const NAT: &str = "
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname \"uplink\" masquerade
    }
}
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        iifname \"lan\" accept
        ct state established,related accept
    }
}
";
