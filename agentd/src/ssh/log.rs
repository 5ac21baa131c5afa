//! What ssh says while it carries a tunnel.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::fault;

/// How long the log may get before it is begun anew: ssh adds a line for each connection that fails.
const LIMIT: u64 = 64 * 1024;

/// A log that ssh appends to and the agent reads on.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    read: u64,
}

impl Log {
    /// Reads from the beginning: a tunnel may be used before its agent knows that it has landed.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self { file, read: 0 })
    }

    /// Reads from the present end on.
    pub(super) fn continue_at_end(path: &Path) -> io::Result<Self> {
        let mut log = Self::open(path)?;
        log.read = log.file.metadata()?.len();
        Ok(log)
    }

    /// Whether ssh has said since the last call that a connection did not reach the target.
    pub(super) fn target_refused(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let mut refused = false;
        loop {
            // Each line comes by one write(2), so that none is seen in part.
            let count = self.file.read_at(&mut buffer, self.read)?;
            if count == 0 {
                break;
            }
            self.read += count as u64;
            refused |= String::from_utf8_lossy(&buffer[..count])
                .lines()
                .any(fault::is_target_refused);
        }
        if self.read > LIMIT {
            self.file.set_len(0)?;
            self.read = 0;
        }
        Ok(refused)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn only_what_is_new_counts_and_the_log_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut ssh = File::options().create(true).append(true).open(&path).unwrap();
        let refused = b"connect_to localhost port 22: failed.\r\n";
        ssh.write_all(refused).unwrap();
        assert!(Log::open(&path).unwrap().target_refused().unwrap());
        let mut log = Log::continue_at_end(&path).unwrap();
        assert!(!log.target_refused().unwrap());
        for _ in 0..5000 {
            ssh.write_all(refused).unwrap();
            assert!(log.target_refused().unwrap());
        }
        ssh.write_all(b"client_input_channel_req: something else\r\n").unwrap();
        assert!(!log.target_refused().unwrap());
        assert!(path.metadata().unwrap().len() <= LIMIT + 100);
    }
}
