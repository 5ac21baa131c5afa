//! Configurations: what is read is checked, and nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = toml::from_str::<rssh_serverd::config::Config>(text);
    let _ = toml::from_str::<rssh_routerd::config::Config>(text);
    if let Ok(path) = text.parse::<rssh_routerd::config::PlainPath>() {
        let shown = path.to_string();
        assert!(shown.starts_with('/') && !shown.contains([' ', ';', '\n', '#', '"', '\'']), "{shown:?}");
    }
    if let Ok(span) = text.parse::<rssh_proto::duration::Span>() {
        assert!(span.to_string().parse::<rssh_proto::duration::Span>().is_ok(), "{span}");
    }
});
