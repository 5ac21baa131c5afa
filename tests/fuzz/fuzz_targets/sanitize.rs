//! Text for a terminal: nothing is left that could steer one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rssh_proto::text::{quoted, sanitize};

fuzz_target!(|text: &str| {
    for clean in [sanitize(text, 64), quoted(text, 64)] {
        assert!(!clean.contains(char::is_control), "{clean:?}");
        assert!(!clean.contains(['\u{202e}', '\u{2066}', '\u{200f}', '\u{2028}', '\u{feff}']), "{clean:?}");
        assert!(clean.chars().count() <= 64 + 5, "{clean:?}");
    }
    assert_eq!(sanitize(&sanitize(text, 1000), 2000), sanitize(text, 1000));
});
