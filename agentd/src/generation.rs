//! The count of the agent's connects, which orders its presence.
//!
//! A server must never take an old "offline" for newer than a fresh "online", so each connect gets a higher number,
//! across restarts too. The file holds the end of a block that may be used; one write serves many connects, and flash
//! lives longer. Where the file cannot be written, the clock keeps the order.

use std::fs;
use std::path::{Path, PathBuf};

use rssh_mqtt::files::write_public;
use rssh_proto::Generation;

/// How many connects one write of the file covers.
const BLOCK: u64 = 64;

/// Draws generations.
#[derive(Debug)]
pub struct Generations {
    file: PathBuf,
    last: u64,
    /// The highest that may be drawn before the file is written again.
    reserved: u64,
    warned: bool,
}

impl Generations {
    /// Goes on from the file in the agent's state directory.
    pub fn load(state_dir: &Path) -> Self {
        let file = state_dir.join("generation");
        let last = fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        Self {
            file,
            last,
            reserved: last,
            warned: false,
        }
    }

    /// Draws the generation of the next connect: above every earlier one, and not below the clock in Unix seconds.
    pub fn draw(&mut self, unix_seconds: u64) -> Generation {
        self.last = self.last.saturating_add(1).max(unix_seconds);
        if self.last > self.reserved {
            self.reserved = self.last.saturating_add(BLOCK);
            if let Err(error) = write_public(&self.file, self.reserved.to_string().as_bytes())
                && !self.warned
            {
                self.warned = true;
                tracing::warn!(%error, "connects are ordered by the clock alone; make state-dir writable");
            }
        }
        Generation(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_rise_across_restarts_even_when_the_clock_is_at_1970() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = Generation(0);
        for _ in 0..3 {
            let mut generations = Generations::load(dir.path());
            for _ in 0..BLOCK * 2 {
                let next = generations.draw(0);
                assert!(next > last);
                last = next;
            }
        }
    }

    #[test]
    fn without_a_file_the_clock_keeps_the_order() {
        let nowhere = Path::new("/proc/nowhere");
        let first = Generations::load(nowhere).draw(1_800_000_000);
        let mut restarted = Generations::load(nowhere);
        let second = restarted.draw(1_800_000_009);
        assert!(second > first);
        assert!(restarted.draw(1_800_000_009) > second);
    }
}
