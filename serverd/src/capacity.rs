//! How many tunnels this machine can hold, and what binds that number.

use std::fs;
use std::ops::RangeInclusive;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::config::{PortRange, Sshd};
use crate::lease::Counts;

/// What a tunnel costs in memory, kernel memory included, in KiB: two sshd processes, as measured.
const KIB_PER_TUNNEL: u64 = 2560;
/// What a tunnel costs in processes.
const PROCESSES_PER_TUNNEL: u64 = 2;
/// Connections that one address of a load balancer can hold to one port of sshd: its default range of local ports.
const CONNECTIONS_PER_PORT: u64 = 28_232;
/// Descriptors that serverd needs besides one per tunnel.
const OWN_DESCRIPTORS: u64 = 512;

/// What there is, in units of what a tunnel needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Tunnels held now; the free amounts below come on top.
    pub held: u64,
    /// Ports that can be leased now; those at rest do not count.
    pub ports_free: u64,
    pub memory_available_kib: u64,
    pub processes_free: u64,
    /// Descriptors that serverd may hold in all.
    pub descriptors: u64,
    /// Ports that sshd listens on.
    pub sshd_ports: u64,
}

/// What binds a capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// `sshd.ports` is too small, or too many of its ports rest.
    Ports,
    Memory,
    /// `kernel.pid_max` or `kernel.threads-max`.
    Processes,
    /// serverd's own limit of open files.
    Descriptors,
    /// Connections between a load balancer and sshd: more ports in `sshd.listen` make more.
    Connections,
}

/// How many tunnels fit, and why not more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub tunnels: u32,
    pub bound: Bound,
}

/// How many tunnels each resource would allow by itself.
pub fn limits(there: &Resources) -> [(Bound, u64); 5] {
    [
        (Bound::Ports, there.held + there.ports_free),
        (Bound::Memory, there.held + there.memory_available_kib / KIB_PER_TUNNEL),
        (
            Bound::Processes,
            there.held + there.processes_free / PROCESSES_PER_TUNNEL,
        ),
        (Bound::Descriptors, there.descriptors.saturating_sub(OWN_DESCRIPTORS)),
        (Bound::Connections, there.sshd_ports * CONNECTIONS_PER_PORT),
    ]
}

/// Computes the capacity from what there is.
pub fn capacity(there: &Resources) -> Capacity {
    let (bound, tunnels) = limits(there)
        .into_iter()
        .min_by_key(|(_, tunnels)| *tunnels)
        .unwrap_or((Bound::Ports, 0));
    Capacity {
        tunnels: u32::try_from(tunnels).unwrap_or(u32::MAX),
        bound,
    }
}

/// Looks at what this machine has. What cannot be read does not bind.
pub fn look(sshd: &Sshd, counts: Counts) -> Resources {
    let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    Resources {
        held: wide(counts.held),
        ports_free: wide(counts.free),
        memory_available_kib: memory_available_kib().unwrap_or(u64::MAX / 2),
        processes_free: processes_free().unwrap_or(u64::MAX / 2),
        descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft),
        sshd_ports: wide(sshd.listen.len()),
    }
}

/// `/proc/meminfo`, proc(5).
fn memory_available_kib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The kernel's limit on processes less those there are; the fourth field of `/proc/loadavg` is `running/all`.
fn processes_free() -> Option<u64> {
    let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let all = load.split(' ').nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some(limit.saturating_sub(all))
}

/// Raises this process's limit of open files as far as it goes: each tunnel needs one.
pub fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Why the ports to lease cannot be leased: the kernel draws from them for its own connections.
///
/// A connection of this machine that happens to have a leased port keeps sshd from listening on it.
pub fn port_conflict(ports: PortRange) -> Option<String> {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let drawn = drawn_ports(&read("ip_local_port_range"))?;
    let reserved = reserved_ports(&read("ip_local_reserved_ports"));
    let taken = |port: u16| drawn.contains(&port) && !reserved.iter().any(|range| range.contains(&port));
    (ports.first..=ports.last).any(taken).then(|| {
        format!(
            "sshd.ports {first}-{last} overlaps the ports that the kernel draws for connections ({}-{}); \
             run: sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}, and keep it in /etc/sysctl.d",
            drawn.start(),
            drawn.end(),
            first = ports.first,
            last = ports.last,
        )
    })
}

fn drawn_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// A list such as `8080,20000-29999`.
fn reserved_ports(text: &str) -> Vec<RangeInclusive<u16>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: Resources = Resources {
        held: 100,
        ports_free: 50_000,
        memory_available_kib: 1 << 30,
        processes_free: 4_000_000,
        descriptors: 1 << 20,
        sshd_ports: 4,
    };

    #[test]
    fn the_scarcest_resource_binds() {
        assert_eq!(
            capacity(&PLENTY),
            Capacity {
                tunnels: 50_100,
                bound: Bound::Ports
            }
        );
        for (bound, tunnels, there) in [
            (
                Bound::Memory,
                500,
                Resources {
                    memory_available_kib: 400 * 2560,
                    ..PLENTY
                },
            ),
            (
                Bound::Processes,
                300,
                Resources {
                    processes_free: 401,
                    ..PLENTY
                },
            ),
            (
                Bound::Descriptors,
                488,
                Resources {
                    descriptors: 1000,
                    ..PLENTY
                },
            ),
            (
                Bound::Connections,
                28_232,
                Resources {
                    sshd_ports: 1,
                    ..PLENTY
                },
            ),
            (
                Bound::Ports,
                100,
                Resources {
                    ports_free: 0,
                    ..PLENTY
                },
            ),
        ] {
            assert_eq!(capacity(&there), Capacity { tunnels, bound });
        }
    }

    #[test]
    fn ports_are_read_as_the_kernel_writes_them() {
        assert_eq!(drawn_ports("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!(drawn_ports(""), None);
        assert_eq!(reserved_ports("\n"), vec![]);
        assert_eq!(reserved_ports("8080,20000-29999\n"), vec![8080..=8080, 20_000..=29_999]);
    }
}
