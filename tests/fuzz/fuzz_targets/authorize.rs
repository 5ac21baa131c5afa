//! What sshd's helpers are told: a key is one line of two words, and a command only ever a claim.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rssh_proto::claim::{command, parse_command, parse_line};
use rssh_serverd::ssh_keygen::PublicKey;

fuzz_target!(|text: &str| {
    if let Ok(key) = text.parse::<PublicKey>() {
        let line = key.as_str();
        assert_eq!(line.split(' ').count(), 2, "{line:?}");
        assert!(line.bytes().all(|b| b.is_ascii_graphic() || b == b' '), "{line:?}");
        assert!(line.parse::<PublicKey>().is_ok_and(|again| again.as_str() == line));
    }
    if let Some(line) = parse_line(text)
        && let Some(tunnel) = parse_command(line.command)
    {
        assert_eq!(parse_command(&command(tunnel)), Some(tunnel));
    }
});
