//! What memory processes take, and what the machine has left.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::files;
use crate::process::Process;

/// Bytes.
pub const KIB: f64 = 1024.0;

/// Proportional set size in bytes: what a process has alone, and its share of what it has with others (proc(5)).
///
/// # Errors
/// When the process has ended.
pub fn pss(process: Process) -> Result<f64> {
    field(&format!("/proc/{}/smaps_rollup", process.pid), "Pss:")
}

/// The same of many; those that end meanwhile do not count.
pub fn pss_of(processes: &[Process]) -> f64 {
    processes.iter().filter_map(|process| pss(*process).ok()).sum()
}

/// Bytes of the machine that programs could still have.
///
/// # Errors
/// When /proc/meminfo cannot be read.
pub fn available() -> Result<f64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// Bytes that the kernel has for its own things: sockets, processes, files.
///
/// # Errors
/// When /proc/meminfo cannot be read.
pub fn kernels() -> Result<f64> {
    let fields = ["Slab:", "KernelStack:", "PageTables:", "Percpu:"];
    fields.iter().map(|name| field("/proc/meminfo", name)).sum()
}

/// A line of a file in /proc that gives KiB, in bytes.
fn field(path: &str, name: &str) -> Result<f64> {
    let text = files::read(Path::new(path))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"))
        .with_context(|| format!("{path} has no {name}"))?;
    Ok(kib.trim().parse::<f64>()? * KIB)
}
